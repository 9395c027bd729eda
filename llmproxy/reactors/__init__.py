"""Reactors: the one that runs where none was chosen, and one that ``twistd --reactor`` has from here."""

from __future__ import annotations

import select
import sys

from twisted.internet.main import installReactor

__all__ = ["install_unless_chosen"]


def install_unless_chosen() -> None:
    """Give this process its reactor, unless it has one, as with ``twistd --reactor``.

    Where there is no epoll it is the one that Twisted takes by itself.
    """
    if "twisted.internet.reactor" in sys.modules or not hasattr(select, "epoll"):
        return
    from llmproxy.reactors.epoll import LeanEPollReactor

    installReactor(LeanEPollReactor())
