"""From a start that came to nothing to what a client is told.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.python.failure import Failure

from llmproxy.backend.lifecycle import StartFailure
from llmproxy.engines.diagnosis import diagnose
from llmproxy.errors import (
    Refusal,
    backend_start_failed,
    backend_start_timeout,
    not_running,
    runtime_unavailable,
)
from llmproxy.runtimes.interface import Exit, RuntimeUnavailable, StartRefused

__all__ = [
    "LOG_LINES",
    "describe_exit",
    "exit_failure",
    "launch_failure",
    "overdue_failure",
    "refusal_for",
]

LOG_LINES = 20
"""Lines of the log that a failed start tells: vLLM's cause stands a dozen lines above its last words."""


def describe_exit(exit: Exit) -> str:
    """How a run ended, in words."""
    code = "an unknown exit status" if exit.code is None else f"exit status {exit.code}"
    return f"{code}, killed for lack of memory" if exit.oom else code


def _last_lines(log: str) -> str:
    return "\n".join(line.rstrip() for line in log.splitlines()[-LOG_LINES:])


def launch_failure(failure: Failure) -> StartFailure:
    """The runtime did not start it.

    :param failure: what it told instead.
    """
    cause = failure.value
    if isinstance(cause, RuntimeUnavailable):
        return StartFailure("unavailable", str(cause))
    if isinstance(cause, StartRefused):
        return StartFailure("failed", str(cause), hint=cause.hint)
    return StartFailure("failed", f"The start failed inside llmproxy ({type(cause).__name__}).")


def exit_failure(exit: Exit, log: str, neighbours: Sequence[str] = ()) -> StartFailure:
    """It ended while it started.

    :param log: the end of its output, secrets removed.
    :param neighbours: what else runs on its GPUs.
    """
    cause, hint = diagnose(exit.code, exit.oom, log, neighbours)
    told = f"The backend ended while it started ({describe_exit(exit)})"
    return StartFailure(
        "failed",
        f"{told}: {cause}" if cause else f"{told}.",
        hint=hint or "Look at its log: llmproxy logs <backend>.",
        exit_code=exit.code,
        oom=exit.oom,
        log_tail=_last_lines(log),
    )


def overdue_failure(log: str, phase: str | None = None) -> StartFailure:
    """Its health did not come in time.

    :param phase: how far it was.
    """
    tail = _last_lines(log)
    last = tail.splitlines()[-1] if tail else ""
    told = f"Its log ends with: {last}" if last else "It has written no log."
    if phase not in (None, "starting"):
        told = f"It was {phase} then. {told}"
    return StartFailure("timeout", told, log_tail=tail)


def refusal_for(failure: StartFailure, *, start_timeout: float, retry_after: float) -> Refusal:
    """The answer to whoever waited for that start, and to whoever asks within the cool-down.

    :param retry_after: seconds of the cool-down that are left.
    """
    tail = f"\nThe last lines of its log:\n{failure.log_tail}" if failure.log_tail else ""
    if failure.kind == "timeout":
        return backend_start_timeout(start_timeout, failure.message + tail, retry_after=retry_after)
    if failure.kind == "unavailable":
        return runtime_unavailable(failure.message)
    if failure.kind == "stopped":
        refusal = not_running("stopping")
        return Refusal(refusal.status, refusal.code, failure.message, hint=refusal.hint, retry_after=1)
    return backend_start_failed(failure.message + tail, hint=failure.hint, retry_after=retry_after)
