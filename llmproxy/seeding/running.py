"""Runs a download: in a container of the server's image, or by the server's own Python.  Blocks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib.resources import files
from uuid import uuid4

from docker.api.client import APIClient
from docker.errors import APIError, NotFound
from docker.utils.socket import STDERR, frames_iter

from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.docker_create import start_hint
from llmproxy.runtimes.interface import StartRefused
from llmproxy.seeding.hearing import Hearing
from llmproxy.seeding.order import Order
from llmproxy.seeding.places import Place, container_body, shebang

__all__ = ["find_python", "run_in_container", "run_with_python"]

_GONE_WITHIN = 15.0
"""Seconds that the engine gets to remove a container that was killed."""
_GRACE = 5.0


def _script() -> str:
    return files("llmproxy.seeding").joinpath("fetch.py").read_text(encoding="utf-8")


def _argument(order: Order, *, volume: bool) -> str:
    wanted = [one.view() for one in order.wanted]
    return json.dumps({"wanted": wanted, "cache": order.cache, "volume": volume})


# -- in a container -----------------------------------------------------------------------------------


def run_in_container(
    client: APIClient, place: Place, order: Order, environment: Mapping[str, str], hearing: Hearing
) -> None:
    """Download, and leave no container behind, however this ends.

    :param environment: what is added to the place's own.
    :raises StartRefused: the engine does not run it.
    """
    name = f"llmproxy-seed-{uuid4().hex[:12]}"
    body = container_body(place, _script(), _argument(order, volume=True), environment)
    made = None
    try:
        made = str(client.create_container_from_config(body, name)["Id"])
        _follow(client, made, hearing)
    except APIError as error:
        said = describe(error)
        raise StartRefused(
            f"the image {place.image} cannot be run: {said}", start_hint(said, error)
        ) from error
    finally:
        # It may have been made although its answer was not waited for.
        _remove(client, made or name)


def _follow(client: APIClient, container: str, hearing: Hearing) -> None:
    stream = client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    connection = getattr(stream, "_sock", stream)
    try:
        client.start(container)
        for kind, data in frames_iter(stream, tty=False):
            (hearing.err if kind == STDERR else hearing.out)(data)
    finally:
        # Its input ends here, and so does it.
        with contextlib.suppress(OSError):
            connection.close()
        with contextlib.suppress(OSError):
            stream.close()


def _remove(client: APIClient, container: str) -> None:
    """Have it gone, unless it is; the engine may be about to remove it by itself."""
    until = time.monotonic() + _GONE_WITHIN
    while time.monotonic() < until:
        try:
            client.remove_container(container, force=True, v=True)
        except NotFound:
            return
        except APIError:
            # "removal is already in progress"
            time.sleep(0.1)


# -- by a Python ------------------------------------------------------------------------------------------


def find_python(command: tuple[str, ...], path: str, folder: str | None) -> str:
    """The Python that a command runs in: itself, or the one that its script names.

    :param path: ``PATH``, as the server will have it.
    :param folder: where it will be started.
    :raises StartRefused: there is none.
    """
    name = command[0]
    if os.path.dirname(name):
        found: str | None = os.path.join(os.path.abspath(folder or "."), name)
    else:
        found = shutil.which(name, path=path)
    if found is None or not os.path.isfile(found):
        raise StartRefused(f"there is no command {name!r}", "Install it, or give its whole path.")
    if os.path.basename(found).startswith("python"):
        return found
    with open(found, "rb") as file:
        named = shebang(file.read(1024))
    python = named if named is None or os.path.dirname(named) else shutil.which(named, path=path)
    if python is None:
        raise StartRefused(
            f"{found} is no Python script, so that it is not known what it downloads",
            "Start it once: what it needs it gets then.",
        )
    return python


def run_with_python(
    python: str, order: Order, environment: Mapping[str, str], folder: str | None, hearing: Hearing
) -> int:
    """Download, and leave no process behind.

    :return: the exit status.
    :raises StartRefused: it cannot be run.
    """
    command = [python, "-c", _script(), _argument(order, volume=False)]
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                cwd=folder,
                # A Ctrl-C is ours; its input tells it.
                start_new_session=True,
            )
        except OSError as error:
            raise StartRefused(f"{python} cannot be run: {error.strerror}") from error
        assert process.stdout is not None
        try:
            for line in process.stdout:
                hearing.out(line)
            status = process.wait()
        finally:
            _end(process)
            errors.seek(0)
            hearing.err(errors.read())
    return status


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
