"""The operator's ``llmproxy`` command: a client of the admin API, and the effective configuration."""
