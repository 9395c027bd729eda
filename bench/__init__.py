"""Measures llmproxy beside other proxies: ``python -m bench``; docs/benchmarks.md tells how to read it."""
