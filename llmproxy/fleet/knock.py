"""Whether anybody listens at an address of this machine, found out at once and for little."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from llmproxy.runtimes.interface import Address

__all__ = ["is_refused"]


LIMIT = 0.002
"""Seconds that a knock may hold up everything else.  Only a listener whose queue is full takes that long, and
the reactor is left to ask it from then on."""


def is_refused(address: Address) -> bool:
    """Try the port without the reactor.

    On the loopback interface a connection is refused within microseconds, so that waiting for that costs a
    fraction of what the reactor needs to make an endpoint's attempt and to be told of its end.

    :return: True when nobody listens there; False when somebody does, or when it takes more to know.
    """
    try:
        ip = ip_address(address.host)
    except ValueError:
        return False
    if not ip.is_loopback:
        return False
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as knocking:
            knocking.settimeout(LIMIT)
            return knocking.connect_ex((address.host, address.port)) == errno.ECONNREFUSED
    except OSError:
        return False  # no more descriptors, for one: who really connects tells
