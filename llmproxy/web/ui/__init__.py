"""``/ui``: the dashboard.  Loaded when it is first asked for."""
