"""In the new process: takes the place of the one that has started it.

It first sees what runs, and decides nothing: the old process still does.  When that one has left off, it
reads what was written down and counts what the old one still carries; at its word it serves.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llmproxy import __version__
from llmproxy.fleet.keeping import recall
from llmproxy.upgrade.line import Line
from llmproxy.upgrade.marks import Marks
from llmproxy.upgrade.relayed import relayed

if TYPE_CHECKING:
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.fleet.state_file import StateFile
    from llmproxy.service import ProxyService
    from llmproxy.upgrade.inherited import Inherited
    from llmproxy.usage.book import Book
    from llmproxy.web.site import ProxySite

__all__ = ["Successor", "refuse"]

SEE = 2.0
"""Seconds that what runs has to show that it is healthy, before the new process takes over all the same."""

LOOK = 0.01
"""Seconds between looks at that."""

AGREE = 1.0
"""Seconds that the news of what the old process has stopped may take to come here, too."""

_GONE = ("absent", "failed")


def refuse(inherited: Inherited, why: str) -> None:
    """Tell the old process why this one cannot take its place, before there is a reactor."""
    import json
    from contextlib import suppress

    with suppress(OSError), socket.socket(fileno=os.dup(inherited.line)) as end:
        end.send(json.dumps({"say": "failed", "why": why}).encode("ascii"))


class Successor:
    """Takes over.

    :param served: called when it has.
    :param alone: called when the old process is gone.
    :param stop: ends this process, which nobody needs.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        fleet: Fleet,
        site: ProxySite,
        service: ProxyService,
        state: StateFile,
        book: Book,
        inherited: Inherited,
        *,
        served: Callable[[], None],
        alone: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self.marks = Marks(fleet)
        self._reactor = reactor
        self._fleet = fleet
        self._site = site
        self._service = service
        self._state = state
        self._book = book
        self._inherited = inherited
        self._served, self._alone, self._stop = served, alone, stop
        self._serves = self._last = self._stopped = self._asked = self._strays = False
        self._states: dict[str, str] = {}
        self._channels = relayed(site, fleet)
        fleet.scheduler.frozen = True
        # The old process knows more, and writes it down.
        state.hold(on=True)
        service.inherited = inherited
        service.begun.append(self._see)
        service.ending.append(self._ends)
        self._line = Line(reactor, socket.socket(fileno=inherited.line), self._heard, self._lost)

    def refuse(self, why: str) -> None:
        """This process cannot take over."""
        if not self._serves:
            self._say("failed", why=why)

    def _say(self, what: str, **more: Any) -> None:
        try:
            self._line.say(what, **more)
        except OSError:
            self._log.info("the process before this one is gone")

    def _see(self) -> None:
        """Wait until what runs has shown how it is."""

        def seen() -> bool:
            # What is starting there, too, will show it when it is ready.
            return all(
                one.state != "starting" or self._states.get(one.name) not in ("ready", "sleeping")
                for one in self._fleet.backends.values()
            )

        # Not before the reactor turns, with all that is to be done when it begins to.
        self._when(seen, SEE, self._prepared, now=False)

    def _prepared(self) -> None:
        if self._stopped:
            return
        self._inherited.close_others()
        self._say("prepared", pid=os.getpid(), version=__version__)

    def _when(
        self, so: Callable[[], bool], within: float, then: Callable[[], None], *, now: bool = True
    ) -> None:
        until = self._reactor.seconds() + within

        def look() -> None:
            if so() or self._reactor.seconds() >= until:
                looking.stop()
                then()

        looking = LoopingCall(look)
        looking.clock = self._reactor
        looking.start(LOOK, now)

    # -- what the old process says ------------------------------------------------------------------

    def _heard(self, message: dict[str, Any], fd: int | None) -> None:
        what = message["say"]
        if what == "hello":
            self._states = message["states"]
        elif what == "go":
            self._states = message["states"]
            self._when(self._agrees, AGREE, lambda: self._go(message))
        elif what == "yours":
            self._yours()
        elif what == "wishes":
            self._wish(message)
        elif what == "occupied":
            self.marks.set(message["occupied"])
        elif fd is not None:
            family, factory = message.get("family", int(socket.AF_UNIX)), self._channels
            try:
                self._reactor.adoptStreamConnection(fd, family, factory if what == "relay" else self._site)
            except OSError as cause:
                # Its client has left in between.
                self._log.debug("a connection is gone: {cause}", cause=cause)
            finally:
                os.close(fd)

    def _agrees(self) -> bool:
        """What has ended there has been seen to end here."""
        return all(
            one.state in _GONE or self._states.get(one.name) not in _GONE
            for one in self._fleet.backends.values()
        )

    def _go(self, message: dict[str, Any]) -> None:
        """Be ready to decide, and say so: the old process, which has left off, gives its place away by its
        answer to that.  So there is no moment in which both decide, whichever of them is killed."""
        if self._stopped:
            return
        fleet, now = self._fleet, self._reactor.seconds()
        recall(fleet, self._state, now)
        self._site.read_key_file()
        self._book.skip()
        self.marks.set(message["occupied"])
        unseen: set[str] = set()
        for backend in fleet.backends.values():
            there = self._states.get(backend.name)
            if backend.state == "failed" and there != "failed":
                # Its end was seen, which was wanted there.
                backend.reset()
            if {backend.state, there} == {"ready", "sleeping"}:
                backend.look_again("the process before this one has changed it")
            if backend.spec.runtime == "process" and backend.state in ("absent", "failed"):
                # It may have been started since; nothing else tells.
                unseen.add(backend.name)
                looked = backend.watch()
                looked.addErrback(lambda failure: self._log.failure("looking again", failure))
                looked.addBoth(lambda _, name: unseen.discard(name), backend.name)
        self._when(lambda: not unseen, AGREE, self._can_decide)

    def _can_decide(self) -> None:
        if not self._stopped:
            self._asked = True
            self._say("serving")

    def _yours(self) -> None:
        """Decide, from here on."""
        self._serves = True
        self._state.hold(on=False)
        self._fleet.scheduler.thaw()
        self._service.resume()
        self._served()

    def _wish(self, message: dict[str, Any]) -> None:
        """What the old process has been asked for, and has not done."""
        fleet = self._fleet
        for name in message["wanted"]:
            wanted = fleet.route(name)
            if wanted is not None:
                wanted.demand()
        for name, cause in message["stops"].items():
            stopped = fleet.route(name)
            if stopped is not None:
                stopped.stop_wanted(cause)

    def _lost(self) -> None:
        if not self._serves:
            self._stopped = True
            self._log.error("the process before this one is gone, and has not given its place away")
            self._stop()
            return
        self._last = True
        self.marks.set({})
        self._strays = True
        if not self._fleet.scheduler.frozen:
            self.decides_again()

    def decides_again(self) -> None:
        """The process after this one does not take its place."""
        # Until then what would be a stray here may be what that one has begun.
        if self._strays:
            self._strays = False
            self._alone()

    def has_former(self) -> bool:
        """The process before this one, which this one has taken the place of, is still there."""
        return self._serves and not self._last

    def _ends(self) -> None:
        if self._asked and not self._serves:
            # The answer may have come: then the place is this one's, and ends with it.
            self._line.doRead()
        if not self._serves:
            self._stopped = True
            # The other one goes on, with the sockets.
            self._service.hand_over()
            self._line.close()
        elif not self._last:
            # What it still carries has as long as what is carried here.
            self._say("end")
