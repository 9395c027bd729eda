"""Chaos: a real proxy before real backends, random traffic, and faults at random from a seed.

``windows`` tells what was wrong when; ``wire`` reads answers byte by byte; ``expected`` and ``judge`` (pure)
tell what an answer has to be; ``traffic`` asks; ``stage`` is the proxy and its world; ``faults`` do harm;
``watch`` samples what runs; ``aftermath`` looks whether all is well once the faults are over; ``run`` is one
seed, and ``report`` tells of it.  docs/reliability.md tells what it is for and how a seed is run again.
"""
