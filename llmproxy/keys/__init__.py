"""Who may ask for how much, and the keys that the proxy itself has given out."""

KEY_FILE = "keys.json"
"""Where those are kept, in the state folder."""
