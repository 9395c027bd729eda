"""Bytes that nobody thought of, for all that reads what others write."""
