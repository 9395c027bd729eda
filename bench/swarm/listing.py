"""``python -m bench.swarm.listing``: what one look at all services and tasks of a Swarm costs the proxy.

A server in another process answers as a manager does, with services and tasks as large as real ones; what is
measured is the time of the thread that asks and reads, and that of the reactor which tells all backends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from bench.figures import percentile
from llmproxy.runtimes import swarm_calls
from llmproxy.runtimes.swarm_state import Picture, read_task

__all__ = ["main", "measure", "service", "task"]

RUNNING = 0.4
"""Tasks for each service: so many ran in the simulation of 10,000 models on 1,000 nodes."""


def service(number: int) -> dict[str, Any]:
    """One of ``GET /services``."""
    name = f"llmproxy-m{number:05d}"
    return {
        "ID": f"{number:025x}",
        "Version": {"Index": 1000 + number},
        "CreatedAt": "2026-01-01T00:00:00.000000000Z",
        "UpdatedAt": "2026-01-01T00:00:00.000000000Z",
        "Spec": {
            "Name": name,
            "Labels": {
                "llmproxy.managed": "1",
                "llmproxy.route": name,
                "llmproxy.used": "1780000000 ab12cd34",
            },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "registry.example/vllm/vllm-openai:v0.32.0@sha256:" + "0" * 64,
                    "Labels": {"llmproxy.route": name},
                    "Args": [
                        "--model",
                        f"org/{name}",
                        "--gpu-memory-utilization",
                        "0.9",
                        "--max-model-len",
                        "32768",
                    ],
                    "Env": [f"VARIABLE_{each}=a value of some length" for each in range(8)],
                    "Mounts": [
                        {"Type": "bind", "Source": "/srv/llm/hub", "Target": "/root/.cache/huggingface"}
                    ],
                    "StopGracePeriod": 30_000_000_000,
                    "Isolation": "default",
                },
                "Resources": {
                    "Limits": {},
                    "Reservations": {
                        "GenericResources": [{"DiscreteResourceSpec": {"Kind": "vram-gib", "Value": 24}}]
                    },
                },
                "RestartPolicy": {"Condition": "none", "MaxAttempts": 0},
                "Placement": {"Constraints": ["node.labels.gpu==a100"]},
                "Networks": [{"Target": "n" * 25}],
                "ForceUpdate": 0,
                "Runtime": "container",
            },
            "Mode": {"Replicated": {"Replicas": 1}},
            "EndpointSpec": {"Mode": "dnsrr"},
        },
        "PreviousSpec": {"Name": name, "Labels": {}, "Mode": {"Replicated": {"Replicas": 0}}},
        "Endpoint": {"Spec": {"Mode": "dnsrr"}},
    }


def task(number: int) -> dict[str, Any]:
    """One of ``GET /tasks``."""
    spec = service(number)
    network = {
        "ID": "n" * 25,
        "Version": {"Index": 10},
        "CreatedAt": "2026-01-01T00:00:00.000000000Z",
        "UpdatedAt": "2026-01-01T00:00:00.000000000Z",
        "Spec": {"Name": "llm", "Labels": {}, "DriverConfiguration": {"Name": "overlay"}, "Attachable": True},
        "DriverState": {
            "Name": "overlay",
            "Options": {"com.docker.network.driver.overlay.vxlanid_list": "4097"},
        },
        "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": [{"Subnet": "10.0.0.0/16"}]},
    }
    return {
        "ID": f"{number:025x}",
        "Version": {"Index": 5000 + number},
        "CreatedAt": "2026-01-01T00:00:00.000000000Z",
        "UpdatedAt": "2026-01-01T00:00:00.000000000Z",
        "Labels": {},
        "Spec": spec["Spec"]["TaskTemplate"],
        "ServiceID": f"{number:025x}",
        "Slot": 1,
        "NodeID": f"{number % 1000:025x}",
        "Status": {
            "Timestamp": "2026-01-01T00:00:00.000000000Z",
            "State": "running",
            "Message": "started",
            "ContainerStatus": {"ContainerID": "c" * 64, "PID": 4242, "ExitCode": 0},
            "PortStatus": {},
        },
        "DesiredState": "running",
        "NetworksAttachments": [
            {"Network": network, "Addresses": [f"10.0.{number >> 8 & 255}.{number & 255}/16"]}
        ],
        "GenericResources": [{"DiscreteResourceSpec": {"Kind": "vram-gib", "Value": 24}}],
    }


def _serve(number: int) -> None:
    answers = {
        "services": json.dumps([service(each) for each in range(number)]).encode(),
        "tasks": json.dumps([task(each) for each in range(int(number * RUNNING))]).encode(),
    }

    class Manager(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = answers["tasks" if "/tasks" in self.path.partition("?")[0] else "services"]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Manager)
    print(server.server_port, sum(map(len, answers.values())), flush=True)
    server.serve_forever()


def measure(number: int, times: int) -> dict[str, float]:
    """Look so often at so many services: megabytes, and milliseconds of processor time at the median."""
    command = [sys.executable, "-m", "bench.swarm.listing", "--serve", str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port, size = map(int, server.stdout.readline().split())
            session = requests.Session()
            client: Any = SimpleNamespace(
                base_url=f"http://127.0.0.1:{port}", api_version="1.41", timeout=60, get=session.get
            )
            names = {f"llmproxy-m{each:05d}" for each in range(number)}
            spent: dict[str, list[float]] = {"services": [], "tasks": [], "pictures": []}
            for _ in range(times):
                began = time.thread_time()
                services = swarm_calls.list_services(client, names)
                spent["services"].append(time.thread_time() - began)
                began = time.thread_time()
                # By their ids, as the proxy asks, they would not fit in a request line of Python's server.
                tasks = [read_task(each) for each in swarm_calls.get(client, "tasks")]
                spent["tasks"].append(time.thread_time() - began)
                began = time.thread_time()
                by_service = {each.service: (each,) for each in tasks}
                for each in services.values():
                    Picture(each, by_service.get(each.id, ()), {})
                spent["pictures"].append(time.thread_time() - began)
        finally:
            server.kill()
    found = {name: 1000 * percentile(values, 0.5) for name, values in spent.items()}
    return {"megabytes": size / 1e6, **found}


def main(arguments: Sequence[str]) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.swarm.listing", description=__doc__)
    parser.add_argument("--services", type=int, nargs="+", default=[100, 1000, 10_000], metavar="N")
    parser.add_argument("--times", type=int, default=5, metavar="N")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        _serve(options.serve)
        return 0
    table = Table(title="one look at all services and tasks, ms of processor time")
    for name in ("services", "MB", "to list services", "to list tasks", "to tell"):
        table.add_column(name, justify="right")
    for number in options.services:
        found = measure(number, options.times)
        told = (f"{found[key]:.1f}" for key in ("megabytes", "services", "tasks", "pictures"))
        table.add_row(f"{number:,}", *told)
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
