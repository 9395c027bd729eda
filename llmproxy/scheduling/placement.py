"""What may start, who must leave for it, and who waits for what.  Pure.

:func:`plan` looks at the whole fleet as it is at one moment and says what is to be done now; it is asked
again after each change and at :attr:`Plan.look_again`.  It keeps nothing between two looks, so that there is
nothing that could get stuck.

A demand is a model that somebody waits for; :func:`llmproxy.scheduling.turns.in_turn` says whose turn it is.
Each in its turn starts where there is room; else the cheapest set of idle models leaves for it; and once it
has waited for ``max_wait_before_drain``, busy ones take no new requests and leave when they have drained.
From then on what room there is is kept for it.  Before anybody leaves it is certain that the demand fits
then.

A GPU has to be quiet for a start, and for a leaving: so where one has got its turn and waits for nothing else
than that, nobody after it starts.  Else those that need two GPUs would wait for ever while the others start
on the one and on the other in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field

from llmproxy.scheduling.claims import Memory, Room, fits, minus, plus
from llmproxy.scheduling.exits import exits_of, rest_of
from llmproxy.scheduling.hosts import BUSY, COMING, HELD, IDLE, NEVER, NOW, SOON, Offer, best, spare
from llmproxy.scheduling.never import why_never
from llmproxy.scheduling.outlook import Leave, Model, Place, Plan, Refuse, Rules, Start, Wait
from llmproxy.scheduling.turns import in_turn
from llmproxy.scheduling.victims import Exit, cheapest

__all__ = ["Leave", "Model", "Place", "Plan", "Refuse", "Room", "Rules", "Start", "Wait", "plan"]


def plan(models: Iterable[Model], rooms: Mapping[str, Room], rules: Rules, now: float) -> Plan:
    """Look at the whole fleet.

    :param models: those that hold GPU memory, are wanted, or are due to leave; others change nothing.
    :param rooms: every GPU that one of them claims.
    :param now: POSIX seconds, as all times here.
    """
    return _Planner({model.name: model for model in models}, rooms, rules, now).run()


def _overdue_at(model: Model, rules: Rules) -> float:
    """When it has waited for long enough.  All compare with this very number: that of seconds since then may
    round to the other side of the limit, and the plan would look again at once, for ever."""
    return model.waiting_since + rules.max_wait_before_drain


def _on(model: Model) -> str:
    """Where it would be, for a person, if it may be on several hosts."""
    return f" on {model.at}" if model.places else ""


@define
class _Planner:
    models: dict[str, Model]
    rooms: Mapping[str, Room]
    rules: Rules
    now: float
    # What is free, and what will be when those who leave already have left.
    free: dict[str, int] = field(factory=dict)
    coming: dict[str, int] = field(factory=dict)
    host: int = field(init=False)
    # GPUs where somebody starts, by whom; where somebody leaves; whose turn it is as soon as they are quiet.
    starting: dict[str, str] = field(factory=dict)
    leaving: dict[str, str] = field(factory=dict)
    next: dict[str, str] = field(factory=dict)
    # Those who leave from now on, and those of all who leave that are still busy.
    gone: set[str] = field(factory=set)
    draining: set[str] = field(factory=set)
    # Those that room is kept for: what they keep asleep is not for those after them.
    promised: set[str] = field(factory=set)
    starts: list[Start] = field(factory=list)
    leaves: list[Leave] = field(factory=list)
    waits: list[Wait] = field(factory=list)
    refusals: list[Refuse] = field(factory=list)
    looks: list[float] = field(factory=list)

    def run(self) -> Plan:
        self._survey()
        for model in self.models.values():
            if model.due == "stop" or (model.phase == "draining" and not model.busy):
                self._leave_by_itself(model)
        demands = [model for model in self.models.values() if model.waiting]
        for model in in_turn(demands, self.rules):
            self._serve(model)
        # Last, as nobody should wait for that: where room is wanted they are the first to be chosen anyhow.
        for model in self.models.values():
            if model.due == "idle" and not (model.busy or model.waiting or model.pinned):
                self._leave_by_itself(model)
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
            self.host -= self._host_of(model)
            if model.phase == "starting":
                self.starting.update(dict.fromkeys(model.claim, model.name))
            elif model.phase == "leaving":
                self.leaving.update(dict.fromkeys(model.held, model.name))
            if model.phase == "draining" and model.busy:
                self.draining.add(model.name)
            if model.phase in ("leaving", "draining"):
                self.coming = plus(self.coming, minus(model.held, model.rest))

    def _host_of(self, model: Model) -> int:
        """Host memory that it takes, or that is promised to it."""
        falls_asleep = model.phase in ("draining", "leaving") and model.leaves_as == "1"
        return max(model.asleep_host, model.host if falls_asleep else 0)

    # -- leaving ------------------------------------------------------------------------------------

    def _leave_by_itself(self, model: Model) -> None:
        """It is due, or has drained: as gently as host memory allows."""
        if model.phase not in ("ready", "draining", "asleep") or model.name in self.gone:
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
        elif self._closed(model.held, self.starting) in (None, model.route):
            # Its own successor begins when it has ended.
            self._take(model, Leave(model.name, how, why))
        elif model.due != "idle":
            self.next.update(dict.fromkeys(model.held, model.name))

    def _take(self, model: Model, leave: Leave) -> None:
        """It leaves: what it frees is on its way."""
        self.leaves.append(leave)
        self.gone.add(model.name)
        if model.phase != "draining":
            self.coming = plus(self.coming, minus(model.held, rest_of(model, leave.how)))
        if leave.how == "1":
            self.host -= model.host - self._host_of(model)
        if leave.drain:
            self.draining.add(model.name)
        else:
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
        if model.places and model.phase == "absent":
            placed = self._placed(model)
            if placed is None:
                return
            model = placed
        need = minus(model.claim, model.held)
        if self._impossible(model):
            return
        if fits(need, self.free):
            self._start(model, need)
            return
        if fits(need, plus(self.free, self.coming)):
            leavers = self._leavers(need)
            if not self.draining.intersection(leavers):
                self._is_next(model.claim, model)
            self._wait(model, f"until {' and '.join(leavers) or 'another one'} has left", leavers, need)
            return
        self._make_room(model, need)

    def _start(self, model: Model, need: Memory) -> None:
        self._keep(need, model)
        other = self._closed(model.claim, self.starting)
        if other is not None:
            self._wait_for_quiet(model, f"until {other} has started: one at a time", other)
            return
        other = self._closed(model.claim, self.leaving)
        if other is not None:
            self._wait_for_quiet(model, f"until {other} has left", other)
            return
        other = self._closed(model.claim, self.next)
        if other is not None:
            self._wait_for_quiet(model, f"until {other} has had its turn", other)
            return
        self.starting.update(dict.fromkeys(model.claim, model.name))
        why = "it fits" if model.claim else "wanted"
        self.starts.append(Start(model.name, why + _on(model), model.at if model.places else ""))

    def _keep(self, need: Memory, model: Model) -> None:
        """So much of what is free, or will be, is for this one."""
        self.free = minus(self.free, need)
        self.promised.add(model.name)

    def _wait_for_quiet(self, model: Model, why: str, other: str) -> None:
        """There is room for it, but it cannot start beside another one."""
        self._is_next(model.claim, model)
        self.waits.append(Wait(model.name, why + _on(model), (other,)))

    def _is_next(self, memory: Memory, model: Model) -> None:
        for gpu in memory:
            self.next.setdefault(gpu, model.name)

    def _wait(self, model: Model, why: str, on: Iterable[str], need: Memory) -> None:
        """What is on its way is for this one."""
        self._keep(need, model)
        self.waits.append(Wait(model.name, why + _on(model), tuple(on)))

    def _leavers(self, need: Memory) -> list[str]:
        return sorted(
            {
                one.name
                for one in self.models.values()
                if (one.phase in ("leaving", "draining") or one.name in self.gone)
                and any(gpu in need for gpu in one.held)
            }
        )

    def _residents(self, model: Model, lack: Memory) -> list[Model]:
        """The others that have memory where some is lacking, and are not leaving yet."""
        return [
            one
            for one in self.models.values()
            if one.phase in ("starting", "ready", "asleep")
            and one.name != model.name
            and one.name not in self.promised
            and one.name not in self.gone
            and any(units > 0 and one.held.get(gpu, 0) > 0 for gpu, units in lack.items())
        ]

    def _impossible(self, model: Model) -> bool:
        """Refuse it when it can never fit, whoever leaves."""
        sums, until = self._why_never(model)
        if sums:
            self.refusals.append(Refuse(model.name, ", ".join(sums), until=until))
        return bool(sums)

    def _why_never(self, model: Model) -> tuple[list[str], float | None]:
        return why_never(model, self.models.values(), self.rooms, self.rules.lease_ends)

    # -- hosts --------------------------------------------------------------------------------------

    def _placed(self, model: Model) -> Model | None:
        """It, on the best of its hosts; None when it can be on none, which has been told."""
        offers = [self._offer(model, place) for place in model.places]
        taken = best(offers)
        if taken is None:
            sums = ", ".join(reason for offer in offers for reason in offer.sums)
            ends = [offer.until for offer in offers if offer.until is not None]
            self.refusals.append(Refuse(model.name, sums, until=min(ends, default=None)))
            return None
        if taken.step >= BUSY:
            # It may be another host that it does not have to wait for much longer.
            self.looks += [
                one.stays_until
                for offer in offers
                for one in self._residents(model, offer.place.claim)
                if offer.step != NEVER and one.stays_until > self.now
            ]
        return evolve(model, claim=taken.place.claim, at=taken.place.host)

    def _offer(self, model: Model, place: Place) -> Offer:
        if place.lacks:
            return Offer(place, NEVER, sums=[f"{place.host} has no GPU {' and '.join(place.lacks)}"])
        there = evolve(model, claim=place.claim)
        sums, until = self._why_never(there)
        if sums:
            return Offer(place, NEVER, sums=sums, until=until)
        step, leavers = self._soonest(there)
        cost = sum(one.cost for one in leavers)
        crowd = sum(one.at == place.host and one.phase != "absent" for one in self.models.values())
        return Offer(place, step, cost, spare(place.claim, self.free, self.rooms), crowd)

    def _soonest(self, model: Model) -> tuple[int, Sequence[Exit]]:
        """How soon it could start there, and who would leave for it."""
        if fits(model.claim, self.free):
            closed = (self._closed(model.claim, by) for by in (self.starting, self.leaving, self.next))
            return (SOON if any(closed) else NOW), ()
        room = plus(self.free, self.coming)
        if fits(model.claim, room):
            return COMING, ()
        lack = minus(model.claim, room)
        free = [one for one in self._residents(model, lack) if not one.pinned and self._may_leave(one)]
        if model.may_evict:
            for step, candidates in ((IDLE, [one for one in free if not one.busy]), (BUSY, free)):
                chosen = self._cheapest(lack, candidates)
                if chosen is not None:
                    return step, chosen
        return HELD, ()

    def _make_room(self, model: Model, need: Memory) -> None:
        room = plus(self.free, self.coming)
        lack = minus(need, room)
        residents = [one for one in self._residents(model, lack) if not one.pinned]
        overdue = _overdue_at(model, self.rules) <= self.now
        if not model.may_evict:
            self._do_without(model, residents, overdue=overdue, need=need, room=room)
            return
        now_idle = [one for one in residents if self._may_leave(one) and not one.busy]
        chosen = self._cheapest(lack, now_idle)
        if chosen is None and overdue:
            chosen = self._cheapest(lack, [one for one in residents if self._may_leave(one)])
        if chosen is None:
            self._wait_for_residents(model, residents, overdue=overdue, need=need)
            return
        victims = [self.models[one.name] for one in chosen]
        starter = next(filter(None, (self._closed(one.held, self.starting) for one in victims)), None)
        if starter is not None:
            for memory in (model.claim, *(victim.held for victim in victims)):
                self._is_next(memory, model)
            self._wait(model, f"until {starter} has started: nobody may leave beside it", (starter,), need)
            return
        waited = self.now - model.waiting_since
        for one, victim in zip(chosen, victims, strict=True):
            idle = f"idle for {self.now - victim.used_at:.0f} s"
            state = "busy" if victim.busy else "asleep" if victim.phase == "asleep" else idle
            why = f"makes room for {model.name}{_on(model)}, which has waited for {waited:.0f} s ({state})"
            self._take(victim, Leave(one.name, one.how, why, drain=victim.busy, whom=model.name))
        names = [one.name for one in victims]
        if not self.draining.intersection(names):
            self._is_next(model.claim, model)
        self._wait(model, f"until {' and '.join(names)} has left", names, need)

    def _do_without(
        self, model: Model, residents: Sequence[Model], *, overdue: bool, need: Memory, room: Memory
    ) -> None:
        """Nobody may be evicted for it: refuse it, unless what is in its way is a promise to those before it,
        beside whom it may fit once they run."""
        promised = any(room[gpu] < 0 for gpu in need)
        if promised and not overdue:
            self._wait_for_residents(model, residents, overdue=False, need=need)
            return
        names = ", ".join(one.name for one in residents) or "those before it"
        self.refusals.append(Refuse(model.name, f"{names} would have to leave for it", forbidden=True))

    def _cheapest(self, lack: Memory, candidates: Sequence[Model]) -> list[Exit] | None:
        exits = [one for model in candidates for one in exits_of(model, self.now)]
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
            self._keep(need, model)
        else:
            self.looks.append(_overdue_at(model, self.rules))
        why = "; ".join(held) or "no room"
        self.waits.append(Wait(model.name, why + _on(model), tuple(one.name for one in residents)))
