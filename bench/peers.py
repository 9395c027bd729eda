"""The peers: what is measured side by side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from bench import node, processes
from bench.cpu import tree
from bench.processes import PROXY_CORES, bare_environment, free_port, python, running, wait_for
from bench.traffic import KEY, MODEL

__all__ = [
    "NAMES",
    "AUTHORIZATION",
    "Peer",
    "Tools",
    "backend",
    "llmproxy",
    "nginx_path",
    "start",
    "started_llmproxy",
]

NAMES = ("direct", "nginx", "node", "treq", "llmproxy")
"""In the order of the table."""

AUTHORIZATION = f"Authorization: Bearer {KEY}"

ROUTE = "bench"
"""The route of llmproxy that leads to the canned backend."""

BACKEND_KEY = "sk-backend-fedcba9876543210"
"""What llmproxy puts in the place of the client's key."""


@frozen
class Peer:
    """Something that answers for the backend.

    :ivar prefix: what stands before the backend's own paths.
    :ivar pid: the process that was started; None: it is the backend itself, whose time is not told.
    """

    name: str
    port: int
    prefix: str = ""
    pid: int | None = None

    @property
    def pids(self) -> list[int]:
        """The processes whose time and memory count."""
        return [] if self.pid is None else tree(self.pid)


@frozen
class Tools:
    """Where what is no part of this project is; None: it is not here.

    :ivar reactor: twistd's, for llmproxy; None: its own choice.
    """

    nginx: str | None
    node: str | None
    reactor: str | None = None


def nginx_path() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def backend(work: Path) -> Iterator[int]:
    """The canned backend; its port."""
    log = work / "backend.log"
    with running(
        python("bench.backend"),
        log,
        cores=processes.others_cores(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the backend did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield int(line)


@contextmanager
def _direct(port: int) -> Iterator[Peer]:
    yield Peer("direct", port)


_NGINX = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid {work}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 1024;
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

WORKER_FILES = 8192


@contextmanager
def _nginx(executable: str, backend_port: int, work: Path) -> Iterator[Peer]:
    port = free_port()
    config, log = work / "nginx.conf", work / "nginx.log"
    # Otherwise root's worker would be nobody, who may not write large bodies into a private folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        _NGINX.format(work=work, backend=backend_port, port=port, files=WORKER_FILES, user=user)
    )
    command = [executable, "-e", "stderr", "-p", str(work), "-c", str(config)]
    with running(command, log, cores=PROXY_CORES) as process:
        wait_for("nginx", port, "/health", process, log)
        yield Peer("nginx", port, pid=process.pid)


@contextmanager
def _node(executable: str, backend_port: int, work: Path) -> Iterator[Peer]:
    port, log = free_port(), work / "node.log"
    script = Path(__file__).with_name("node_proxy.js")
    command = [executable, "--no-deprecation", str(script), str(port), str(backend_port)]
    environment = bare_environment(NODE_PATH=node.module_path())
    with running(command, log, environment=environment, cores=PROXY_CORES) as process:
        wait_for("Node", port, "/health", process, log)
        yield Peer("node", port, pid=process.pid)


@contextmanager
def _treq(backend_port: int, work: Path) -> Iterator[Peer]:
    port, log = free_port(), work / "treq.log"
    command = [*python("bench.plain_proxy"), str(port), str(backend_port)]
    with running(command, log, environment=bare_environment(), cores=PROXY_CORES) as process:
        wait_for("the plain Twisted proxy", port, "/health", process, log)
        yield Peer("treq", port, pid=process.pid)


def far_backend(port: int) -> dict[str, Any]:
    """The canned backend as one of llmproxy's."""
    return {"runtime": "url", "url": f"http://127.0.0.1:{port}", "models": [MODEL]}


@contextmanager
def llmproxy(
    backends: Mapping[str, Mapping[str, Any]], work: Path, *, reactor: str | None, pinned: bool = True
) -> Iterator[Peer]:
    """llmproxy as ``twistd llmproxy``, with a key, the access log (to a file), metrics and the rest.

    :param backends: as in ``llmproxy.yaml``.
    :param pinned: to the proxies' core; not where it starts servers, which would share that core.
    """
    with started_llmproxy(backends, work, reactor=reactor, pinned=pinned) as (peer, process, log):
        wait_for("llmproxy", peer.port, "/readyz", process, log)
        for name in backends:
            if backends[name].get("runtime") == "url":
                wait_for("llmproxy", peer.port, f"/{name}/health", process, log, (AUTHORIZATION,))
        yield peer


@contextmanager
def started_llmproxy(
    backends: Mapping[str, Mapping[str, Any]], work: Path, *, reactor: str | None, pinned: bool
) -> Iterator[tuple[Peer, subprocess.Popen[bytes], Path]]:
    """The same, just started: it and its log."""
    port = free_port()
    work.mkdir(exist_ok=True, parents=True)
    # JSON is YAML.
    config, log = work / "llmproxy.yaml", work / "llmproxy.log"
    settings = {
        "docker": {"host": f"unix://{work}/no-docker.sock"},
        "state_dir": str(work / "state"),
        "stop_backends_on_exit": True,
        "drain": 1,
        "limits": {"max_connections": 20_000},
        "backends": backends,
        "keys": [{"name": "bench", "secret_env": "BENCH_KEY", "admin": True}],
    }
    config.write_text(json.dumps(settings))
    command = [
        *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
        *([] if reactor is None else [f"--reactor={reactor}"]),
        *("--nodaemon", f"--pidfile={work}/twistd.pid", "llmproxy"),
        *("--config", str(config), "--listen", f"tcp:{port}:interface=127.0.0.1:backlog=4096"),
    ]
    environment = bare_environment(BENCH_KEY=KEY, VLLM_API_KEY=BACKEND_KEY)
    cores = PROXY_CORES if pinned else None
    with running(command, log, environment=environment, cores=cores) as process:
        yield Peer("llmproxy", port, f"/{ROUTE}", process.pid), process, log


def start(name: str, tools: Tools, backend_port: int, work: Path) -> AbstractContextManager[Peer] | None:
    """The peer of this name; None where what it needs is not here."""
    work.mkdir(exist_ok=True, parents=True)
    if name == "nginx":
        return None if tools.nginx is None else _nginx(tools.nginx, backend_port, work)
    if name == "node":
        return None if tools.node is None else _node(tools.node, backend_port, work)
    if name == "treq":
        return _treq(backend_port, work)
    if name == "llmproxy":
        return llmproxy({ROUTE: far_backend(backend_port)}, work / "llmproxy", reactor=tools.reactor)
    return _direct(backend_port)
