"""Brings a model's files into its cache before its first start."""
