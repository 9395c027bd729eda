"""The parts of ``python -m bench.simulate_swarm``: demand, a Swarm on a clock of its own, and what carried
it."""
