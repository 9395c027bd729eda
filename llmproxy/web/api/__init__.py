"""``/api``: what the operator's command talks to."""
