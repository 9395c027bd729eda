"""How many connections each client has open."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

__all__ = ["Crowd", "party"]


@lru_cache(maxsize=1024)
def party(host: str | None) -> str | None:
    """Whom connections from this address, and wrong keys, are counted for; None: they are not.

    Not counted is what comes from this machine itself or by a Unix socket: it is one program in front of many
    clients as often as not (a tunnel, nginx), and who may connect here has other ways.  An IPv6 client has a
    network of 64 bits to itself, and so all addresses in it.
    """
    if host is None:
        return None
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return None
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


class Crowd:
    """Counts connections by address."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def enter(self, host: str | None) -> tuple[str | None, int]:
        """One more.

        :return: whom it is counted for, to be given to :meth:`leave`; and how many there are of it now.
        """
        whose = party(host)
        if whose is None:
            return None, 0
        count = self._counts[whose] = self._counts.get(whose, 0) + 1
        return whose, count

    def leave(self, whose: str | None) -> None:
        """One less."""
        if whose is None:
            return
        left = self._counts.pop(whose) - 1
        if left:
            self._counts[whose] = left
