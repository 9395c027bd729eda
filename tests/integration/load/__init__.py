"""Crowds: more clients than files may be open, thousands that wait, that stream, that never speak, and that
come back."""
