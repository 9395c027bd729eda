"""Runs unit tests against a module, with and without a fault in it, each time in a process of its own.

A process is forked off one that has loaded everything that tests need of others, as that takes longer than
most tests.  Nothing of the proxy is loaded there.  The fault is put in when the module is imported; no file
is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import hypothesis
import pytest
from attrs import frozen

from tests.integration.mutation.areas import ROOT, Module

__all__ = ["Baseline", "Trial", "load_others", "measure"]

SLACK = 8.0
"""Seconds of computing that a mutant may take beyond three times what its tests take without a fault."""

PATIENCE = 8
"""Times as much may pass meanwhile: others share the machine, and what waits for ever computes nothing."""

OUTCOMES = {
    int(pytest.ExitCode.OK): "survived",
    int(pytest.ExitCode.TESTS_FAILED): "failed",
    # The module cannot be imported, and so no test be collected.
    int(pytest.ExitCode.INTERRUPTED): "import",
    -signal.SIGXCPU: "timeout",
    -signal.SIGKILL: "timeout",
}
"""What it says of a mutant how its tests have ended; anything else says nothing."""

MEMORY = 4 << 30
"""Bytes that a mutant may have of address space."""

hypothesis.settings.register_profile(
    "mutation",
    # The same examples for each mutant; and when one is found it need not be made small.
    derandomize=True,
    database=None,
    deadline=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@frozen
class Baseline:
    """What the tests of a module do without a fault.

    :ivar seconds: how long each takes.
    :ivar reached: the tests that come by each line; a line that is run as the module is imported has none.
    """

    seconds: dict[str, float]
    reached: dict[int, list[str]]

    def tests_of(self, lines: tuple[int, int], slowest: float) -> list[str]:
        """Those that may find a fault in these lines, the quickest first, up to so many seconds for one."""
        found: set[str] = set()
        for line in range(lines[0], lines[1] + 1):
            if line in self.reached:
                found.update(self.reached[line] or self.seconds)
        quick = (test for test in found if self.seconds[test] <= slowest)
        return sorted(quick, key=lambda test: self.seconds[test])

    def time_of(self, tests: Iterable[str]) -> float:
        return sum(self.seconds[test] for test in tests)


def load_others(modules: Iterable[Module], folder: Path) -> None:
    """Load what the tests of these modules need of others."""
    names = folder / "others.json"

    def look() -> int:
        for file in sorted({file for module in modules for file in module.test_files}):
            importlib.import_module(file.removesuffix(".py").replace("/", "."))
        others = [name for name, module in sys.modules.items() if not _ours(name, module)]
        names.write_text(json.dumps(others), encoding="utf-8")
        return 0

    if _done(_fork(look, folder / "others.log", 600)):
        raise SystemExit(
            f"The tests cannot be imported:\n{(folder / 'others.log').read_text(encoding='utf-8')}"
        )
    for name in json.loads(names.read_text(encoding="utf-8")):
        # Some names are attributes of another module, or there only after a certain import.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "llmproxy" in sys.modules or "twisted.internet.reactor" in sys.modules:
        raise SystemExit("The proxy or a reactor has been loaded, and would be the same for all.")


def _ours(name: str, module: Any) -> bool:
    """It is part of the repository, and not of what is installed, wherever that is."""
    file = getattr(module, "__file__", None)
    if file is None:
        return name.split(".")[0] in (
            "llmproxy",
            "tests",
            "bench",
            "scripts",
            "__main__",
            "__mp_main__",
        )
    return str(file).startswith(str(ROOT)) and "site-packages" not in file


def _fork(work: Callable[[], int], log: Path, seconds: float) -> int:
    """A process that does this, and writes what it says to a file; its exit status is what comes back."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 3))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        status = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _done(child: int) -> int:
    """Wait for such a process; it does not outlive this one, which may be broken off meanwhile.

    :return: its exit status.
    """
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        _end(child)
        raise


def _end(child: int) -> None:
    """End such a process and what it has started."""
    # Also one that has no group of its own yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


class _Chosen:
    """Has pytest run these tests alone, in this order.

    :ivar over: they have been run, and what came of them is known.
    """

    def __init__(self, tests: Sequence[str]) -> None:
        self.over = False
        self._places = {test: place for place, test in enumerate(tests)}

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.over = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._places),
            key=lambda item: self._places[item.nodeid],
        )


def _pytest(files: Iterable[str], folder: Path, *plugins: object) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    hypothesis.settings.load_profile("mutation")
    os.chdir(ROOT)
    options = ["-x", "-q", "--no-header", "--tb=short", "--assert=plain", "-p", "no:cacheprovider"]
    try:
        return pytest.main(
            [*options, "-p", "pytest_timeout", "--timeout=0", f"--basetemp={folder}", *files], list(plugins)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Measuring:
    """Which lines of a module each test comes by, and how long it takes."""

    def __init__(self, path: Path) -> None:
        import coverage

        self._path = str(path)
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[self._path])
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.coverage.switch_context(item.nodeid)
        began = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - began
            self.coverage.switch_context("")

    def reached(self) -> dict[int, list[str]]:
        contexts = self.coverage.get_data().contexts_by_lineno(self._path)
        # The import itself comes by a line in no test's name.
        return {line: [] if "" in tests else tests for line, tests in contexts.items()}


def measure(module: Module, folder: Path) -> Baseline:
    """Run the tests of a module as it is, unless that has been done.

    :raises SystemExit: they fail.
    """
    log, result = folder / f"{module.name}.log", folder / f"{module.name}.json"
    digest = hashlib.sha256(module.path.read_bytes() + module.digest_of_tests().encode()).hexdigest()
    if result.exists():
        of, seconds, reached = json.loads(result.read_text(encoding="utf-8"))
        if of == digest:
            return Baseline(seconds, dict(reached))

    def work() -> int:
        measuring = _Measuring(module.path)
        measuring.coverage.start()
        status = _pytest(module.test_files, folder / f"tmp-{module.name}", measuring)
        measuring.coverage.stop()
        found = [digest, measuring.seconds, list(measuring.reached().items())]
        if not status:
            result.write_text(json.dumps(found), encoding="utf-8")
        return int(status)

    try:
        failed = _done(_fork(work, log, 1200))
    finally:
        shutil.rmtree(folder / f"tmp-{module.name}", ignore_errors=True)
    if failed:
        raise SystemExit(f"{module.name}: its tests fail as it is:\n{log.read_text(encoding='utf-8')}")
    _, seconds, reached = json.loads(result.read_text(encoding="utf-8"))
    return Baseline(seconds, dict(reached))


class _Faulty(importlib.machinery.SourceFileLoader):
    """Loads a module with a fault in it."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder:
    """Finds the module that has a fault, and no other."""

    def __init__(self, module: Module, source: str) -> None:
        self._name = module.name
        self._loader = _Faulty(module.name, str(module.path))
        self._loader.source = source

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._loader.path, loader=self._loader)


class Trial:
    """One mutant before its tests."""

    def __init__(
        self, module: Module, source: str, tests: Sequence[str], seconds: float, folder: Path, name: str
    ) -> None:
        self._name = f"{module.name}, mutant {name}"
        self._log = folder / f"{name}.log"
        self._temporary = folder / f"tmp-{name}"
        allowed = 3 * seconds + SLACK
        self._until = time.monotonic() + PATIENCE * allowed

        def work() -> int:
            sys.meta_path.insert(0, _Finder(module, source))
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            chosen = _Chosen(tests)
            try:
                return _pytest(files, self._temporary, chosen)
            except Exception:
                if not chosen.over:
                    raise
                # What a test has left open is told as pytest ends, and is a failure like others.
                return pytest.ExitCode.TESTS_FAILED

        self._over = False
        self._child = _fork(work, self._log, allowed)

    def outcome(self) -> str | None:
        """``survived``, or by what it was found: ``failed``, ``timeout``, ``import``; None: not over yet.

        :raises SystemExit: the tests have not been run as they should.
        """
        child, status = os.waitpid(self._child, os.WNOHANG)
        if not child:
            if time.monotonic() < self._until:
                return None
            self.end()
            return "timeout"
        self._over = True
        code = os.waitstatus_to_exitcode(status)
        # What it has left running ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)
        shutil.rmtree(self._temporary, ignore_errors=True)
        outcome = OUTCOMES.get(code)
        if outcome is None:
            raise SystemExit(
                f"{self._name}: its tests ended with {code}:\n{self._log.read_text(encoding='utf-8')}"
            )
        if outcome != "import":
            self._log.unlink(missing_ok=True)
        return outcome

    def end(self) -> None:
        """It is given up, unless it is over."""
        if self._over:
            return
        self._over = True
        _end(self._child)
        shutil.rmtree(self._temporary, ignore_errors=True)
