"""Looks at the files that hold keys, and at who may use Docker's socket.  Contents are not looked at."""

from __future__ import annotations

import os
import stat
from urllib.parse import urlsplit

from llmproxy.config.loader import PLACES
from llmproxy.doctor.facts import KeptFile, SecurityFacts
from llmproxy.doctor.gather.commands import Runner, run

__all__ = ["gather_security"]

GIT_TIMEOUT = 5.0


def gather_security(
    file: str | None, state_dir: str, docker_host: str, runner: Runner = run
) -> SecurityFacts:
    """What there is here.

    :param file: the configuration file that was named.
    :param docker_host: in ``DOCKER_HOST`` form.
    """
    names = [".env", *((file,) if file else PLACES)]
    socket = urlsplit(docker_host).path if docker_host.startswith("unix:") else None
    found = (_look(name, runner) for name in names)
    return SecurityFacts(
        tuple(each for each in found if each is not None),
        _mode(state_dir) if state_dir else None,
        None if socket is None else _mode(socket),
    )


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _look(name: str, runner: Runner) -> KeptFile | None:
    try:
        about = os.stat(name)
    except OSError:
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return KeptFile(name, stat.S_IMODE(about.st_mode), about.st_mtime, _tracked(name, runner))


def _tracked(name: str, runner: Runner) -> bool | None:
    folder = os.path.dirname(os.path.abspath(name))
    ran = runner(
        ["git", "-C", folder, "ls-files", "--error-unmatch", "--", os.path.basename(name)], GIT_TIMEOUT
    )
    if ran.status == 0:
        return True
    # It says 1 where it knows no such file; anything else means that it cannot tell.
    return False if ran.status == 1 else None
