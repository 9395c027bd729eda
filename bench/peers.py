"""The peers: started, waited for, and ended by their process ids."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from bench.cpu import tree

__all__ = ["Peer", "backend", "direct", "free_port", "get", "llmproxy", "nginx", "nginx_path", "running"]

ROOT = Path(__file__).resolve().parent.parent

START_LIMIT = 20.0
"""Seconds that a peer may take until it answers."""

END_LIMIT = 10.0
"""Seconds from TERM to KILL."""


@frozen
class Peer:
    """Something that answers for the backend.

    :ivar prefix: what stands before the backend's own paths.
    :ivar headers: sent with each request.
    :ivar pid: the process that was started; None: it is the backend itself, whose time is not told.
    """

    name: str
    port: int
    prefix: str = ""
    headers: tuple[str, ...] = ()
    pid: int | None = None

    @property
    def pids(self) -> list[int]:
        """The processes whose time and memory count."""
        return [] if self.pid is None else tree(self.pid)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block: TERM, and KILL when it does not end.

    :param log: where its output goes.
    """
    with log.open("wb") as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, **options}
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, env=environment, **options)
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def get(
    port: int, path: str, headers: Sequence[str] = (), *, method: str = "GET", timeout: float = 5.0
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body.

    :raises OSError: no connection.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, headers=dict(line.split(": ", 1) for line in headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait(peer: Peer, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    status = 0
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            status = get(peer.port, path, peer.headers)[0]
            if status == 200:
                return
        time.sleep(0.05)
    told = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{peer.name} did not start (last status {status}); its log ends with:\n{told}")


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _environment(**more: str) -> dict[str, str]:
    # Nothing of the user's own settings (MAP__..., VLLM_API_KEY) may change what is measured.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return {**kept, **more}


@contextmanager
def backend(work: Path) -> Iterator[int]:
    """The canned backend; its port."""
    log = work / "backend.log"
    with running(_python("bench.backend"), log, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the backend did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield int(line)


@contextmanager
def direct(port: int) -> Iterator[Peer]:
    """No proxy at all: the limit."""
    yield Peer("direct", port)


def nginx_path() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


_NGINX = """\
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        keepalive_requests 1000000000;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(executable: str, backend_port: int, work: Path) -> Iterator[Peer]:
    """nginx: one worker, connections to the backend kept, nothing buffered, no access log."""
    port = free_port()
    config, log = work / "nginx.conf", work / "nginx.log"
    config.write_text(_NGINX.format(work=work, backend=backend_port, port=port))
    with running([executable, "-e", "stderr", "-p", str(work), "-c", str(config)], log) as process:
        peer = Peer("nginx", port, pid=process.pid)
        _wait(peer, "/health", process, log)
        yield peer


@contextmanager
def llmproxy(backends: Mapping[str, Mapping[str, Any]], work: Path, *, route: str | None) -> Iterator[Peer]:
    """llmproxy as ``twistd llmproxy``, with a key and the access log on.

    :param backends: as in ``llmproxy.yaml``.
    :param route: the one that is measured, and waited for; None: none of them.
    """
    port, key = free_port(), secrets.token_hex(24)
    work.mkdir(exist_ok=True)
    # JSON is YAML.
    config, log = work / "llmproxy.yaml", work / "llmproxy.log"
    settings = {
        "docker": {"host": f"unix://{work}/no-docker.sock"},
        "state_dir": str(work / "state"),
        "stop_backends_on_exit": True,
        "drain": 1,
        "backends": backends,
        "keys": [{"name": "bench", "secret_env": "BENCH_KEY", "admin": True}],
    }
    config.write_text(json.dumps(settings))
    command = [
        *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
        *("--nodaemon", f"--pidfile={work}/twistd.pid", "llmproxy"),
        *("--config", str(config), "--listen", f"tcp:{port}:interface=127.0.0.1:backlog=4096"),
    ]
    with running(command, log, environment=_environment(BENCH_KEY=key)) as process:
        peer = Peer(
            "llmproxy",
            port,
            prefix="" if route is None else f"/{route}",
            headers=(f"Authorization: Bearer {key}",),
            pid=process.pid,
        )
        _wait(peer, "/readyz" if route is None else f"/{route}/json", process, log)
        yield peer
