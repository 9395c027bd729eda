"""The demo servers' GPU: a ledger that is never over-committed, the folder it is shared in, and a start."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import define
from hypothesis import given, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from llmproxy.demo.gpus import Disagreement, SharedGpus, look
from llmproxy.demo.ledger import (
    GIB,
    GpuError,
    Ledger,
    NeighbourChanged,
    NoGpu,
    NoRoom,
    OutOfMemory,
    Part,
    choose,
    size,
)
from llmproxy.demo.loading import Loading
from llmproxy.demo.memory import TAGS, Memory, OwnGpus, Plan
from llmproxy.demo.settings import Settings, parse


@define
class Bank:
    """GPUs in memory that several servers share."""

    ledger: Ledger

    def join(self, owner: str) -> Seat:
        return Seat(self, owner, [])


@define
class Seat:
    bank: Bank
    owner: str
    noted: list[GpuError]

    def change(self, act: Callable[[Ledger], Ledger]) -> Ledger:
        self.bank.ledger = act(self.bank.ledger)
        return self.bank.ledger

    def note(self, wrong: GpuError) -> None:
        self.noted.append(wrong)


# Sizes and choices.


@pytest.mark.parametrize(
    ("text", "found"),
    [("24GiB", 24 * GIB), ("24 gib", 24 * GIB), ("1.5GiB", 3 * GIB // 2), ("24GB", 24 * 10**9), ("7", 7)],
)
def test_sizes(text: str, found: int) -> None:
    """A size has vLLM's units or none."""
    assert size(text) == found


@pytest.mark.parametrize(("text", "found"), [("1GiB", GIB), ("0.05", 2), ("5%", 2), ("1", 40), ("0", 0)])
def test_parts(text: str, found: int) -> None:
    """A part is a size or a fraction, and no more than the whole."""
    assert Part.parse(text).of(max(40, GIB) if "GiB" in text else 40) == found
    assert Part.parse(text).of(1) <= 1


@pytest.mark.parametrize("text", ["", "x", "24XB", "-1", "2", "101%", "nan"])
def test_no_part(text: str) -> None:
    """What is neither is refused."""
    with pytest.raises(ValueError):  # noqa: PT011
        Part.parse(text)


def test_choice_of_gpus() -> None:
    """CUDA_VISIBLE_DEVICES names the GPUs, the first of which are taken."""
    assert choose(None, 2) == ("0", "1")
    assert choose("3, 1", 1) == ("3",)
    with pytest.raises(NoGpu, match="No CUDA GPUs are available"):
        choose("", 1)
    with pytest.raises(NoGpu, match="larger than the number"):
        choose("1", 2)


# The ledger.


AMOUNTS = strategies.tuples(
    strategies.sampled_from("abc"), strategies.sets(strategies.sampled_from("01")), strategies.integers(0, 12)
)


@given(strategies.lists(AMOUNTS))
def test_claims_never_exceed_the_total(claims: list[tuple[str, set[str], int]]) -> None:
    """Whatever is claimed, no GPU has more in use than there is; claims are refused only for want of room."""
    ledger = Ledger(10)
    for owner, gpus, amount in claims:
        try:
            ledger = ledger.claimed(owner, gpus, amount)
        except OutOfMemory:
            assert any(ledger.others(owner, gpus)[gpu] + amount > 10 for gpu in gpus)
        else:
            assert all(ledger.claims[owner][gpu] == amount for gpu in gpus)
        assert all(0 <= ledger.free(gpu) <= 10 for gpu in "01")


def test_words_of_the_errors() -> None:
    """The errors say what vLLM's say."""
    ledger = Ledger(24 * GIB).claimed("a", ("0",), int(22.8 * GIB))
    with pytest.raises(NoRoom) as room:
        ledger.check_room(("0",), 0.92)
    assert (
        "Free memory on device (1.2/24.0 GiB) on startup is less than desired GPU memory utilization "
        "(0.92, 22.08 GiB)"
    ) in str(room.value)
    with pytest.raises(
        OutOfMemory, match=r"^torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    ):
        ledger.claimed("b", ("0",), 2 * GIB)
    with pytest.raises(NeighbourChanged, match=r"Initial free memory 24.0 GiB, current free memory 1.2 GiB"):
        ledger.check_neighbours("b", {"0": 0})
    ledger.check_neighbours("a", {"0": 0})
    assert ledger.without("a").free("0") == 24 * GIB


class Fleet(RuleBasedStateMachine):
    """Servers that start, sleep, wake and die in any order on two GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank(Ledger(100))
        self.servers: dict[str, tuple[Memory, str]] = {}
        self.count = 0
        self.clean: set[str] = set()  # those that loaded while nobody else changed anything

    def of(self, *states: str) -> list[str]:
        return [name for name, (_, state) in self.servers.items() if state in states]

    def act(self, name: str, then: str, what: Callable[[Memory], object]) -> None:
        memory = self.servers[name][0]
        before = self.bank.ledger
        try:
            what(memory)
        except GpuError as wrong:
            assert self.bank.ledger == before
            if isinstance(wrong, NeighbourChanged):
                assert name not in self.clean
            self.die(name)
        else:
            if self.bank.ledger.claims.get(name) != before.claims.get(name):
                self.clean &= {name}
            self.servers[name] = (memory, then)

    def die(self, name: str) -> None:
        del self.servers[name]
        if any(self.bank.ledger.claims.get(name, {}).values()):
            self.clean.clear()
        self.bank.ledger = self.bank.ledger.without(name)

    @rule(
        gpus=strategies.sampled_from([("0",), ("1",), ("0", "1")]),
        utilization=strategies.sampled_from([0.2, 0.4, 0.92]),
    )
    def start(self, gpus: tuple[str, ...], utilization: float) -> None:
        self.count += 1
        name = f"s{self.count}"
        self.servers[name] = (Memory(self.bank.join(name), Plan(gpus, utilization)), "new")
        self.clean.add(name)
        self.act(name, "started", Memory.check_room)

    @precondition(lambda self: self.of("started"))
    @rule(data=strategies.data())
    def load(self, data: Any) -> None:
        self.act(data.draw(strategies.sampled_from(self.of("started"))), "loaded", Memory.load_weights)

    @precondition(lambda self: self.of("loaded"))
    @rule(data=strategies.data())
    def profile(self, data: Any) -> None:
        self.act(data.draw(strategies.sampled_from(self.of("loaded"))), "awake", Memory.profile)

    @precondition(lambda self: self.of("awake"))
    @rule(data=strategies.data())
    def sleep(self, data: Any) -> None:
        self.act(data.draw(strategies.sampled_from(self.of("awake"))), "asleep", Memory.sleep)

    @precondition(lambda self: self.of("asleep"))
    @rule(data=strategies.data(), away=strategies.sampled_from([(), ("weights",), ("kv_cache",)]))
    def wake(self, data: Any, away: tuple[str, ...]) -> None:
        name = data.draw(strategies.sampled_from(self.of("asleep")))
        self.act(name, "asleep" if away else "awake", lambda memory: memory.wake(away))

    @precondition(lambda self: self.servers)
    @rule(data=strategies.data())
    def kill(self, data: Any) -> None:
        self.die(data.draw(strategies.sampled_from(sorted(self.servers))))

    @invariant()
    def nothing_is_over_committed(self) -> None:
        for gpu in "01":
            assert 0 <= self.bank.ledger.used(gpu) <= 100
        for name in self.of("awake"):
            memory = self.servers[name][0]
            assert set(self.bank.ledger.claims[name].values()) == {memory.share}


TestFleet = Fleet.TestCase


@given(strategies.permutations(["a"] * 3 + ["b"] * 3))
def test_of_two_starts_at_once_one_dies(order: list[str]) -> None:
    """However two starts on one GPU interleave, one dies, unless one is done before the other begins."""
    bank = Bank(Ledger(100))
    seats = {name: bank.join(name) for name in "ab"}
    steps = {}
    for name, seat in seats.items():
        memory = Memory(seat, Plan(utilization=0.3))
        steps[name] = iter([memory.check_room, memory.load_weights, memory.profile])
    for name in order:
        try:
            next(steps[name], lambda: None)()
        except GpuError:
            bank.ledger = bank.ledger.without(name)
            steps[name] = iter(())
    died = [name for name, seat in seats.items() if seat.noted]
    one_by_one = order in (["a"] * 3 + ["b"] * 3, ["b"] * 3 + ["a"] * 3)
    assert bool(died) != one_by_one


def test_sleep_and_wake_by_parts() -> None:
    """A sleeper keeps its part; the weights come back alone, and then the rest."""
    bank = Bank(Ledger(100))
    memory = Memory(bank.join("a"), Plan(utilization=0.8, keeps=Part(bytes=5)))
    memory.check_room()
    memory.load_weights()
    assert bank.ledger.used("0") == 40
    memory.profile()
    assert memory.sleep() == (75, 5)
    memory.wake({"kv_cache"})
    assert bank.ledger.used("0") == 40
    memory.wake(())
    assert bank.ledger.used("0") == 80
    memory.sleep()
    memory.wake(TAGS - {"kv_cache"})
    assert bank.ledger.used("0") == 40
    assert "40" not in str(memory)  # it tells GiB


# The folder.


def test_a_folder_is_shared(tmp_path: Path) -> None:
    """Servers see each other's claims by GPU; what one gives back or leaves, others can have."""
    one = SharedGpus.join(tmp_path, "one", 100)
    two = SharedGpus.join(tmp_path, "two")
    one.change(lambda ledger: ledger.claimed(one.owner, ("0", "1"), 60))
    with pytest.raises(OutOfMemory):
        two.change(lambda ledger: ledger.claimed(two.owner, ("1",), 41))
    two.change(lambda ledger: ledger.claimed(two.owner, ("1",), 40))
    assert [look(tmp_path).free(gpu) for gpu in "012"] == [40, 0, 100]
    claim = json.loads((tmp_path / one.owner).read_text())
    assert (claim["who"], claim["gpus"]) == ("one", {"0": 60, "1": 60})
    one.change(lambda ledger: ledger.claimed(one.owner, ("0", "1"), 5))
    assert look(tmp_path).used("1") == 45
    one.leave()
    two.change(lambda ledger: ledger.claimed(two.owner, ("1",), 100))
    assert not (tmp_path / one.owner).exists()
    two.leave()


def test_a_folder_s_total_is_agreed(tmp_path: Path) -> None:
    """The first writes the total; another one is refused, and none is as the folder says."""
    one = SharedGpus.join(tmp_path / "new", "one")
    with pytest.raises(Disagreement):
        SharedGpus.join(tmp_path / "new", "two", 5)
    assert look(tmp_path / "new").total == 24 * GIB
    one.leave()


def test_faults_are_noted(tmp_path: Path) -> None:
    """Each error is a line of JSON; there is no file without one."""
    one = SharedGpus.join(tmp_path, "one", 100, now=lambda: 7.5)
    assert not (tmp_path / "faults").exists()
    memory = Memory(one, Plan(utilization=1.2))
    for _ in range(2):
        with pytest.raises(NoRoom):
            memory.check_room()
    first, second = [json.loads(line) for line in (tmp_path / "faults").read_text().splitlines()]
    assert first == second
    assert (first["time"], first["who"], first["kind"]) == (7.5, "one", "no-room")
    assert "Free memory on device" in first["what"]
    one.leave()


@given(strategies.lists(AMOUNTS, max_size=8))
def test_the_folder_keeps_what_the_ledger_says(claims: list[tuple[str, set[str], int]]) -> None:
    """What is read back from a folder is what was claimed."""
    with TemporaryDirectory() as name:
        seats = {who: SharedGpus.join(Path(name), who, 100) for who in "abc"}
        expected = Ledger(100)
        for who, gpus, amount in claims:
            owner = seats[who].owner
            expected = expected.claimed(owner, gpus, amount)
            seats[who].change(partial(Ledger.claimed, owner=owner, gpus=gpus, amount=amount))
        found = look(Path(name))
        assert {owner: own for owner, own in found.claims.items() if own} == {
            owner: own for owner, own in expected.claims.items() if own
        }
        for seat in seats.values():
            seat.leave()


# A start.


class Start:
    """A start on a clock."""

    def __init__(self, memory: Memory, seconds: float = 10) -> None:
        self.clock, self.said, self.ends = Clock(), list[str](), list[str]()
        Loading(
            self.clock,
            memory,
            "coder",
            seconds,
            say=self.said.append,
            draw=self.said.append,
            ready=lambda: self.ends.append("ready"),
            failed=lambda: self.ends.append("failed"),
        ).start()

    @property
    def log(self) -> str:
        return "\n".join(self.said)


def test_phases_of_a_start() -> None:
    """Each phase has its lines at its time, and takes its memory."""
    bank = Bank(Ledger(24 * GIB))
    start = Start(Memory(bank.join("a"), Plan()))
    assert "Starting to load model coder..." in start.log
    assert bank.ledger.used("0") == 0
    start.clock.advance(1)
    assert round(bank.ledger.used("0") / GIB, 2) == 11.04
    start.clock.advance(2)
    assert (
        "\rLoading safetensors checkpoint shards:  50% Completed | 2/4 [00:03<00:02, 1.00it/s]" in start.said
    )
    start.clock.pump([1] * 5)
    assert "Model loading took 11.04 GiB memory and 6.000000 seconds" in start.log
    assert "Available KV cache memory: 10.82 GiB" in start.log
    assert round(bank.ledger.used("0") / GIB, 2) == 22.08
    start.clock.advance(1)
    assert "Graph capturing finished in 1 secs, took 0.22 GiB" in start.log
    assert "init engine (profile, create kv cache, warmup model) took 4.00 s" in start.log
    assert start.ends == []
    start.clock.advance(1)
    assert (start.ends, start.clock.getDelayedCalls()) == (["ready"], [])


def test_a_start_takes_no_time_when_told_so() -> None:
    """With no delay it is ready at once."""
    start = Start(Memory(OwnGpus(Ledger(24 * GIB)), Plan()), 0)
    assert (start.ends, start.clock.getDelayedCalls()) == (["ready"], [])


def test_a_start_that_fails() -> None:
    """A start dies of a full GPU, of weights that do not fit, and of a neighbour that came or went."""
    bank = Bank(Ledger(100).claimed("old", ("0",), 20))
    full = Start(Memory(bank.join("a"), Plan(utilization=0.9)))
    assert (full.ends, full.clock.getDelayedCalls()) == (["failed"], [])
    assert "Engine core initialization failed. See root cause above." in full.log

    changes: list[tuple[int, str]] = [
        (95, "out of memory"),
        (21, "memory profiling"),
        (19, "memory profiling"),
    ]
    for held, words in changes:
        start = Start(Memory(bank.join("b"), Plan(utilization=0.5)))
        old = bank.ledger
        bank.ledger = old.claimed("old", ("0",), held)
        start.clock.pump([1] * 10)
        assert (start.ends, start.clock.getDelayedCalls()) == (["failed"], [])
        assert words in start.log
        bank.ledger = old


def test_settings_of_the_gpu() -> None:
    """vLLM's flags and ours tell how much is taken of which GPU."""
    line = ["--gpu", "/gpu", "--gpu-total", "10GiB", "--gpu_memory_utilization=0.5", "-tp", "2"]
    line += [
        "--sleep-keeps",
        "1GiB",
        "--gpu-weights",
        "0.25",
        "--enable-sleep-mode",
        "--sleep-fault",
        "wake-500=1",
    ]
    found = parse(line, {"CUDA_VISIBLE_DEVICES": "2,3", "VLLM_SERVER_DEV_MODE": "1"})
    assert (found.gpu, found.gpu_total, found.gpu_count, found.visible) == ("/gpu", 10 * GIB, 2, "2,3")
    assert found.plan == Plan(("0", "1"), 0.5, Part(0.25), Part(bytes=GIB))
    assert (found.enable_sleep_mode, found.dev_mode, found.sleep_faults) == (True, True, "wake-500=1")
    environment = {"LLMPROXY_DEMO_GPU_DIR": "/g", "LLMPROXY_DEMO_GPU_TOTAL": "1GiB"}
    assert (parse([], environment).gpu, parse([], environment).gpu_total) == ("/g", GIB)
    assert parse([], {}) == Settings()
    with pytest.raises(SystemExit):
        parse(["--sleep-fault", "nope"], {})
