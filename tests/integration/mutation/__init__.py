"""Mutation testing: small faults are put into a module, one at a time, for its unit tests to find."""
