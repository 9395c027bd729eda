"""llmproxy: one small proxy in front of vLLM models that do not fit on the GPU together."""

__version__ = "0.1.0"
