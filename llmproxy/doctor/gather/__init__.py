"""Gathers the facts.  Never raises for what it finds: what is wrong is a fact, too."""
