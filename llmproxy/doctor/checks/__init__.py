"""From facts to findings.  Pure: each check is a function of frozen facts."""
