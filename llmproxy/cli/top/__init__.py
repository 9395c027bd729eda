"""``llmproxy top``: all of the proxy on one screen.  Textual draws it; no other command loads that."""
