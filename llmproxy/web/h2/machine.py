"""The ``h2`` library's side of a connection, as we want it."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from llmproxy.config.model import Limits

__all__ = ["FRAME", "MOST_STREAMS", "WINDOW", "largest_head", "new_machine"]

MOST_STREAMS = 100
"""Requests at once on one connection: what RFC 9113 section 6.5.2 would have at least, as browsers expect."""

WINDOW = 1024 * 1024
"""Bytes of bodies that may be on their way.  They are taken as they come: what bounds them is ``max_body``,
and the room for all of them."""

FRAME = 16 * 1024
"""Bytes of the largest frame that we take (RFC 9113 section 6.5.2)."""

_SLACK = 16 * 1024
"""Bytes of a head beyond what is taken that are still read, so that the client is told of it."""


def largest_head(limits: Limits) -> int:
    """Bytes of the largest list of header fields that is read, as RFC 9113 section 6.5.2 counts them."""
    return limits.max_head + 32 * limits.max_fields + _SLACK


class _Machine(H2Connection):
    """The library's, but for what it makes of a client that leaves."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # It would take the connection for closed, and drop what is still to be sent.  But a client that opens
        # no more streams wants the answers to those that it has opened (RFC 9113 section 6.8).
        told = ConnectionTerminated()
        told.last_stream_id = frame.last_stream_id
        return [], [told]


def new_machine(limits: Limits) -> H2Connection:
    """One for a new connection."""
    machine = _Machine(
        H2Configuration(
            client_side=False,
            header_encoding=None,
            # See llmproxy.web.h2.heads.
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    largest = largest_head(limits)
    machine.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: largest,
            SettingCodes.MAX_FRAME_SIZE: FRAME,
        },
    )
    machine.decoder.max_header_list_size = largest
    return machine
