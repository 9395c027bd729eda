"""A wheel of llmproxy, installed elsewhere, and the proxy as a daemon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.integration.proxy import Proxy, demo
from tests.integration.world import ROOT, ProcessWorld, until

TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
"""Twisted's own script is not in the new environment: Twisted itself is borrowed."""


def run(*command: str | Path, cwd: Path, limit: float = 60) -> str:
    """The standard output of a command that must succeed, in an environment that knows no checkout."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for part in ("llmproxy", "twisted"):
        shutil.copytree(ROOT / part, source / part, ignore=ignored)
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("llmproxy-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's interpreter, with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    found = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", found)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    # The dependencies are those of this environment; a .pth in there, such as an editable install's, is not
    # followed from here.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def test_contents(wheel: Path) -> None:
    """The wheel has every module, every file that they read and the plugin, and no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "llmproxy").rglob("*.py")}
    assert modules <= names
    others = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "llmproxy").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "llmproxy/web/api/openapi.yaml" in others
    assert {"twisted/plugins/llmproxy_plugin.py", *others} <= names
    assert "twisted/plugins/__init__.py" not in names
    assert "twisted/__init__.py" not in names
    assert not [name for name in names if name.startswith(("tests", "bench"))]


def test_plugin_and_command(python: Path) -> None:
    """The installed wheel's plugins are listed by twistd, and its command runs."""
    folder = python.parent.parent
    where = run(python, "-c", "import llmproxy; print(llmproxy.__file__)", cwd=folder)
    assert where.startswith(str(folder))
    listed = run(python, "-c", TWISTD, "--help", cwd=folder)
    assert any(line.split()[:1] == ["llmproxy"] for line in listed.splitlines())
    reactors = run(python, "-c", TWISTD, "--help-reactors", cwd=folder)
    assert any(line.split()[:1] == ["uvloop"] for line in reactors.splitlines())
    assert "--listen" in run(python, "-c", TWISTD, "llmproxy", "--help", cwd=folder)
    version = run(python, "-c", TWISTD, "llmproxy", "--version", cwd=folder)
    assert version.startswith("llmproxy ")
    assert run(python.parent / "llmproxy", "--version", cwd=folder).split()[-1] in version


def test_daemon(python: Path, tmp_path: Path) -> None:
    """Without -n it goes to the background, keeps its process id in a file, serves, and ends on TERM."""
    proxy = Proxy(tmp_path, ProcessWorld(tmp_path))
    proxy.configure({"a": demo()}, stop_backends_on_exit=True)
    pid_file = tmp_path / "twistd.pid"
    listen = f"tcp:{proxy.port}:interface=127.0.0.1"
    options = ["--logfile", str(proxy.log_file), "llmproxy", "-c", str(proxy.file), "-l", listen]
    environment = {**proxy.environ(), "PYTHONPATH": ""}
    try:
        subprocess.run(
            [python, "-c", TWISTD, *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=True,
        )
        until(pid_file.exists)
        pid = int(pid_file.read_text())
        assert os.getsid(pid) != os.getsid(0)
        until(lambda: "listening on" in proxy.log())
        assert proxy.ask("GET", "/healthz", key=None).status == 200
        assert proxy.chat("a").status == 200
        os.kill(pid, signal.SIGTERM)
        until(lambda: not pid_file.exists())
        until(lambda: not Path(f"/proc/{pid}").exists())
        assert not proxy.world.is_running("a")
    finally:
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        proxy.close()
