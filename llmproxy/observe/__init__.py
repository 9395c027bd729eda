"""What the proxy tells of itself besides its metrics: the log, and spans for a tracing system."""
