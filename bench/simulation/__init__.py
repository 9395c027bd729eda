"""The parts of ``python -m bench.simulate``: loads, a fleet on a clock of its own, policies, their cost."""
