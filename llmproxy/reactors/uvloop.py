"""``twistd --reactor=uvloop``: Twisted's reactor on libuv's event loop.

Installed before anything imports a reactor, so that this module imports nothing of llmproxy.
"""

from __future__ import annotations

import signal
import sys

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor
from twisted.internet.process import reapAllProcesses

__all__ = ["UvloopReactor", "install"]


class UvloopReactor(AsyncioSelectorReactor):
    """Hears of the end of children, too.

    Twisted is told of ``SIGCHLD`` by the file descriptor of :func:`signal.set_wakeup_fd`, and uvloop, which
    begins to run after Twisted has set it, puts its own there.  Python's handlers are called by uvloop as
    soon as a signal has come, so that one of them does the same.
    """

    def run(self, installSignalHandlers: bool = True) -> None:
        if installSignalHandlers:
            # Twisted sets its handlers during the start.
            self.addSystemEventTrigger("after", "startup", self._listen_to_children)
        super().run(installSignalHandlers=installSignalHandlers)

    def _listen_to_children(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: self.callFromThread(reapAllProcesses))
        signal.siginterrupt(signal.SIGCHLD, False)


def install() -> None:
    """Make it the reactor of this process.

    :raises SystemExit: uvloop is not installed; with one line on standard error that says what to install.
    """
    try:
        import uvloop
    except ImportError:
        sys.stderr.write("llmproxy: --reactor=uvloop needs uvloop: pip install 'llmproxy[uvloop]'\n")
        raise SystemExit(2) from None
    installReactor(UvloopReactor(uvloop.new_event_loop()))
