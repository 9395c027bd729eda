"""Whether anybody listens at an address of this machine, found out at once and for little."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address

from llmproxy.runtimes.interface import Address

__all__ = ["Knock", "knock_at"]

LIMIT = 0.002
"""Seconds that one try may hold up everything else; the kernel rounds it up by some milliseconds.  Only a
listener whose queue is full takes that long, or a container that has gone; the reactor asks from then on."""

_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
"""ip(7): the port is chosen anew for each connection.  Python has known its number since 3.12."""

_NEAR = ("bridge", "network")
"""How a container on this machine is reached, beside by the loopback interface."""


class Knock:
    """Tries one port of this machine again and again, without the reactor.

    There a connection is refused within microseconds.  To wait for that costs a fraction of what the reactor
    needs to make an endpoint's attempt and to be told of its end; and on Linux a socket that was refused can
    be connected again, so that a try is one system call.

    :raises OSError: there are no more descriptors.
    """

    def __init__(self, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._where = (address.host, address.port)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        if address.host == "127.0.0.1":
            # From the same address it may meet itself, by taking the very port that it tries for its own.
            self._socket.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            self._socket.bind(("127.0.0.2", 0))
        # socket(7): for a connect, too.  A timeout of Python's own would be two more calls each time.
        limit = struct.pack("ll", 0, int(LIMIT * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def is_refused(self) -> bool:
        """Try: True when nobody listens there; False when somebody does, or when it takes more to know."""
        # Whatever else it is, who really connects finds out.
        return self._socket.connect_ex(self._where) == errno.ECONNREFUSED

    def close(self) -> None:
        """Try no more."""
        self._socket.close()


def knock_at(address: Address) -> Knock | None:
    """What to try this address with; None for one that may be on another machine."""
    try:
        near = ip_address(address.host).is_loopback or address.via in _NEAR
        return Knock(address) if near else None
    except (ValueError, OSError):
        return None  # a name, or no more descriptors
