"""Configurations of other programs as ``llmproxy.yaml``.  Pure: text in, text and remarks out."""
