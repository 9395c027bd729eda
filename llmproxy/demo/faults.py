"""Faults on request: what the demo server is asked to do wrong, by ``X-Demo-Fault`` or ``"demo_fault"``.

======================  ==================================================================================
``slow-head=S``         the head comes S seconds late
``hang``                nothing is ever answered
``die-before-head``     the connection is reset instead of an answer
``die-mid-stream[=N]``  it is reset after N tokens (half of them)
``close-mid-body[=N]``  it is closed after N tokens or half of the body, with no end of message
``stall[=N]``           nothing more comes after N tokens (half of them)
``error-event[=N]``     after N tokens vLLM's error event, ``[DONE]`` and a clean end; 500 when not streaming
``500`` (400 to 599)    that status with vLLM's error object
``exit=CODE``           the process exits, at once
``exit-mid-stream=N``   the process exits with status 1 after N tokens
``oom``                 memory is taken until the kernel ends the process
======================  ==================================================================================

Sleep mode has faults of its own.  A proxy does not send headers of ours with its own requests, so these are
armed beforehand: by ``--sleep-fault``, or at any time with ``POST /demo/sleep-faults``, whose body is such a
list (an empty one disarms all).  ``=N`` arms the next N times; without it, it is every time.

======================  ==================================================================================
``sleep-500[=N]``       ``/sleep`` is answered 500; running requests have been cut, the server stays awake
``sleep-hang[=N]``      ``/sleep`` is never answered, nor is ``/is_sleeping`` from then on; no memory is freed
``sleep-leak[=N]``      the server sleeps and answers 200, but no memory is freed
``wake-500[=N]``        ``/wake_up`` is answered 500; the server stays asleep
``wake-hang[=N]``       ``/wake_up`` is never answered, with the memory taken back
======================  ==================================================================================

Several are separated by commas; one that is not known is refused with 400, so that no test passes by
a typing error.
"""

from __future__ import annotations

from attrs import define, field, frozen

from llmproxy.demo.shapes import BadRequest

__all__ = ["SLEEP_FAULTS", "Armed", "Faults", "parse"]

SLEEP_FAULTS = ("sleep-500", "sleep-hang", "sleep-leak", "wake-500", "wake-hang")

_MID_STREAM = ("die-mid-stream", "close-mid-body", "stall", "error-event", "exit-mid-stream")
_AT_ONCE = ("hang", "die-before-head", "oom")


@frozen
class Faults:
    """What to do wrong.

    :ivar head_delay: seconds before anything else happens.
    :ivar at_once: ``hang``, ``die-before-head`` or ``oom``.
    :ivar status: HTTP status of a refusal.
    :ivar exit_code: exit status of the process.
    :ivar mid_stream: one of the faults that come after some tokens.
    :ivar after: number of tokens before it; ``None`` means half of them.
    """

    head_delay: float = 0.0
    at_once: str | None = None
    status: int | None = None
    exit_code: int | None = None
    mid_stream: str | None = None
    after: int | None = None


def parse(text: str) -> Faults:
    """Read a comma-separated list of faults.

    :raises BadRequest: one is not known, or its value is no number.
    """
    found: dict[str, float | int | str | None] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        try:
            if name == "slow-head":
                found["head_delay"] = float(value)
            elif name == "exit":
                found["exit_code"] = int(value)
            elif name in _AT_ONCE and not value:
                found["at_once"] = name
            elif name in _MID_STREAM:
                found["mid_stream"] = name
                found["after"] = int(value) if value else None
            elif name.isascii() and name.isdigit() and 400 <= int(name) <= 599:
                found["status"] = int(name)
            else:
                raise ValueError(name)
        except ValueError:
            raise BadRequest(400, "BadRequestError", f"Unknown demo fault {item!r}.", "demo_fault") from None
    # Each value is of its field's type, which a mapping of all of them cannot say.
    return Faults(**found)  # type: ignore[arg-type]


@define
class Armed:
    """The faults of sleep mode that are still to come."""

    _times: dict[str, int | None] = field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Armed:
        """Read a comma-separated list of them.

        :raises BadRequest: one is not known, or its number is none.
        """
        times: dict[str, int | None] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = item.partition("=")
            if name not in SLEEP_FAULTS or (equals and not (value.isascii() and value.isdigit())):
                message = f"Unknown fault of sleep mode {item!r}."
                raise BadRequest(400, "BadRequestError", message, "sleep_faults")
            times[name] = int(value) if equals else None
        return cls(times)

    def take(self, name: str) -> bool:
        """Whether this one comes now; a number of times counts down."""
        left = self._times.get(name, 0)
        if left:
            self._times[name] = left - 1
        return left is None or left > 0
