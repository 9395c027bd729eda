"""Several real engines without a Swarm: by a socket, by TLS and by ssh; and one of them goes away."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.docker_world import DockerWorld
from tests.integration.hosts_world import RACK, Hosts, model, require_sshd
from tests.integration.private_engine import require_private_engine
from tests.integration.proxy import ADMIN, Proxy
from tests.integration.world import until

pytestmark = pytest.mark.docker

Launch = Callable[..., Proxy]
NAME = "llmproxy-test-hosts-"


@pytest.fixture(scope="module")
def _hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    require_private_engine()
    require_sshd()
    with Hosts.make(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def hosts(_hosts: Hosts) -> Hosts:
    """Three engines that are there and empty."""
    _hosts.recover()
    return _hosts


@pytest.fixture
def launch(hosts: Hosts, tmp_path: Path) -> Iterator[Launch]:
    """Start a proxy before them."""
    started: list[Proxy] = []

    def one(backends: dict[str, Any], *, start: bool = True, **top: Any) -> Proxy:
        proxy = Proxy(tmp_path, DockerWorld(tmp_path, host=hosts.engines["local"].host))
        proxy.environment = {"PATH": hosts.sshd.path}
        proxy.configure(backends, **{**hosts.settings(), **top})
        started.append(proxy)
        if start:
            proxy.start()
            until(lambda: not away(proxy), 15)
        return proxy

    yield one
    for proxy in started:
        if proxy.process is not None and proxy.process.poll() is None:
            proxy.kill()
        print(f"--- the log of the proxy on port {proxy.port}\n{proxy.log()[-20_000:]}")


def api(proxy: Proxy, path: str) -> Any:
    answer = proxy.ask("GET", f"/api{path}", key=ADMIN)
    assert answer.status == 200, answer.body
    return answer.json


def away(proxy: Proxy) -> dict[str, str]:
    return {host["name"]: host["away"] for host in api(proxy, "/hosts")["hosts"] if host["away"]}


def host_of(proxy: Proxy, route: str) -> str | None:
    found = api(proxy, f"/backends/{route}")["host"]
    assert found is None or isinstance(found, str)
    return found


def answered(proxy: Proxy, route: str) -> bool:
    return proxy.chat(route).status == 200


def test_each_is_reached(hosts: Hosts, launch: Launch) -> None:
    """A model on each, created by the proxy, started, answered, followed, stopped; nothing is left of ssh."""
    proxy = launch({name: model(name, host=name, gpu_memory=0.3) for name in hosts.engines})
    for name in hosts.engines:
        answer = proxy.chat(name)
        assert answer.status == 200, (answer.body, proxy.log()[-3000:])
        assert hosts.running(NAME + name) == [name]
        assert host_of(proxy, name) == name
        assert "model" in api_text(proxy, f"/backends/{name}/logs?tail=50")
    assert proxy.ask("GET", "/readyz", key=None).json == {"status": "ready"}
    for name in hosts.engines:
        assert proxy.ask("POST", f"/api/backends/{name}/stop?wait=1", key=ADMIN).status in (200, 202)
        until(lambda name=name: not hosts.running(NAME + name), 15)  # type: ignore[misc]
    assert proxy.stop() == -15
    until(lambda: "dial-stdio" not in commands(str(hosts.sshd.port)), 10)


def api_text(proxy: Proxy, path: str) -> str:
    return proxy.ask("GET", f"/api{path}", key=ADMIN).body.decode()


def commands(word: str) -> str:
    """Command lines of all processes that have that word in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return "\n".join(found)


def test_placed_by_claim(hosts: Hosts, launch: Launch) -> None:
    """Three that exclude each other have a host each; a fourth has the cheapest of them leave, and where."""
    proxy = launch({name: model(name) for name in "abcd"}, scheduler={"max_wait_before_drain": "5s"})
    for name in "abc":
        assert answered(proxy, name)
    places = {name: host_of(proxy, name) for name in "abc"}
    assert sorted(map(str, places.values())) == ["local", "rack", "tower"]
    plan = api(proxy, "/plan?backend=d")
    (leave,) = plan["plan"]["leaves"]
    assert f"makes room for d on {places[leave['name']]}" in leave["why"]
    # Those that have just been started for somebody stay until they have served.
    until(lambda: answered(proxy, "d"), 40)
    where = host_of(proxy, "d")
    gone = [name for name in "abc" if host_of(proxy, name) is None]
    assert [places[name] for name in gone] == [where]
    assert hosts.running(NAME + "d") == [where]
    assert any(f"It is on {where}." in line for line in api(proxy, "/backends/d/why")["why"])


def test_a_host_loses_its_power(hosts: Hosts, launch: Launch) -> None:
    """Streams on it end with an error, those on others go on; what it had is started elsewhere."""
    proxy = launch(
        {
            "stays": model("stays", host="tower", gpu_memory=0.2),
            "moves": model("moves", gpu_memory=0.7),
            "bound": model("bound", host="rack", gpu_memory=0.2),
        }
    )
    hosts.cable.cut()
    hosts.cable.plug()
    assert answered(proxy, "stays")
    assert answered(proxy, "bound")
    # Where most is left.
    assert answered(proxy, "moves")
    assert host_of(proxy, "moves") == "local"
    hosts.docker("local", "stop", NAME + "moves")
    until(lambda: host_of(proxy, "moves") is None)
    hosts.docker("local", "rm", NAME + "moves")
    hosts.engines["local"].end()
    until(lambda: "local" in away(proxy))
    until(lambda: answered(proxy, "moves"), 20)
    before = host_of(proxy, "moves")
    assert before in ("rack", "tower")
    hosts.start("local")
    until(lambda: not away(proxy), 20)

    victim, other = ("moves", "stays") if before == "rack" else ("bound", "stays")
    with (
        proxy.streaming(victim, tokens=400, delay=0.03) as broken,
        proxy.streaming(other, tokens=200, delay=0.03) as whole,
    ):
        hosts.engines["rack"].lose()
        rest = broken.rest()
        assert b"backend_died" in rest
        until(lambda: "rack" in away(proxy))
        ready = proxy.ask("GET", "/readyz", key=None)
        assert (ready.status, list(ready.json["away"])) == (200, ["rack"])
        if victim == "moves":
            until(lambda: answered(proxy, "moves"), 20)
            assert host_of(proxy, "moves") in ("local", "tower")
        # Whoever finds it dead is told so, and all others why it cannot be had.
        until(lambda: proxy.chat("bound").status == 503)
        refused = proxy.chat("bound")
        assert (refused.status, refused.error["code"]) == (503, "runtime_unavailable")
        assert "rack is away" in refused.error["message"]
        assert b"error" not in whole.through(b"data: [DONE]\n\n")
    hosts.start("rack")
    until(lambda: not away(proxy), 20)
    until(lambda: answered(proxy, "bound"), 20)
    assert len(hosts.running(NAME + "moves")) == 1
    assert hosts.running(NAME + "stays") == ["tower"]


def test_a_host_is_cut_off(hosts: Hosts, launch: Launch) -> None:
    """What runs there goes on unseen; it is started elsewhere, and never runs twice when the host is back."""
    proxy = launch({"a": model("a")})
    for name in ("local", "tower"):
        hosts.engines[name].end()
    until(lambda: set(away(proxy)) == {"local", "tower"}, 20)
    until(lambda: answered(proxy, "a"), 20)
    assert host_of(proxy, "a") == "rack"
    for name in ("local", "tower"):
        hosts.start(name)
    until(lambda: not away(proxy), 20)

    hosts.cable.cut()
    until(lambda: "rack" in away(proxy))
    # The engine alone is away: what it runs is used as before.
    assert answered(proxy, "a")
    assert host_of(proxy, "a") == "rack"

    hosts.unplug("rack", NAME + "a")
    until(lambda: answered(proxy, "a"), 30)
    where = host_of(proxy, "a")
    assert where in ("local", "tower")
    assert sorted(hosts.running(NAME + "a")) == sorted(["rack", where])
    with proxy.streaming("a", tokens=150, delay=0.03) as stream:
        hosts.cable.plug()
        until(lambda: hosts.running(NAME + "a") == [where], 30)
        assert not away(proxy)
        assert b"error" not in stream.through(b"data: [DONE]\n\n")
    assert host_of(proxy, "a") == where


def test_ssh_is_connected_anew(hosts: Hosts, launch: Launch) -> None:
    """When the server ends its models go on; when it is back, so is the host, and nothing was restarted."""
    proxy = launch({"a": model("a", host="tower")})
    assert answered(proxy, "a")
    began = hosts.docker("tower", "inspect", "--format", "{{.State.StartedAt}}", NAME + "a")
    hosts.sshd.hang_up()
    until(lambda: "Connection refused" in away(proxy).get("tower", ""), 30)
    assert answered(proxy, "a")
    hosts.sshd.start()
    until(lambda: not away(proxy), 30)
    assert answered(proxy, "a")
    assert hosts.docker("tower", "inspect", "--format", "{{.State.StartedAt}}", NAME + "a") == began


def test_a_stranger_is_refused(hosts: Hosts, launch: Launch) -> None:
    """By certificate and by key: the reason is told, and the other hosts serve."""
    settings = hosts.settings()
    settings["hosts"]["rack"]["tls"] |= {
        "cert": f"{hosts.folder}/stranger.pem",
        "key": f"{hosts.folder}/stranger.key",
    }
    user = settings["hosts"]["tower"]["docker"].replace("root@", "nobody@")
    settings["hosts"]["tower"]["docker"] = user
    proxy = launch({"a": model("a")}, start=False, **settings)
    proxy.start()
    assert answered(proxy, "a")
    told = until(lambda: found if len(found := away(proxy)) == 2 and all(found.values()) else None, 20)
    until(lambda: "Permission denied" in away(proxy)["tower"], 20)
    assert told is not None
    assert host_of(proxy, "a") == "local"
    assert proxy.ask("GET", "/readyz", key=None).status == 200


def test_labels_make_routes_on_all_hosts(hosts: Hosts, launch: Launch) -> None:
    """One that is there at the start, and one that comes later; each is where it is."""

    def label(host: str, name: str, at: str = "127.0.0.1") -> None:
        spec = model(name)
        hosts.docker(
            host,
            *("create", "--name", spec["container"], "--publish", f"{at}::8000"),
            *("--label", f"llmproxy.route={name}", "--label", "llmproxy.port=8000"),
            *("--label", f"llmproxy.models={name}-model", spec["image"], *spec["args"]),
        )

    label("rack", "early", RACK)
    proxy = launch({})
    assert answered(proxy, "early")
    assert host_of(proxy, "early") == "rack"
    label("tower", "late")
    until(lambda: proxy.chat("late").status == 200, 20)
    assert host_of(proxy, "late") == "tower"
    # A host that is away takes no route with it.
    hosts.cable.cut()
    until(lambda: "rack" in away(proxy))
    proxy.hang_up()
    assert answered(proxy, "early")
    assert {one["name"] for one in api(proxy, "/backends")["backends"]} == {"early", "late"}


def test_the_command_tells_which_hosts_are_away(hosts: Hosts, launch: Launch) -> None:
    """By status, hosts and doctor; the last one asks each engine itself, and says what to try."""
    proxy = launch({"a": model("a"), "b": model("b", host="rack")})
    hosts.cable.cut()
    until(lambda: "rack" in away(proxy))

    def command(*words: str) -> str:
        environment = {
            **proxy.environ(),
            "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}",
            "LLMPROXY_ADMIN_KEY": ADMIN,
            "LLMPROXY_CONFIG": str(proxy.file),
        }
        done = subprocess.run(
            [sys.executable, "-m", "llmproxy", *words],
            env=environment,
            cwd=proxy.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    assert "host rack is away: " in command("status")
    shown = {line.split()[0]: line.split()[1] for line in command("hosts").splitlines()[:4]}
    assert shown == {"HOST": "STATE", "local": "there", "rack": "away", "tower": "there"}
    found = {one["check"]: one for one in json.loads(command("doctor", "--json"))["findings"]}
    assert (found["docker.host.rack"]["status"], found["docker.host.tower"]["status"]) == ("fail", "ok")
    assert "refused" in found["docker.host.rack"]["finding"]
    assert "--tlsverify" in found["docker.host.rack"]["fix"]
