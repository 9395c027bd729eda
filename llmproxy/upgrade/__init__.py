"""One process of the proxy gives its place to the next one, and nobody's request is lost."""
