"""Where the log goes, and in which form: the observer that takes the place of twistd's own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO, cast

from twisted.internet.interfaces import IReactorThreads
from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.python.components import Componentized
from zope.interface import implementer

from llmproxy.config.model import LogSettings
from llmproxy.observe.lines import json_lines, text_lines

__all__ = ["LogObserver", "log_to"]

_FORMATS: Mapping[str, Callable[[LogEvent, Sequence[str]], str | None]] = {
    "text": text_lines,
    "json": json_lines,
}


_TOLD: Mapping[str, frozenset[object]] = {
    least.name: frozenset(level for level in LogLevel.iterconstants() if level >= least)
    for least in LogLevel.iterconstants()
}
"""What is told, by the level that is asked for."""


class _File(Protocol):
    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


@implementer(ILogObserver)
class LogObserver:
    """Writes what is important enough.

    :param settings: as they are at that moment: the configuration may be read again.
    :param secrets: what is not to be written, whatever an event says of it; as they are at that moment.
    :ivar file: where it writes.
    """

    def __init__(
        self,
        file: _File,
        settings: Callable[[], LogSettings],
        secrets: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.file = file
        self._settings = settings
        self._secrets = secrets

    def __call__(self, event: LogEvent) -> None:
        """See :class:`twisted.logger.ILogObserver`."""
        settings = self._settings()
        if event.get("log_level", LogLevel.info) not in _TOLD[settings.level]:
            return
        text = _FORMATS[settings.format](event, self._secrets())
        if text:
            self.file.write(text)
            self.file.flush()


def log_to(
    application: object,
    twistd: Mapping[str, Any],
    settings: Callable[[], LogSettings],
    reactor: IReactorThreads,
    secrets: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Have twistd write the log by these settings, where it would have written it.

    twistd asks its application for an observer before it makes one of its own.  A logger that was asked for
    by ``--logger`` comes before both, and ``--syslog`` has a form of its own: those are left alone.

    :param application: what the proxy is a part of.
    :param twistd: twistd's own options.
    :param secrets: what is not to be written.
    """
    if not isinstance(application, Componentized) or twistd.get("logger") or twistd.get("syslog"):
        return
    file = _destination(twistd, reactor)
    if file is not None:
        application.setComponent(ILogObserver, LogObserver(file, settings, secrets))


def _destination(twistd: Mapping[str, Any], reactor: IReactorThreads) -> _File | None:
    """Where twistd would write; None: that is for twistd to refuse."""
    name, foreground = twistd.get("logfile"), bool(twistd.get("nodaemon"))
    if name == "-" and not foreground:
        return None
    if foreground and name in (None, "", "-"):
        return _standard_output(sys.stdout)
    # Most write to standard output.
    from twisted.python.logfile import LogFile

    file: Any = LogFile.fromFullPath(name or "twistd.log")
    if not signal.getsignal(signal.SIGUSR1):
        # As twistd does it.
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return cast(_File, file)


def _standard_output(file: TextIO) -> TextIO:
    if hasattr(file, "reconfigure"):
        # A terminal or a locale that lacks a character must not lose the event.
        file.reconfigure(errors="backslashreplace")
    return file
