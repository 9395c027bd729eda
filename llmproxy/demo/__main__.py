"""``python -m llmproxy.demo``: the demo server as a process that lives and dies as vLLM does."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import react

from llmproxy.demo.gpus import DEFAULT_TOTAL, Disagreement, SharedGpus
from llmproxy.demo.journal import Journal
from llmproxy.demo.ledger import GpuError, Ledger, choose
from llmproxy.demo.loading import Loading
from llmproxy.demo.memory import Memory, OwnGpus
from llmproxy.demo.server import DemoResource, exhaust_memory, site
from llmproxy.demo.settings import Settings, parse


def _say(line: str, prefix: bool = True) -> None:
    """One line of log, in vLLM's form where it has its prefix."""
    if prefix:
        line = f"(APIServer pid={os.getpid()}) INFO {datetime.now():%m-%d %H:%M:%S} [api_server.py:1] {line}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _say_engine(line: str) -> None:
    """A line of the engine's log; it may begin with its level."""
    level, _, rest = line.partition(" ")
    if level not in ("WARNING", "ERROR"):
        level, rest = "INFO", line
    now = f"{datetime.now():%m-%d %H:%M:%S}"
    _say(f"(EngineCore pid={os.getpid()}) {level} {now} [core.py:1] {rest}", prefix=False)


def _draw(line: str) -> None:
    _say(line, prefix=False)


def _memory(settings: Settings) -> Memory:
    """The server's hand on its GPUs, with nothing claimed yet.

    :raises GpuError: they cannot be had.
    :raises Disagreement: they have another size.
    """
    if settings.gpu is None:
        return Memory(OwnGpus(Ledger(settings.gpu_total or DEFAULT_TOTAL)), settings.plan)
    chosen = choose(settings.visible, settings.gpu_count)
    gpus = SharedGpus.join(Path(settings.gpu), settings.models[0], settings.gpu_total)
    return Memory(gpus, evolve(settings.plan, gpus=chosen))


def _count_start(model: str) -> int:
    """Add a line to the file of starts, if there is one, and tell how many it has now."""
    path = os.environ.get("LLMPROXY_DEMO_STARTS")
    if not path:
        return 1
    with open(path, "a+", encoding="utf-8") as file:
        file.write(f"{datetime.now().timestamp():.6f} {os.getpid()} {model}\n")
        file.flush()
        file.seek(0)
        return sum(1 for _ in file)


@define
class Process:
    """The process around the server: bound early, listening late, and the two signals.

    :ivar over: fires when the process shall end with status 0.
    """

    _reactor: Any  # IReactorCore, IReactorTime and IReactorSocket at once
    _settings: Settings
    _resource: DemoResource
    _memory: Memory
    _journal: Journal
    _terms: int = field(init=False, default=0)
    _socket: socket.socket | None = field(init=False, default=None)
    _port: IListeningPort | None = field(init=False, default=None)
    over: Deferred[None] = field(init=False, factory=Deferred)

    def start(self) -> None:
        """Bind, so that a taken port fails fast, and become ready later.

        :raises OSError: the port cannot be had.
        """
        settings = self._settings
        self._socket = self._bind()
        where = f"http://{settings.host}:{self._socket.getsockname()[1]}"
        _say(f"vLLM API server version 0.32.0+demo, models: {', '.join(settings.models)}")
        if settings.unknown:
            _say(f"Ignored, not known to the demo server: {' '.join(settings.unknown)}")
        loading = Loading(
            self._reactor,
            self._memory,
            settings.models[0],
            settings.start_delay,
            say=_say_engine,
            draw=_draw,
            ready=lambda: self._ready(where),
            failed=lambda: os._exit(1),
        )
        self._reactor.callWhenRunning(self._take_signals)
        self._reactor.callLater(0, loading.start)
        for line in settings.log_lines:
            _say(line, prefix=False)
        if settings.exit_after is not None:
            self._reactor.callLater(settings.exit_after, self._exit, settings.exit_code)
        if settings.oom_after is not None:
            self._reactor.callLater(settings.oom_after, exhaust_memory)

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((self._settings.host, self._settings.port))
        return bound

    def _ready(self, where: str) -> None:
        assert self._socket is not None
        if self._settings.health_mode == "never":
            return
        _say(f"Starting vLLM server on {where}")
        _say(f"INFO:     Started server process [{os.getpid()}]", prefix=False)
        _say("INFO:     Waiting for application startup.", prefix=False)
        try:
            self._socket.listen(2048)  # uvicorn's backlog
        except OSError as wrong:  # another one that was bound early, too, listens by now
            _say(f"ERROR:    {wrong}", prefix=False)
            os._exit(1)
        factory = site(self._resource, self._settings.keep_alive)
        number = self._socket.getsockname()[1]
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), self._socket.family, factory)
        self._socket.close()
        self._socket = None
        _say("INFO:     Application startup complete.", prefix=False)
        self._journal.note("ready", port=number)

    def _exit(self, status: int) -> None:
        _say(f"ERROR:    exit status {status} was asked for", prefix=False)
        os._exit(status)

    # Signals come in the main thread between two bytecodes: what they do belongs to the reactor.

    def _take_signals(self) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            self._reactor.callFromThread(self._terminate)

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def _terminate(self) -> None:
        self._terms += 1
        self._journal.note("term", open=list(self._resource.open.values()))
        settings = self._settings
        if settings.ignore_term < 0 or self._terms <= settings.ignore_term:
            _say(f"TERM number {self._terms} is ignored")
            return
        if self._port is None:  # still starting: vLLM dies of the signal (status 143 as a shell tells it)
            os._exit(128 + signal.SIGTERM)
        _say("INFO:     Shutting down", prefix=False)
        self._port.stopListening()
        running = [*self._resource.running, *self._resource.work.held]
        if settings.term_in_flight == "hang" and running:
            _say("INFO:     Waiting for connections to close. (CTRL+C to force quit)", prefix=False)
            for generation in running:
                generation.silence()
            self._wait_for_clients()
            return
        for generation in running:
            generation.break_off()
        # The last bytes still have to leave.
        self._reactor.callLater(0.1 if running else 0, self._end)

    def _wait_for_clients(self) -> None:
        if self._resource.running or self._resource.work.held:
            self._reactor.callLater(0.05, self._wait_for_clients)
        else:
            self._end()

    def _end(self) -> None:
        if not self.over.called:
            self._journal.note("end", open=list(self._resource.open.values()))
            self.over.callback(None)


def _serve(reactor: Any, settings: Settings, leave: Callable[[int], object] = os._exit) -> Deferred[None]:
    starts = _count_start(settings.models[0])
    journal = Journal.of_environment(settings.models[0])
    journal.note("start")
    try:
        memory = _memory(settings)
    except (GpuError, Disagreement) as wrong:
        _say_engine(f"ERROR {wrong}")
        raise SystemExit(1) from None
    resource = DemoResource(settings, reactor, exit=leave, starts=starts, memory=memory, say=_say_engine)
    process = Process(reactor, settings, resource, memory, journal)
    try:
        process.start()
    except OSError as wrong:
        _say(f"ERROR:    {wrong} ({settings.host}:{settings.port})", prefix=False)
        raise SystemExit(1) from None
    return process.over


def main() -> None:
    """Run until a signal or a fault ends the process."""
    react(_serve, (parse(sys.argv[1:]),))


if __name__ == "__main__":
    main()
