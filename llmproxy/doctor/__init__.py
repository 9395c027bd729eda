"""What may be wrong with an installation, and the fix for each; ``llmproxy doctor``."""
