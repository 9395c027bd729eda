"""llmproxy: one small proxy in front of vLLM models that do not fit on the GPU together."""

import sys

__version__ = "0.1.0"

# Where the h2 library is installed, Twisted Web loads an HTTP/2 of its own with its HTTP/1.1: more than a
# megabyte that serves nothing here (ours is web/h2).  None says that there is no such module (Python's
# reference, section 5.3.1), and it goes on without; the annotations do not know that.
sys.modules.setdefault("twisted.web._http2", None)  # type: ignore[arg-type]
