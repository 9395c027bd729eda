"""Where clients come in: endpoints, and what TLS needs."""
