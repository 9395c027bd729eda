"""Hours of mixed load on one proxy: what it takes must not grow, and what it answers must not slow down."""
