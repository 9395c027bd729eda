"""The load generator: ``python -m bench.load KIND``, a process of its own for each measurement.

It ends with an error when an answer is not 200, a connection is lost or an event is missing: a proxy that
answers wrongly is not measured.  The result is one JSON object on standard output.
"""
