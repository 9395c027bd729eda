"""What a fleet remembers from one run of the proxy to the next."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.state_file import StateFile

__all__ = ["recall", "remember"]


def remember(fleet: Fleet, clock: IReactorTime, folder: str) -> StateFile:
    """Give a fleet what was learned before, and write down from now on what it learns.

    :param folder: the state folder.
    :return: to be closed at the end.
    """
    leases = fleet.scheduler.leases
    state = StateFile(
        clock,
        folder,
        # What is most dearly missed first.
        {"leases": leases.dump, "learned": fleet.learned.dump, "history": fleet.history.dump},
    )
    recall(fleet, state, clock.seconds())
    fleet.scheduler.leases_changed = state.changed
    fleet.follow(lambda _: state.changed())
    if leases.next_end() is not None:
        # Those who waited for their memory go on waiting, and the others end in time.
        fleet.scheduler.soon()
    return state


def recall(fleet: Fleet, state: StateFile, now: float) -> None:
    """Know what was written down, in place of what is known."""
    leases = fleet.scheduler.leases
    for lease in list(leases):
        leases.end(lease.name)
    found = state.read()
    leases.load(found.get("leases"))
    leases.expire(now)
    fleet.learned.load(found.get("learned"))
    fleet.history.load(found.get("history"))
