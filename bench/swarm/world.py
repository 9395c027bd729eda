"""One run: a fleet of llmproxy's own in front of a simulated Swarm, driven by a demand, and what came of
it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from attrs import asdict, frozen

from bench.figures import percentile
from bench.swarm.clock import Account, HeapClock, ProxyClock
from bench.swarm.cluster import Cluster, nodes
from bench.swarm.demand import Demand, models
from bench.swarm.pressing import RULES, Pressing
from bench.swarm.runtime import ClusterRuntime, SwarmRuntime
from bench.swarm.traffic import Tally, Traffic
from llmproxy.backend.surroundings import Event, Transition
from llmproxy.config.model import BackendSpec, Config, Replicas
from llmproxy.fleet.fleet import Fleet

__all__ = ["Outcome", "Setting", "World"]

START = 1.7e9
"""What the clock says at the beginning."""

MINUTE = 60.0


@frozen
class Setting:
    """What is simulated.

    :ivar rate: requests a second.
    :ivar rule: who leaves while something is pending, one of :data:`~bench.swarm.pressing.RULES`.
    :ivar warm: minutes that are not counted.
    :ivar drift: seconds between two changes of rank; 0: none.
    :ivar mtbf: days between two failures of one node; 0: none fails.
    """

    nodes: int = 1000
    models: int = 10_000
    rate: float = 30.0
    exponent: float = 1.0
    minutes: float = 120.0
    warm: float = 30.0
    idle: float = 600.0
    rule: str = "none"
    replicas: int = 8
    target: int = 16
    drift: float = 5.0
    mtbf: float = 30.0
    repair: float = 45.0
    seed: int = 1


@frozen
class Outcome:
    """What came of it; times are seconds, the processor's milliseconds.

    :ivar cold: part of all requests that were held.
    :ivar used: part of all GPU memory that was reserved, on average; ``busy``: by those that answered
        somebody.
    :ivar tasks: how many ran or started, each minute.
    :ivar cpu: milliseconds by what they were spent on; ``calls``: how often.
    """

    setting: dict[str, Any]
    requests: int
    ends: dict[str, int]
    cold: float
    hold_p50: float
    hold_p95: float
    hold_p99: float
    held_p50: float
    held_p95: float
    held_p99: float
    used: float
    busy: float
    pending: float
    pending_most: int
    tasks: list[int]
    starting_most: int
    per_hour: dict[str, float]
    events_per_second: float
    decisions_per_second: float
    cpu: dict[str, float]
    calls: dict[str, int]
    looks: int
    seconds: float
    fleet_bytes: int
    peak_bytes: int

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class World:
    """Everything of one run."""

    def __init__(self, setting: Setting, tell: Callable[[str], None] = lambda line: None) -> None:
        self.setting = setting
        self.clock = HeapClock(START)
        self.account = Account()
        those = nodes(setting.nodes, setting.seed)
        self.models = models(setting.models, setting.seed, max((node.room for node in those), default=0))
        self.swarm = Cluster(self.clock, those, setting.seed)
        self.swarm.add(self.models)
        self.events = 0
        self.decisions = 0
        self.starts: dict[str, int] = {}
        self._tell = tell
        self._dice = Random(f"{setting.seed} failures")
        self._samples: list[tuple[int, float, float, int, int]] = []
        gc.collect()
        before = resident()
        self.fleet = self._make_fleet()
        gc.collect()
        self.fleet_bytes = resident() - before
        self.looks = 0
        self._count_looks()
        demand = Demand(self.models, setting.rate, setting.exponent, setting.seed)
        self.traffic = Traffic(self.clock, self.account, self.fleet, self.swarm, demand, setting.drift)
        rule = RULES[setting.rule]
        self.pressing = (
            None if rule is None else Pressing(self.clock, self.account, self.fleet, self.swarm, rule)
        )

    def _make_fleet(self) -> Fleet:
        setting = self.setting
        replicas = Replicas(0, setting.replicas, setting.target)
        backends = {
            model.name: BackendSpec(
                model.name,
                runtime="swarm",
                service=model.name,
                models=(model.name,),
                idle=setting.idle,
                sleep="off",
                start_timeout=900.0,
                replicas=replicas,
                reservations={"vram-gib": model.room},
            )
            for model in self.models
        }
        kind = ClusterRuntime if setting.rule == "llmproxy" else SwarmRuntime
        runtime = kind(self.swarm, self.account)
        clock: Any = ProxyClock(self.clock, self.account)
        fleet = Fleet(clock, runtime.connect, {"swarm": runtime}, Config(backends=backends))
        fleet.follow(self._event)
        self.account.inside("start", fleet.start)
        return fleet

    def _count_looks(self) -> None:
        scheduler: Any = self.fleet.scheduler
        look = scheduler.look

        def counted(*at: object) -> None:
            self.looks += 1
            self.account.inside("scheduler", look, *at)

        scheduler.look = counted

    def _event(self, event: Event) -> None:
        if isinstance(event, Transition):
            self.events += 1
            return
        self.decisions += 1
        if event.kind in ("evict", "drain") and self.setting.rule == "llmproxy":
            self.swarm.counts["evicted"] += 1
            self.swarm.counts["drained"] += event.kind == "drain"

    # -- time ---------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """All of it."""
        setting = self.setting
        self.traffic.begin()
        if self.pressing is not None:
            self.pressing.begin()
        if setting.mtbf:
            self._fail_later()
        # As the proxy has it (llmproxy.garbage): else half of the time is the collector's.
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        self._pass(setting.warm)
        self._clear()
        self._pass(setting.minutes)
        return self._outcome()

    def _pass(self, minutes: float) -> None:
        for minute in range(int(minutes)):
            self.clock.advance(MINUTE)
            self._sample()
            if minute % 10 == 9:
                self._tell(f"  {minute + 1:.0f} minutes, {self._samples[-1][0]} tasks")

    def _clear(self) -> None:
        self.traffic.tally = Tally()
        self.swarm.counts.clear()
        self._samples.clear()
        self.events = self.decisions = self.looks = 0
        if self.pressing is not None:
            self.pressing.evicted = self.pressing.drained = 0
        self.account.clear()

    def _sample(self) -> None:
        tasks = reserved = busy = starting = 0
        for service in self.swarm.services.values():
            in_flight = self.fleet.backends[service.name].gate.busy
            for task in service.tasks.values():
                if task.node is not None:
                    tasks += 1
                    reserved += service.model.room
                    busy += service.model.room * in_flight * (task.state == "healthy")
                    starting += task.state in ("preparing", "running")
        room = max(1, self.swarm.room)
        self._samples.append((tasks, reserved / room, busy / room, len(self.swarm.pending), starting))

    def _fail_later(self) -> None:
        seconds = self._dice.expovariate(self.setting.nodes / (self.setting.mtbf * 86400.0))
        self.clock.callLater(seconds, self._fail)

    def _fail(self) -> None:
        self._fail_later()
        node = self._dice.choice(self.swarm.nodes)
        if node.up:
            self.swarm.fail(node, self.setting.repair * MINUTE)

    # -- what came of it ----------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        self.account.switch("simulation")
        tally, setting = self.traffic.tally, self.setting
        holds = list(tally.holds)
        held = [hold for hold in holds if hold > 0]
        hours, seconds = setting.minutes / 60, setting.minutes * MINUTE
        counts = self.swarm.counts
        per_hour = {
            name: counts[name] / hours
            for name in (
                "starts",
                "fetches",
                "pending",
                "scale-outs",
                "scale-ins",
                "notes",
                "evicted",
                "drained",
                "nodes lost",
                "tasks lost",
            )
        }
        if self.pressing is not None:
            # By a rule that is not the fleet's own.
            per_hour["evicted"] = self.pressing.evicted / hours
            per_hour["drained"] = self.pressing.drained / hours
        shares = (0.5, 0.95, 0.99)
        p50, p95, p99 = (percentile(holds or [0.0], share) for share in shares)
        held50, held95, held99 = (percentile(held or [0.0], share) for share in shares)
        count = max(1, len(self._samples))
        ended = sum(tally.ends.values())
        return Outcome(
            asdict(setting),
            ended,
            dict(tally.ends),
            tally.cold / max(1, ended),
            p50,
            p95,
            p99,
            held50,
            held95,
            held99,
            sum(sample[1] for sample in self._samples) / count,
            sum(sample[2] for sample in self._samples) / count,
            sum(sample[3] for sample in self._samples) / count,
            max((sample[3] for sample in self._samples), default=0),
            [sample[0] for sample in self._samples],
            max((sample[4] for sample in self._samples), default=0),
            per_hour,
            self.events / seconds,
            self.decisions / seconds,
            {kind: spent / 1e6 for kind, spent in self.account.spent.items()},
            dict(self.account.calls),
            self.looks,
            seconds,
            self.fleet_bytes,
            resident(),
        )
