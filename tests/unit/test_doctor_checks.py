"""What each of the doctor's checks says of facts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec, Config, Former, Key, digest_of
from llmproxy.doctor.checks.backends import known_backends, read_mount, read_published, wants_gpu
from llmproxy.doctor.checks.containers import check_containers, check_images, check_ports, check_programs
from llmproxy.doctor.checks.docker import check_compose, check_engine
from llmproxy.doctor.checks.folders import check_disks, check_folders
from llmproxy.doctor.checks.gpu import check_cuda, check_driver, check_gpu_runtime
from llmproxy.doctor.checks.host import check_clock, check_versions, check_wsl
from llmproxy.doctor.checks.network import check_firewall, check_listening, read_endpoint
from llmproxy.doctor.checks.proxy import check_proxy
from llmproxy.doctor.checks.settings import check_key, check_settings
from llmproxy.doctor.doctor_client import Answer, Finding, Target
from llmproxy.doctor.facts import (
    ClockFacts,
    ComposeFacts,
    Container,
    DiskFacts,
    Engine,
    Facts,
    Folder,
    GpuFacts,
    HostFacts,
    Image,
    Mount,
    Package,
    ProxyFacts,
    Published,
    Settings,
    WindowsFacts,
    WslFacts,
)
from llmproxy.doctor.findings import SECTIONS, clean
from llmproxy.doctor.judge import judge
from llmproxy.doctor.numbers import size_of, version_of
from llmproxy.engines.gpus import DeviceRequest

GIB = 2**30
SECRET = "0123456789abcdef0123456789abcdef"
HOST = "unix:///var/run/docker.sock"
SPEC = BackendSpec("coder", container="coder3b", port=8001)
VLLM = Container(
    "coder3b",
    state="exited",
    image="vllm/vllm-openai:v0.11.0",
    published=(Published("127.0.0.1", 8001, 8001),),
    mounts=(Mount("/srv/llm/.cache", "/root/.cache/huggingface"),),
    restart="no",
    gpu=True,
    args=("vllm", "serve", "m", "--port=8001"),
)


def answer(status: int = 200, document: Any = None, **headers: str) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, headers, json.dumps(document).encode())


def proxy(*backends: dict[str, Any], **changed: Any) -> ProxyFacts:
    """A proxy that is well."""
    found = ProxyFacts(
        Target(False, "127.0.0.1", 8000, ""),
        answer(200, {"status": "ok"}, server="llmproxy/1.0"),
        answer(200, {"status": "ready"}),
        answer(401),
        answer(200, {"backends": list(backends)}),
        keyed=True,
    )
    return evolve(found, **changed)


def facts(
    *specs: BackendSpec, keys: Iterable[Key] = (Key("me", SECRET, admin=True),), **changed: Any
) -> Facts:
    """An installation that is well, but for what is changed; its engine has the container of :data:`SPEC`."""
    config = Config(backends={each.route: each for each in specs or (SPEC,)}, keys=tuple(keys))
    found = Facts(
        "1.0",
        Settings(config),
        Engine(
            HOST,
            "answers",
            version="28.2.2",
            api_version="1.50",
            runtimes=("runc", "nvidia"),
            apart=0.2,
            containers={"coder3b": VLLM},
        ),
        ComposeFacts("docker-compose.yml", command="docker compose", version="2.40"),
        HostFacts(memory=32 * GIB, lan="192.168.1.5"),
        GpuFacts(("/dev/nvidiactl",), "570.1", (12, 8), (("RTX 4090", 24 * GIB),)),
        ClockFacts(1000.0, built=500.0),
        proxy({"name": "coder", "state": "absent"}),
        folders={"/srv/llm/.cache": Folder("/srv/llm/.cache")},
    )
    return evolve(found, **changed)


def on_wsl(found: Facts | None = None, **changed: Any) -> Facts:
    """The same in WSL 2."""
    wsl = WslFacts(
        2, "Ubuntu", "mirrored", {}, systemd=True, windows=WindowsFacts(0.0, ("Private",), ("Private",))
    )
    found = found or facts()
    return evolve(found, host=evolve(found.host, wsl=evolve(wsl, **changed)))


def with_engine(**changed: Any) -> Facts:
    """With another engine."""
    found = facts()
    return evolve(found, engine=evolve(found.engine, **changed))


def with_container(spec: BackendSpec = SPEC, **changed: Any) -> Facts:
    """With another container of that backend."""
    found = facts(spec)
    return evolve(found, engine=evolve(found.engine, containers={"coder3b": evolve(VLLM, **changed)}))


def told(findings: Iterable[Finding]) -> list[str]:
    """Statuses with names."""
    return [f"{each.status} {each.check}" for each in findings]


def one(findings: Iterable[Finding], check: str, status: str, *words: str) -> Finding:
    """The one finding of that check, with that status, that says those words."""
    (found,) = [each for each in findings if each.check == check and each.status == status]
    for word in words:
        assert word in f"{found.finding} {found.fix}", found
    assert (found.fix is None) or status != "ok"
    return found


# -- all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [facts(), on_wsl()], ids=["linux", "wsl"])
def test_a_sound_installation(found: Facts) -> None:
    """Where all is well, nothing fails, nothing is warned of, and nothing has a fix."""
    findings = judge(found)
    assert {each.status for each in findings} == {"ok"}, findings
    assert all(each.fix is None for each in findings)
    order = [list(SECTIONS).index(each.check.partition(".")[0]) for each in findings]
    assert order == sorted(order)


def test_nothing_is_known() -> None:
    """With no facts at all each check still has something to say, and every failure has a fix."""
    bare = Facts(
        "1.0",
        Settings(error="llmproxy.yaml: it is not valid YAML"),
        Engine("unix:///nonexistent", "absent"),
        ComposeFacts(),
        HostFacts(),
        GpuFacts(),
        ClockFacts(0.0),
        ProxyFacts(Target(False, "127.0.0.1", 8000, "")),
    )
    findings = judge(bare)
    assert all(each.fix for each in findings if each.status in ("fail", "warn"))
    one(findings, "settings.config", "fail", "not valid YAML")
    one(findings, "docker.engine", "fail", "unix:///nonexistent")


def test_secrets_in_what_others_say_are_hidden() -> None:
    """Long ones wherever they stand, short ones where they stand by themselves, and what looks like one."""
    found = Finding("a.b", "fail", f"x{SECRET}y said\n abc1 and xabc1, hf_abcdefghijkl", f"use {SECRET}")
    assert clean(found, [SECRET, "abc1"]) == Finding(
        "a.b", "fail", "x***y said *** and xabc1, ***", "use ***"
    )


# -- settings ------------------------------------------------------------------------------------------


def test_settings() -> None:
    """An error is told as it is; no routes are a warning; so are notes, and variables that differ."""
    broken = evolve(facts(), settings=Settings(error="bad place"))
    one(check_settings(broken), "settings.config", "fail", "bad place")
    empty = evolve(facts(), settings=Settings(Config(notes=("key a: x", "no key is", "route y is none"))))
    assert told(check_settings(empty)) == ["warn settings.config", "warn settings.note"]
    differing = evolve(facts(), settings=evolve(facts().settings, differing=("VLLM_API_KEY",)))
    one(check_settings(differing), "settings.environment", "warn", "unset VLLM_API_KEY")


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ([], ["warn settings.key"]),
        ([Key("a", SECRET, admin=True)], ["ok settings.key"]),
        ([Key("a", "changeme", admin=True)], ["fail settings.key"]),
        ([Key("a", "ChangeMe ", admin=True)], ["fail settings.key"]),
        ([Key("a", "0" * 64, admin=True)], ["fail settings.key"]),
        ([Key("a", "k7Qz!x", admin=True)], ["warn settings.key"]),
        ([Key("a", SECRET)], ["warn settings.key"]),
        ([Key("a", admin=True, hashed=digest_of(SECRET))], ["ok settings.key"]),
        ([Key("a", admin=True, hashed=digest_of("changeme"))], ["fail settings.key"]),
        (
            [Key("a", SECRET, admin=True, former=(Former(digest_of("changeme"), 2000.0),))],
            ["fail settings.key"],
        ),
        ([Key("a", SECRET, admin=True, expires=900.0)], ["warn settings.key"]),
        ([Key("a", SECRET, admin=True, expires=1000.0 + 86400)], ["warn settings.key"]),
        ([Key("a", SECRET, admin=True, expires=1000.0 + 86400 * 30)], ["ok settings.key"]),
    ],
)
def test_keys(keys: list[Key], wanted: list[str]) -> None:
    """Missing, guessed, short, expiring; no finding has the secret in it."""
    findings = list(check_key(facts(keys=keys)))
    assert told(findings) == wanted
    for key in keys:
        assert not key.secret or key.secret.strip() not in str(findings)


# -- Docker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state": "absent"}, "Install Docker"),
        ({"state": "dangling"}, "Install Docker"),
        ({"state": "no_socket"}, "no socket"),
        ({"state": "refused"}, "systemctl start docker"),
        ({"state": "silent"}, "journalctl"),
        ({"state": "error", "detail": "x509: unknown"}, "x509: unknown"),
        (
            {"state": "absent", "others": ("unix:///home/me/.docker/run/docker.sock",)},
            "export DOCKER_HOST=unix:///home",
        ),
        ({"state": "forbidden", "group": 998, "user": 1000, "groups": (1000,)}, "usermod -aG docker"),
        ({"state": "forbidden", "group": 998, "user": 1000, "groups": (998,)}, "chmod 660"),
        ({"state": "forbidden", "user": 1000}, "folders above"),
    ],
)
def test_an_engine_that_cannot_be_used(changed: dict[str, Any], words: str) -> None:
    """Each way to miss it has a fix of its own."""
    one(check_engine(with_engine(**changed)), "docker.engine", "fail", words)


def test_the_engine_in_the_launcher() -> None:
    """In a container the fix is in .env."""
    found = with_engine(state="forbidden", group=998, user=1000, groups=(1000,))
    found = evolve(found, host=evolve(found.host, contained=True))
    one(check_engine(found), "docker.engine", "fail", "DOCKER_GID=998")
    absent = evolve(found, engine=evolve(found.engine, state="absent"))
    one(check_engine(absent), "docker.engine", "fail", "Mount it")


@pytest.mark.parametrize(
    ("state", "desktop", "words"),
    [
        ("absent", "running", "WSL integration is off"),
        ("dangling", "running", "(Ubuntu)"),
        ("absent", "installed", "Start Docker Desktop"),
        ("refused", "running", "Restart Docker Desktop"),
        ("absent", "absent", "Install Docker"),
    ],
)
def test_docker_desktop(state: str, desktop: str, words: str) -> None:
    """In WSL a missing socket is Docker Desktop's: not started, or not integrated with this distribution."""
    one(check_engine(on_wsl(with_engine(state=state), desktop=desktop)), "docker.engine", "fail", words)


def test_an_engine_that_nobody_needs() -> None:
    """Without a backend in Docker its absence is no failure."""
    found = facts(BackendSpec("a", runtime="process", command=("x",)), compose=ComposeFacts())
    found = evolve(found, engine=Engine("unix:///nonexistent", "absent"))
    assert told(check_engine(found)) == ["skipped docker.engine"]
    demo = evolve(facts(), settings=evolve(facts().settings, demo=True), engine=Engine("unix:///x", "absent"))
    assert told(check_engine(demo)) == ["skipped docker.engine"]


def test_an_engine_that_is_too_old() -> None:
    """API 1.41 is the oldest that the proxy speaks; a version that is none is not judged."""
    assert told(check_engine(with_engine(api_version="1.40"))) == ["ok docker.engine", "fail docker.version"]
    assert told(check_engine(with_engine(api_version="1.41"))) == ["ok docker.engine"]
    assert told(check_engine(with_engine(api_version=""))) == ["ok docker.engine"]


SERVICE = ComposeService("coder3b", "coder3b", "vllm/vllm-openai:v0.11.0", devices=DeviceRequest((), 1))


def composed(service: ComposeService = SERVICE, spec: BackendSpec = SPEC, **changed: Any) -> Facts:
    """A backend whose container Compose has yet to make."""
    found = facts(spec)
    compose = evolve(found.compose, services=(service,), **changed)
    return evolve(found, compose=compose, engine=evolve(found.engine, containers={}))


def test_the_compose_file() -> None:
    """A file that cannot be used fails, and so does a lack of Compose where it has to make a container."""
    assert told(check_compose(composed())) == ["ok docker.compose_file", "ok docker.compose"]
    broken = evolve(facts(), compose=ComposeFacts("c.yml", "c.yml: it is not valid YAML"))
    one(check_compose(broken), "docker.compose_file", "fail", "not valid YAML")
    one(check_compose(composed(command=None)), "docker.compose", "fail", "coder")
    assert told(check_compose(evolve(facts(), compose=ComposeFacts()))) == ["skipped docker.compose_file"]
    alone = evolve(facts(), compose=ComposeFacts("c.yml", services=(ComposeService("x"),)))
    assert told(check_compose(alone)) == ["ok docker.compose_file"]
    nothing = evolve(alone, settings=Settings(Config()))
    assert told(check_compose(nothing)) == ["warn docker.compose_file"]
    made = evolve(composed(command=None), engine=facts().engine)
    assert told(check_compose(made)) == ["ok docker.compose_file", "warn docker.compose"]


# -- backends ------------------------------------------------------------------------------------------


def test_containers() -> None:
    """One that is there, can be made by Compose, or from an image is well."""
    one(check_containers(facts()), "backends.containers", "ok", "coder (coder3b, exited)")
    one(check_containers(composed()), "backends.containers", "ok", "to be made")
    image = BackendSpec("a", container="llmproxy-a", image="vllm/vllm-openai:v1")
    one(check_containers(facts(image)), "backends.containers", "ok", "a (llmproxy-a, to be made)")
    assert told(check_containers(with_engine(state="absent"))) == ["skipped backends.containers"]


@pytest.mark.parametrize(
    ("there", "services", "words"),
    [
        ({"coder3b-1": Container("coder3b-1")}, (), "Did you mean 'coder3b-1'"),
        ({"llm-coder3b-1": Container("llm-coder3b-1", service="coder3b")}, (), "'llm-coder3b-1'"),
        ({}, (ComposeService("coder3b"),), "container_name: coder3b"),
        ({}, (), "COMPOSE_FILE"),
    ],
)
def test_names_that_match_no_container(
    there: dict[str, Container], services: tuple[ComposeService, ...], words: str
) -> None:
    """A near name, Compose's own name for the service, and a service without a name are told apart."""
    found = facts(compose=ComposeFacts("c.yml", services=services))
    found = evolve(found, engine=evolve(found.engine, containers=there))
    one(check_containers(found), "backends.containers", "fail", "no container 'coder3b'", words)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"state": "paused"}, "warn backends.containers"),
        ({"state": "dead"}, "fail backends.containers"),
        ({"state": "restarting"}, "fail backends.containers"),
        ({"restart": "unless-stopped"}, "warn backends.restart"),
    ],
)
def test_states_of_containers(changed: dict[str, Any], wanted: str) -> None:
    """States in which a container cannot be started, and restart policies that start it behind our back."""
    assert wanted in told(check_containers(with_container(**changed)))


def test_ports_that_clash() -> None:
    """Two routes on one port, one on the proxy's, one of another container, one of another program."""
    other = evolve(VLLM, name="chat", published=(Published("0.0.0.0", 8001, 8002),), args=())
    found = facts(SPEC, BackendSpec("chat", container="chat"))
    two = evolve(found, engine=evolve(found.engine, containers={"coder3b": VLLM, "chat": other}))
    one(check_ports(two), "backends.ports", "fail", "coder and chat both publish port 8001")
    one(
        check_ports(with_container(published=(Published("::", 8000, 8001),))),
        "backends.ports",
        "fail",
        "the proxy's own",
    )
    stranger = evolve(
        facts().engine, containers={"coder3b": VLLM, "web": evolve(other, name="web", state="running")}
    )
    one(check_ports(evolve(facts(), engine=stranger)), "backends.ports", "fail", "taken by the container web")
    busy = evolve(facts(), busy=frozenset({("127.0.0.1", 8001)}))
    one(check_ports(busy), "backends.ports", "fail", "ss -ltnp 'sport = :8001'")
    running = evolve(with_container(state="running"), busy=frozenset({("127.0.0.1", 8001)}))
    assert told(check_ports(running)) == ["ok backends.ports"]
    apart = evolve(two.engine.containers["chat"], published=(Published("127.0.0.2", 8001, 8002),))
    two = evolve(two, engine=evolve(two.engine, containers={"coder3b": VLLM, "chat": apart}))
    assert told(check_ports(two)) == ["ok backends.ports"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (facts(), "are free, or their own"),
        (evolve(facts(), host=HostFacts(contained=True)), "not to be seen"),
        (with_engine(state="absent", containers={}), "not to be seen"),
        (with_engine(local=False), "not to be seen"),
    ],
)
def test_ports_that_cannot_be_looked_at(found: Facts, words: str) -> None:
    """Nothing is claimed of a host that is not seen."""
    one(check_ports(found), "backends.ports", "ok", words)


def test_ports_that_are_mistaken() -> None:
    """The route's port has to be the server's, and what is published has to be that."""
    found = with_container(args=("vllm", "serve", "m", "--port", "8009"))
    one(check_ports(found), "backends.ports", "fail", "looks for port 8001", "listens on 8009")
    found = with_container(published=(Published("127.0.0.1", 8001, 8000),))
    one(check_ports(found), "backends.ports", "warn", "8001:8001")
    generic = evolve(SPEC, engine="generic")
    assert told(check_ports(with_container(generic, args=("x", "--port", "9")))) == ["ok backends.ports"]


def test_images() -> None:
    """One that has to be downloaded first is told, and versions that are none."""
    found = evolve(
        composed(),
        engine=evolve(composed().engine, images={SERVICE.image or "": Image(SERVICE.image or "", False)}),
    )
    one(check_images(found), "backends.images", "warn", "docker pull vllm/vllm-openai:v0.11.0")
    one(check_images(found), "versions.vllm", "ok", "v0.11.0 (coder)")
    for image, status in (
        ("vllm/vllm-openai", "warn"),
        ("vllm/vllm-openai:latest", "warn"),
        ("host:5000/vllm-openai", "warn"),
        ("host:5000/vllm-openai:v1", "ok"),
        ("vllm/vllm-openai@sha256:0", "ok"),
    ):
        assert told(check_images(with_container(image=image))) == [f"{status} versions.vllm"], image
    assert told(check_images(with_container(image="llama"))) == []


def test_programs_of_process_backends() -> None:
    """One that is not there is told by its route."""
    spec = BackendSpec("local", runtime="process", command=("llama-server",))
    assert told(check_programs(facts(spec))) == ["ok backends.programs"]
    missing = facts(spec)
    missing = evolve(missing, settings=evolve(missing.settings, missing_commands={"local": "llama-server"}))
    one(check_programs(missing), "backends.programs", "fail", "'llama-server'", "backends.local.command")


def test_what_is_read_of_compose_and_labels() -> None:
    """Mounts and ports as Compose writes them; what is none is left out."""
    assert read_mount("cache:/root/.cache") == Mount("cache", "/root/.cache", bind=False)
    assert read_mount("./models:/m:ro,z") == Mount("./models", "/m", read_only=True)
    assert read_mount("C:\\models:/m") == Mount("C:\\models", "/m")
    assert read_mount("/anonymous") is None
    assert read_published("8001:8000") == Published("0.0.0.0", 8001, 8000)
    assert read_published("[::1]:8001:8000") == Published("::1", 8001, 8000)
    for odd in ("8000", "9000-9005:8000-8005", "53:53/udp", "a:b", "", "٣:٣"):
        assert read_published(odd) is None


@given(strategies.text(), strategies.text())
def test_any_text_may_stand_in_a_compose_file(one_text: str, other: str) -> None:
    """Nothing breaks the reading of mounts and ports."""
    read_mount(one_text)
    read_published(f"{one_text}:{other}")
    read_endpoint(f"{one_text}:{other}")
    version_of(one_text)
    size_of(one_text)


def test_folders_of_docker_desktop() -> None:
    """Its engine tells a place within its own machine; the compose file has the one that is meant."""
    service = evolve(SERVICE, volumes=("/srv/llm/.cache:/root/.cache/huggingface", "named:/x"))
    found = with_container(mounts=(Mount("/run/desktop/mnt/host/x", "/root/.cache/huggingface"),))
    (known,) = known_backends(evolve(found, compose=evolve(found.compose, services=(service,))))
    assert known.mounts == (Mount("/srv/llm/.cache", "/root/.cache/huggingface"),)


# -- GPU -----------------------------------------------------------------------------------------------


def test_who_wants_a_gpu() -> None:
    """A container, a service or an image says so; where it is left open nothing is demanded."""
    assert wants_gpu(known_backends(facts())) == ["coder"]
    assert wants_gpu(known_backends(with_container(gpu=None))) == []
    assert wants_gpu(known_backends(composed())) == ["coder"]
    assert wants_gpu(known_backends(composed(evolve(SERVICE, devices=None)))) == []
    image = BackendSpec("a", container="x", image="vllm/vllm-openai:v1")
    assert wants_gpu(known_backends(facts(image))) == ["a"]
    assert wants_gpu(known_backends(facts(evolve(image, gpus=())))) == []


@pytest.mark.parametrize(
    ("gpu", "wsl", "wanted", "words"),
    [
        (GpuFacts(error="no driver"), False, "fail gpu.driver", "NVIDIA's driver"),
        (GpuFacts(error="no driver"), True, "fail gpu.driver", "/dev/dxg"),
        (
            GpuFacts(("/dev/dxg",), error="NVML does not answer"),
            True,
            "warn gpu.driver",
            "NVML does not answer",
        ),
        (GpuFacts(("/dev/dxg",), "570.1", None, (("RTX", 8 * GIB),)), True, "ok gpu.driver", "RTX (8.0 GiB)"),
    ],
)
def test_the_driver(gpu: GpuFacts, wsl: bool, wanted: str, words: str) -> None:
    """In WSL it is Windows' own that is missing."""
    found = evolve(on_wsl() if wsl else facts(), gpu=gpu)
    assert told(check_driver(found)) == [wanted]
    assert words in str(list(check_driver(found)))


def test_a_driver_that_nobody_needs() -> None:
    """No failure without a backend that asks for a GPU, in a container, or with an engine elsewhere."""
    none = GpuFacts(error="NVML finds no GPU")
    assert told(check_driver(evolve(with_container(gpu=False), gpu=none))) == ["skipped gpu.driver"]
    contained = evolve(facts(), gpu=none, host=HostFacts(contained=True))
    assert told(check_driver(contained)) == ["skipped gpu.driver"]
    assert told(check_driver(evolve(with_engine(local=False), gpu=none))) == ["skipped gpu.driver"]


@pytest.mark.parametrize(
    ("engine", "tool", "wanted"),
    [
        ({"runtimes": ("runc", "nvidia")}, None, "ok"),
        ({"runtimes": ("runc",), "cdi": ("nvidia.com/gpu=all",)}, None, "ok"),
        ({"runtimes": ("runc",), "cdi": ("amd.com/gpu=0",)}, None, "fail"),
        ({"runtimes": ("runc",)}, "nvidia-container-cli", "ok"),
        ({"runtimes": ("runc",), "local": False}, "nvidia-container-cli", "warn"),
        ({"runtimes": ()}, None, "fail"),
        ({"runtimes": ("runc",), "system": "Docker Desktop"}, None, "fail"),
        ({"state": "absent"}, None, "skipped"),
    ],
)
def test_the_way_into_containers(engine: dict[str, Any], tool: str | None, wanted: str) -> None:
    """NVIDIA's runtime, CDI, or the toolkit on this machine."""
    found = with_engine(**engine)
    findings = list(check_gpu_runtime(evolve(found, gpu=evolve(found.gpu, tool=tool))))
    assert told(findings) == [f"{wanted} gpu.runtime"]


def test_no_gpu_runtime_and_nobody_who_needs_one() -> None:
    """That is no failure."""
    found = with_container(gpu=False)
    found = evolve(found, engine=evolve(found.engine, runtimes=("runc",)))
    assert told(check_gpu_runtime(found)) == ["skipped gpu.runtime"]


def test_a_driver_that_is_too_old_for_an_image() -> None:
    """What the image asks for is compared as a version, not as a number."""
    for cuda, wanted in (
        ((12, 9), "warn"),
        ((12, 8), "ok"),
        ((12, 4), "ok"),
        ((13, 0), "warn"),
        (None, None),
    ):
        found = with_engine(images={VLLM.image: Image(VLLM.image, True, cuda)})
        assert told(check_cuda(found)) == ([f"{wanted} gpu.cuda"] if wanted else [])
        assert told(check_cuda(evolve(found, gpu=GpuFacts()))) == []


# -- folders, disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "wsl", "wanted"),
    [
        (Folder("/srv/x"), False, "ok"),
        (Folder("/srv/x", "missing"), False, "warn"),
        (Folder("/srv/x", "hidden"), False, "skipped"),
        (Folder("/srv/x", "file"), False, "ok"),
        (Folder("/srv/x", read_only=True), False, "fail"),
        (Folder("/srv/x", writable=False), False, "ok"),
        (Folder("/mnt/c/models", filesystem="9p"), True, "warn"),
        (Folder("/mnt/d", filesystem="v9fs"), True, "warn"),
        (Folder("/mnt/c/models"), True, "warn"),
        (Folder("/mnt/data/models", filesystem="ext4"), True, "ok"),
        (Folder("/mnt/c/models", filesystem="ext4"), False, "ok"),
        (Folder("/srv/x", filesystem="ntfs3"), False, "warn"),
    ],
)
def test_mounted_folders(folder: Folder, wsl: bool, wanted: str) -> None:
    """Missing, read-only, or on a disk of Windows; root in a container may write where we may not."""
    found = evolve(on_wsl() if wsl else facts(), folders={"/srv/llm/.cache": folder})
    assert told(check_folders(found)) == [f"{wanted} folders.mounts"]


@pytest.mark.parametrize(
    ("user", "owner", "mode", "wanted"),
    [
        ("1000", 0, 0o755, "warn"),
        ("1000:1000", 0, 0o755, "warn"),
        ("1000", 1000, 0o755, "ok"),
        ("1000", 1000, 0o555, "warn"),
        ("1000", 0, 0o777, "ok"),
        ("1000", 0, 0o775, "ok"),
        ("0", 1000, 0o700, "ok"),
        ("vllm", 0, 0o700, "ok"),
        ("", 1000, 0o700, "ok"),
    ],
)
def test_who_may_write(user: str, owner: int, mode: int, wanted: str) -> None:
    """A container that does not run as root needs a folder that is its user's."""
    found = evolve(
        with_container(user=user), folders={"/srv/llm/.cache": Folder("/srv/x", owner=owner, mode=mode)}
    )
    assert told(check_folders(found)) == [f"{wanted} folders.mounts"]


def test_a_folder_of_weights() -> None:
    """A missing one is a failure only where a command names files in it."""
    weights = Mount("/srv/llm/weights", "/weights", read_only=True)
    gone = {"/srv/llm/weights": Folder("/srv/llm/weights", "missing")}
    unused = evolve(with_container(mounts=(weights,)), folders=gone)
    assert told(check_folders(unused)) == ["ok folders.mounts"]
    used = evolve(with_container(mounts=(weights,), args=("vllm", "serve", "/weights/m")), folders=gone)
    one(check_folders(used), "folders.mounts", "fail", "coder", "sudo mkdir -p /srv/llm/weights")


def test_folders_that_cannot_be_seen() -> None:
    """In a container, and with an engine elsewhere, nothing is claimed; volumes of Docker's are its own."""
    contained = evolve(facts(), host=HostFacts(contained=True))
    assert told(check_folders(contained)) == ["skipped folders.mounts"]
    assert told(check_folders(with_engine(local=False))) == ["skipped folders.mounts"]
    assert told(check_folders(with_container(mounts=(Mount("v", "/x", bind=False),)))) == []


@pytest.mark.parametrize(
    ("disk", "wanted"),
    [
        (DiskFacts("cache", "/c", 100 * GIB, 200 * GIB), "ok"),
        (DiskFacts("cache", "/c", 10 * GIB, 200 * GIB), "warn"),
        (DiskFacts("cache", "/c", GIB, 200 * GIB), "fail"),
        (DiskFacts("cache", "/c", 100 * GIB, 200 * GIB, full_of_files=True), "fail"),
        (DiskFacts("docker", "/d", 24 * GIB, 200 * GIB), "warn"),
        (DiskFacts("state", "/s", GIB, 200 * GIB), "ok"),
        (DiskFacts("state", "/s", 0, 0), "fail"),
        (DiskFacts("windows", "/mnt/c", 3 * GIB, 200 * GIB), "warn"),
    ],
)
def test_disks(disk: DiskFacts, wanted: str) -> None:
    """How little is too little depends on what is to be kept there."""
    assert told(check_disks(evolve(facts(), disks=(disk,)))) == [f"{wanted} disk.{disk.what}"]


# -- network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "port", "interface", "shut"),
    [
        ("tcp:8000", 8000, "", False),
        ("tcp:8000:interface=127.0.0.1", 8000, "127.0.0.1", True),
        ("tcp:port=8000:interface=0.0.0.0", 8000, "0.0.0.0", False),
        ("tcp6:8000:interface=\\:\\:1", 8000, "::1", True),
        ("ssl:8443:privateKey=k.pem", 8443, "", False),
        ("haproxy:tcp:8000:127.0.0.1", 8000, "127.0.0.1", True),
        ("tcp:8000:50:127.0.0.1", 8000, "50", False),
        ("unix:/run/x.sock", None, "", True),
        ("systemd:domain=INET:index=0", None, "", False),
        ("tcp:http", None, "", False),
        ("", None, "", False),
    ],
)
def test_endpoints(text: str, port: int | None, interface: str, shut: bool) -> None:
    """Twisted's endpoint strings; what systemd hands over is not known to be shut."""
    found = read_endpoint(text)
    assert (found.port, found.interface, found.shut) == (port, interface, shut)


def listening(*places: str, found: Facts | None = None) -> Facts:
    """A proxy that listens there."""
    found = found or facts()
    assert found.settings.config is not None
    config = evolve(found.settings.config, listen=places)
    return evolve(found, settings=evolve(found.settings, config=config))


def test_where_it_listens() -> None:
    """On loopback the LAN is not let in; without a key it never is; in a container nobody is."""
    local = "tcp:8000:interface=127.0.0.1"
    one(
        check_listening(listening("tcp:8000")),
        "network.listen",
        "ok",
        "--from-client http://192.168.1.5:8000",
    )
    one(check_listening(listening(local)), "network.listen", "warn", "LLMPROXY_LISTEN=tcp:8000")
    one(check_listening(listening(local, found=facts(keys=()))), "network.listen", "warn", "VLLM_API_KEY")
    assert told(check_listening(listening(local, "tcp:8000"))) == ["ok network.listen"]
    contained = evolve(facts(), host=HostFacts(contained=True))
    assert told(check_listening(listening(local, found=contained))) == ["fail network.listen"]
    assert told(check_listening(listening("tcp:8000", found=contained))) == ["ok network.listen"]
    far = evolve(facts(), proxy=proxy(target=Target(False, "192.168.1.9", 8000, "")))
    assert told(check_listening(far)) == ["skipped network.listen"]


def published(address: str, **engine: Any) -> Facts:
    """The launcher's container publishes the proxy's port there."""
    launcher = Container("launcher", "running", published=(Published(address, 8000, 8000),))
    return with_engine(containers={"coder3b": VLLM, "launcher": launcher}, **engine)


def test_a_launcher_that_publishes() -> None:
    """What counts is where its port is published, not what this folder's settings say."""
    one(check_listening(published("127.0.0.1")), "network.listen", "warn", "LAUNCHER_BIND=0.0.0.0")
    assert told(check_listening(published("0.0.0.0"))) == ["ok network.listen"]
    desktop = on_wsl(published("0.0.0.0", system="Docker Desktop"), networking="nat")
    one(check_listening(desktop), "network.listen", "ok", "Windows itself")


@pytest.mark.parametrize(
    ("networking", "config", "wanted"),
    [
        ("mirrored", {}, "ok"),
        ("nat", {"networkingmode": "mirrored"}, "warn"),
        ("virtioproxy", {}, "skipped"),
        (None, {"networkingmode": "Mirrored"}, "ok"),
        (None, {}, "warn"),
        (None, None, "skipped"),
    ],
)
def test_the_network_of_wsl(networking: str | None, config: dict[str, str] | None, wanted: str) -> None:
    """Behind NAT the LAN does not get there; what runs counts, then .wslconfig, whose default is NAT."""
    found = on_wsl(networking=networking, config=config)
    assert told(check_listening(found)) == [f"{wanted} network.listen"]
    if wanted == "warn":
        one(check_listening(found), "network.listen", "warn", "networkingMode=mirrored", "listenport=8000")


@pytest.mark.parametrize(
    ("windows", "wanted"),
    [
        (WindowsFacts(0, ("Private",), ("Private",)), ["ok network.profile", "ok network.firewall"]),
        (WindowsFacts(0, ("Public",), ("Private",)), ["warn network.profile", "ok network.firewall"]),
        (
            WindowsFacts(0, ("Public", "Private"), ("Domain", "Private")),
            ["ok network.profile", "ok network.firewall"],
        ),
        (WindowsFacts(0, (), ()), ["warn network.firewall"]),
        (WindowsFacts(0, (), (), "Allow"), ["ok network.firewall"]),
        (WindowsFacts(0, (), (), "Block"), ["warn network.firewall"]),
        (WindowsFacts(0, (), ("Any",)), ["warn network.firewall"]),
        (WindowsFacts(0, (), None), ["skipped network.firewall"]),
        (WindowsFacts(error="interop is off"), ["skipped network.firewall"]),
        (None, ["skipped network.firewall"]),
    ],
)
def test_the_firewall_of_windows(windows: WindowsFacts | None, wanted: list[str]) -> None:
    """No rule, a Public network, or a rule that lets the whole world in."""
    assert told(check_firewall(on_wsl(windows=windows))) == wanted


def test_the_rule_to_make_is_told() -> None:
    """With the proxy's own port, for Private networks; in mirrored mode for Hyper-V's firewall, too."""
    found = on_wsl(windows=WindowsFacts(0, (), (), "Block"))
    text = one(check_firewall(found), "network.firewall", "warn", "-LocalPort 8000 -Profile Private").fix
    assert "New-NetFirewallHyperVRule" in str(text)
    assert "'{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}'" in str(text)
    assert told(check_firewall(facts())) == []


# -- WSL, clock, versions ------------------------------------------------------------------------------


def test_wsl() -> None:
    """Its version, memory and systemd."""
    assert told(check_wsl(facts())) == []
    assert told(check_wsl(on_wsl(version=1))) == ["fail wsl.version"]
    assert told(check_wsl(on_wsl())) == ["ok wsl.version", "ok wsl.memory", "ok wsl.systemd"]
    assert "warn wsl.systemd" in told(check_wsl(on_wsl(systemd=False)))
    assert "skipped wsl.systemd" in told(check_wsl(on_wsl(systemd=False, desktop="running")))
    little = evolve(facts(), host=HostFacts(memory=4 * GIB))
    one(check_wsl(on_wsl(little, config={"memory": "4GB"})), "wsl.memory", "warn", "memory=4GB", "4.0 GiB")
    one(check_wsl(on_wsl(config={"memory": "lots"})), "wsl.memory", "warn", "no size")
    assert "skipped wsl.memory" in told(check_wsl(on_wsl(evolve(facts(), host=HostFacts()))))


def test_the_clock() -> None:
    """It is compared with Windows', the engine's, the proxy's, and the time of installation."""
    one(check_clock(facts()), "clock.plausible", "ok", "the Docker engine")
    late = evolve(facts(), clock=ClockFacts(0.0, built=1e9))
    assert "fail clock.plausible" in told(check_clock(late))
    slept = on_wsl(windows=WindowsFacts(apart=5400.0))
    one(check_clock(slept), "clock.windows", "warn", "5400 s ahead", "hwclock -s")
    one(check_clock(with_engine(apart=-60.0)), "clock.docker", "warn", "60 s behind")
    dated = proxy(health=Answer(200, {"date": "Thu, 01 Jan 1970 01:00:00 GMT"}, b"{}", 0.0))
    assert "warn clock.proxy" in told(check_clock(evolve(facts(), proxy=dated)))
    assert "warn clock.synchronized" in told(check_clock(evolve(facts(), clock=ClockFacts(1.0, None, False))))
    assert "warn clock.synchronized" not in told(
        check_clock(evolve(on_wsl(), clock=ClockFacts(1.0, None, False)))
    )
    assert told(check_clock(with_engine(apart=None))) == ["ok clock.plausible"]


def test_versions() -> None:
    """Versions are compared as such; a package that is missing is told."""
    packages = (Package("Twisted", "26.10.0", "26.10"), Package("attrs", "24.10", "24.2"))
    one(check_versions(evolve(facts(), packages=packages)), "versions.python", "ok", "Twisted 26.10.0")
    old = evolve(facts(), packages=(Package("attrs", "24.1.0", "24.2"),))
    one(check_versions(old), "versions.packages", "fail", "24.2 is needed")
    gone = evolve(facts(), packages=(Package("attrs", None, "24.2"),))
    one(check_versions(gone), "versions.packages", "fail", "not installed")
    assert told(check_versions(evolve(facts(), python=(3, 10)))) == ["fail versions.python"]


# -- the running proxy ---------------------------------------------------------------------------------


def asked(**changed: Any) -> list[Finding]:
    """What is said of a proxy."""
    return list(check_proxy(evolve(facts(), proxy=proxy(**changed))))


def test_a_proxy_that_is_not_there() -> None:
    """Nobody, somebody else, a program that does not answer, and a launcher that has ended are told apart."""
    refused = Answer(error="refused")
    one(asked(health=refused), "proxy.answers", "fail", "make run")
    other = answer(200, "hello", server="nginx")
    one(asked(health=other), "proxy.answers", "fail", "Something else", "nginx")
    busy = evolve(facts(), proxy=proxy(health=Answer(error="timeout")), busy=frozenset({("127.0.0.1", 8000)}))
    one(check_proxy(busy), "proxy.answers", "fail", "ss -ltnp")
    ended = with_engine(containers={"launcher": Container("launcher", "exited")})
    one(check_proxy(evolve(ended, proxy=proxy(health=refused))), "proxy.answers", "fail", "docker logs")


def test_a_proxy_that_is_not_well() -> None:
    """Its own words are told."""
    sick = answer(503, {"status": "the scheduler fails"}, server="llmproxy/1.0")
    one(asked(health=sick), "proxy.answers", "fail", "the scheduler fails")
    unready = answer(503, {"status": "not ready", "reason": "no Docker"})
    one(asked(ready=unready), "proxy.ready", "fail", "no Docker")


def test_a_proxy_of_another_version() -> None:
    """That happens when the image was not built again."""
    one(asked(), "proxy.version", "ok")
    older = answer(200, {"status": "ok"}, server="llmproxy/0.9")
    one(asked(health=older), "proxy.version", "warn", "0.9")
    between = answer(200, {"status": "ok"}, server="Caddy")
    one(asked(health=between), "proxy.version", "skipped")


@pytest.mark.parametrize(
    ("status", "keyed", "wanted"),
    [(401, True, "fail"), (401, False, "warn"), (403, True, "warn"), (200, True, "ok")],
)
def test_its_key(status: int, keyed: bool, wanted: str) -> None:
    """Another key than ours fails; one that is no administrator's is a warning."""
    found = asked(backends=answer(status, {"backends": []}), keyed=keyed)
    one(found, "proxy.key", wanted)


def test_a_proxy_without_a_key() -> None:
    """On another machine everybody may use it."""
    far = Target(False, "192.168.1.9", 8000, "")
    found = [each for each in asked(shut=answer(200), target=far) if each.status == "fail"]
    assert told(found) == ["fail proxy.key"]


def test_backends_that_have_failed() -> None:
    """Each with its diagnosis and its hint; odd answers are no reason to fail oneself."""
    failure = {"message": "CUDA out of memory.", "hint": "Lower --gpu-memory-utilization."}
    failed = {"name": "coder", "state": "failed", "last_failure": failure}
    found = asked(backends=answer(200, {"backends": [failed, 3, {"name": "chat", "state": "ready"}]}))
    one(
        found,
        "proxy.backends",
        "fail",
        "coder",
        "CUDA out of memory.",
        "Lower --gpu",
        "llmproxy restart coder",
    )
    bare = asked(
        backends=answer(200, {"backends": [{"name": "x", "state": "failed", "last_failure": "odd"}]})
    )
    one(bare, "proxy.backends", "fail", "does not say why")
    unfit = {"name": "big", "state": "absent", "refused": "It needs 40 GiB."}
    found = asked(backends=answer(200, {"backends": [unfit]}))
    one(found, "proxy.backends", "fail", "It needs 40 GiB.")
    one(asked(backends=answer(200, [])), "proxy.backends", "fail")
    one(asked(backends=Answer(error="timeout")), "proxy.backends", "fail", "timeout")
