"""What may start, who must leave for it, and who waits for what.  Pure.

:func:`plan` looks at the whole fleet as it is at one moment and says what is to be done now; it is asked
again after each change and at :attr:`Plan.look_again`.  It keeps nothing between two looks, so that there is
nothing that could get stuck.

A demand is a model that somebody waits for.  Demands are served in the order of :func:`_turn`.  Each in its
turn starts where there is room; else the cheapest set of idle models leaves for it; and once it has waited
for ``max_wait_before_drain``, busy ones take no new requests and leave when they have drained.  From then on
what room there is is kept for it.  Before anybody leaves it is certain that the demand fits afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field

from llmproxy.fleet.claims import NOTHING, Memory, Room, fits, minus, plus
from llmproxy.fleet.outlook import Leave, Model, Plan, Refuse, Rules, Start, Wait
from llmproxy.fleet.victims import Exit, cheapest, weight

__all__ = ["Leave", "Model", "Plan", "Refuse", "Room", "Rules", "Start", "Wait", "plan"]


def plan(models: Iterable[Model], rooms: Mapping[str, Room], rules: Rules, now: float) -> Plan:
    """Look at the whole fleet.

    :param models: those that hold GPU memory, are wanted, or are due to leave; others change nothing.
    :param rooms: every GPU that one of them claims.
    :param now: POSIX seconds, as all times here.
    """
    return _Planner({model.name: model for model in models}, rooms, rules, now).run()


def _turn(model: Model, rules: Rules, now: float) -> tuple[float, ...]:
    """Who goes first: the more urgent, and each ``max_wait_before_drain`` of waiting counts as one step of
    urgency, so that nobody is passed over for ever.  Among those that have waited for so long the longest
    wait counts; among the others, how many wait for how short a start."""
    waited = max(0.0, now - model.waiting_since)
    steps = int(waited / rules.max_wait_before_drain) if rules.max_wait_before_drain > 0 else 1
    urgency = model.urgency + steps
    if steps:
        return (-urgency, 0, model.waiting_since)
    seconds = model.reload if model.phase == "absent" else min(model.wake.values(), default=model.reload)
    return (-urgency, 1, -model.waiting / max(seconds, 0.001))


@define
class _Planner:
    models: dict[str, Model]
    rooms: Mapping[str, Room]
    rules: Rules
    now: float
    # What is free, and what will be when those who leave already have left.
    free: dict[str, int] = field(factory=dict)
    coming: dict[str, int] = field(factory=dict)
    host: int = 0
    # GPUs where somebody starts, by whom; and where somebody leaves.
    starting: dict[str, str] = field(factory=dict)
    leaving: dict[str, str] = field(factory=dict)
    gone: set[str] = field(factory=set)
    starts: list[Start] = field(factory=list)
    leaves: list[Leave] = field(factory=list)
    waits: list[Wait] = field(factory=list)
    refusals: list[Refuse] = field(factory=list)
    looks: list[float] = field(factory=list)

    def run(self) -> Plan:
        self._survey()
        for model in self.models.values():
            if model.due or (model.phase == "draining" and not model.busy):
                self._leave_by_itself(model)
        demands = [model for model in self.models.values() if model.waiting]
        for model in sorted(demands, key=lambda one: (*_turn(one, self.rules, self.now), one.name)):
            self._serve(model)
        return Plan(
            tuple(self.starts),
            tuple(self.leaves),
            tuple(self.waits),
            tuple(self.refusals),
            min(self.looks, default=None),
        )

    def _survey(self) -> None:
        self.free = {gpu: room.capacity for gpu, room in self.rooms.items()}
        self.host = self.rules.host_memory
        for model in self.models.values():
            self.free = minus(self.free, model.held)
            self.host -= model.asleep_host
            if model.phase == "starting":
                self.starting.update(dict.fromkeys(model.claim, model.name))
            elif model.phase == "leaving":
                self.leaving.update(dict.fromkeys(model.held, model.name))
            if model.phase in ("leaving", "draining"):
                self.coming = plus(self.coming, minus(model.held, model.rest))

    # -- leaving ------------------------------------------------------------------------------------

    def _exits(self, model: Model) -> list[Exit]:
        """The ways in which it may leave."""
        idle_for = self.now - model.used_at

        def cost(seconds: float) -> float:
            return weight(seconds, idle_for=idle_for, priority=model.priority)

        exits = [Exit(model.name, "stop", model.held, cost(model.reload))]
        if model.phase != "asleep":
            for level in model.sleeps:
                host = model.host if level == 1 else 0
                freed = minus(model.held, model.kept)
                exits.append(Exit(model.name, str(level), freed, cost(model.wake.get(level, 3.0)), host))
        return exits

    def _leave_by_itself(self, model: Model) -> None:
        """It is due, or has drained: as gently as host memory allows."""
        if model.phase not in ("ready", "draining", "asleep") or (model.due == "idle" and model.busy):
            return
        how = model.leaves_as
        if model.due == "stop" or model.phase == "asleep":
            how = "stop"
        elif not how:
            levels = [level for level in model.sleeps if level != 1 or model.host <= self.host]
            how = str(min(levels)) if levels else "stop"
        why = {"idle": "idle", "stop": "wanted"}.get(model.due, "drained")
        if model.busy:
            if model.phase == "ready":
                self._take(model, Leave(model.name, how, why, drain=True))
        elif self._closed(model.held, self.starting) is None:
            self._take(model, Leave(model.name, how, why))

    def _take(self, model: Model, leave: Leave) -> None:
        """It leaves: what it frees is on its way."""
        self.leaves.append(leave)
        self.gone.add(model.name)
        kept = NOTHING if leave.how == "stop" else model.kept
        if model.phase != "draining":
            self.coming = plus(self.coming, minus(model.held, kept))
        if leave.how == "1":
            self.host -= model.host
        if not leave.drain:
            self.leaving.update(dict.fromkeys(model.held, model.name))

    def _closed(self, memory: Memory, by: Mapping[str, str]) -> str | None:
        """Who starts or leaves on one of these GPUs."""
        return next((by[gpu] for gpu in memory if gpu in by), None)

    # -- demands ------------------------------------------------------------------------------------

    def _serve(self, model: Model) -> None:
        if model.phase not in ("absent", "asleep") or model.name in self.gone:
            if model.phase != "starting" and (model.phase != "ready" or model.name in self.gone):
                self.waits.append(Wait(model.name, "it is being stopped, and starts again after that"))
            return
        need = minus(model.claim, model.held)
        if self._impossible(model, need):
            return
        if fits(need, self.free):
            self._start(model, need)
            return
        if fits(need, plus(self.free, self.coming)):
            self._wait(model, f"until {self._names_leaving(need)} has left", self._leavers(need), need)
            return
        self._make_room(model, need)

    def _start(self, model: Model, need: Memory) -> None:
        self.free = minus(self.free, need)
        other = self._closed(model.claim, self.starting)
        if other is not None:
            self.waits.append(Wait(model.name, f"until {other} has started: one at a time", (other,)))
            return
        other = self._closed(model.claim, self.leaving)
        if other is not None:
            self.waits.append(Wait(model.name, f"until {other} has left", (other,)))
            return
        self.starting.update(dict.fromkeys(model.claim, model.name))
        self.starts.append(Start(model.name, "it fits" if model.claim else "wanted"))

    def _wait(self, model: Model, why: str, on: Iterable[str], need: Memory) -> None:
        # What is on its way is for this one.
        self.free = minus(self.free, need)
        self.waits.append(Wait(model.name, why, tuple(on)))

    def _leavers(self, need: Memory) -> list[str]:
        return sorted(
            {
                one.name
                for one in self.models.values()
                if (one.phase in ("leaving", "draining") or one.name in self.gone)
                and any(gpu in need for gpu in one.held)
            }
        )

    def _names_leaving(self, need: Memory) -> str:
        return " and ".join(self._leavers(need)) or "another one"

    def _residents(self, need: Memory) -> list[Model]:
        """Those that have memory where it is needed, and are not leaving yet."""
        return [
            one
            for one in self.models.values()
            if one.phase in ("starting", "ready", "asleep")
            and one.name not in self.gone
            and any(units > 0 and one.held.get(gpu, 0) > 0 for gpu, units in need.items())
        ]

    def _impossible(self, model: Model, need: Memory) -> bool:
        """Refuse it when it can never fit, whoever leaves."""
        for gpu, units in model.claim.items():
            room = self.rooms[gpu]
            pinned = [
                one
                for one in self.models.values()
                if one.pinned and one.name != model.name and one.phase != "absent" and one.held.get(gpu)
            ]
            taken = sum(one.held[gpu] for one in pinned)
            if units <= room.capacity - taken:
                continue
            sums = [f"it needs {room.told(units)} of GPU {gpu}, which has {room.told(room.total)}"]
            if room.reserve:
                sums.append(f"{room.told(room.reserve)} of it reserved")
            if room.leased:
                sums.append(f"{room.told(room.leased)} of it lent")
            sums += [f"{room.told(one.held[gpu])} of it pinned by {one.name}" for one in pinned]
            waits_for_lease = room.leased and units <= room.total - room.reserve - taken
            until = self.rules.lease_ends.get(gpu) if waits_for_lease else None
            self.refusals.append(Refuse(model.name, ", ".join(sums), until=until))
            return True
        return False

    def _make_room(self, model: Model, need: Memory) -> None:
        lack = minus(need, plus(self.free, self.coming))
        residents = [one for one in self._residents(need) if not one.pinned]
        overdue = self.now - model.waiting_since >= self.rules.max_wait_before_drain
        now_idle = [one for one in residents if self._may_leave(one) and not one.busy]
        chosen = self._cheapest(lack, now_idle)
        if chosen is None and overdue:
            chosen = self._cheapest(lack, [one for one in residents if self._may_leave(one)])
        if chosen is None:
            self._wait_for_residents(model, residents, overdue=overdue, need=need)
            return
        if not model.may_evict:
            names = ", ".join(one.name for one in chosen)
            self.refusals.append(Refuse(model.name, f"{names} would have to leave for it", forbidden=True))
            return
        starter = next((self._closed(self.models[one.name].held, self.starting) for one in chosen), None)
        if starter is not None:
            self._wait(model, f"until {starter} has started: nobody may leave beside it", (starter,), need)
            return
        waited = self.now - model.waiting_since
        for one in chosen:
            victim = self.models[one.name]
            idle = f"idle for {self.now - victim.used_at:.0f} s"
            state = "busy" if victim.busy else "asleep" if victim.phase == "asleep" else idle
            why = f"makes room for {model.name}, which has waited for {waited:.0f} s ({state})"
            self._take(victim, Leave(one.name, one.how, why, drain=victim.busy, whom=model.name))
        names = " and ".join(one.name for one in chosen)
        self._wait(model, f"until {names} has left", [one.name for one in chosen], need)

    def _cheapest(self, lack: Memory, candidates: Sequence[Model]) -> list[Exit] | None:
        exits = [one for model in candidates for one in self._exits(model)]
        return cheapest(lack, exits, self.host)

    def _may_leave(self, model: Model) -> bool:
        """It has been started, has served, and has stayed for as long as it may."""
        return model.phase != "starting" and model.served and model.stays_until <= self.now

    def _wait_for_residents(
        self, model: Model, residents: Sequence[Model], *, overdue: bool, need: Memory
    ) -> None:
        held: list[str] = []
        for one in residents:
            if one.phase == "starting" or not one.served:
                held.append(f"{one.name} starts for somebody else")
            elif one.stays_until > self.now:
                held.append(f"{one.name} stays for {one.stays_until - self.now:.0f} s more after a swap")
                self.looks.append(one.stays_until)
            elif one.busy:
                held.append(f"{one.name} is busy")
        if overdue:
            # Nobody else takes what becomes free from now on.
            self.free = minus(self.free, need)
        else:
            self.looks.append(model.waiting_since + self.rules.max_wait_before_drain)
        self.waits.append(
            Wait(model.name, "; ".join(held) or "no room", tuple(one.name for one in residents))
        )
