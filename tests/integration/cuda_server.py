"""A server that takes real GPU memory, and minds its neighbours as vLLM does.

``python cuda_server.py PORT NAME SHARE FAULTS``: it takes SHARE of GPU 0, by the driver's library alone.  As
vLLM it wants that much to be free when it starts, and nothing of the others' memory to change while it loads;
otherwise it writes a line to FAULTS and ends.  ``/sleep`` gives all of it back but the CUDA context, and
``/wake_up`` takes it again.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

LOADING = 0.8
"""Seconds between taking half of the memory and looking at what the others did meanwhile."""

SLACK = 256 << 20
"""Bytes that may come and go beside what servers take: contexts, page tables."""


class Gpu:
    """GPU 0, by the driver's library."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._lock = Lock()
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuCtxCreate_v2", ctypes.byref(self._context), 0, device)
        self._taken: list[tuple[ctypes.c_uint64, int]] = []

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise MemoryError(f"CUDA out of memory. ({name} gave {status})")

    def look(self) -> tuple[int, int]:
        """Bytes that are free, and of the whole."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def take(self, amount: int) -> None:
        """Have so many bytes more."""
        pointer = ctypes.c_uint64()
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(amount))
            self._call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(1), ctypes.c_size_t(amount))
            self._call("cuCtxSynchronize")
            self._taken.append((pointer, amount))

    def give_back(self) -> None:
        """All that was taken."""
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            while self._taken:
                self._call("cuMemFree_v2", self._taken.pop()[0])

    @property
    def taken(self) -> int:
        """Bytes."""
        return sum(amount for _, amount in self._taken)


class Server(ThreadingHTTPServer):
    """Answers for one model."""

    daemon_threads = True
    gpu: Gpu
    name: str
    share: int
    asleep = False


class Handler(BaseHTTPRequestHandler):
    """As much of vLLM as a proxy asks for."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Health, and whether it sleeps."""
        if self.path == "/is_sleeping":
            self._answer({"is_sleeping": self.server.asleep})
        else:
            self._answer({})

    def do_POST(self) -> None:
        """Sleep, wake, or a completion that takes half a second."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/sleep":
            self.server.gpu.give_back()
            self.server.asleep = True
            self._answer({"status": "sleeping"})
        elif path == "/wake_up":
            try:
                self.server.gpu.take(self.server.share)
            except MemoryError as cause:
                fault(self.server.name, str(cause))
                self._answer({}, 500)
                return
            self.server.asleep = False
            self._answer({"status": "awake"})
        else:
            time.sleep(0.5)
            self._answer({"model": self.server.name, "asleep": self.server.asleep})

    def _answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def fault(name: str, what: str) -> None:
    """Tell of a wrong schedule."""
    print(what, flush=True)
    with open(sys.argv[4], "a", encoding="utf-8") as file:
        file.write(f"{time.time():.3f} {name}: {what}\n")


def main() -> None:
    """Load, and serve until TERM."""
    port, name, part = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gpu = Gpu()
    free, total = gpu.look()
    share = int(total * part) - SLACK
    if free < share:
        fault(
            name,
            f"Free memory on device ({free / 2**30:.2f}/{total / 2**30:.2f} GiB) on startup is less than",
        )
        sys.exit(1)
    try:
        gpu.take(share // 2)
        time.sleep(LOADING)
        others = free - gpu.look()[0] - gpu.taken
        if abs(others) > SLACK:
            fault(name, f"Error in memory profiling. Others changed by {others / 2**30:.2f} GiB")
            sys.exit(1)
        gpu.take(share - share // 2)
    except MemoryError as cause:
        fault(name, str(cause))
        sys.exit(1)
    server = Server(("127.0.0.1", port), Handler)
    server.gpu, server.name, server.share = gpu, name, share
    server.serve_forever()


if __name__ == "__main__":
    main()
