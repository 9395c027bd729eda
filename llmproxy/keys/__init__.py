"""Who may ask for how much, and the keys that the proxy itself has given out."""
