"""The proxy that runs.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmproxy.doctor.doctor_client import is_loopback, judge_ready
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn

__all__ = ["check_proxy"]

START = "make run, or docker compose --profile launcher up -d launcher"


def check_proxy(facts: Facts) -> Iterator[Finding]:
    """Whether it is there, ready, ours, and well."""
    proxy = facts.proxy
    health, base = proxy.health, proxy.target.base
    if not proxy.answers:
        yield _absent(facts)
        return
    if health.status == 200:
        yield ok("proxy.answers", f"llmproxy answers at {base}.")
    else:
        text = f"llmproxy answers at {base}, but is not well: {health.document.get('status')}."
        yield fail("proxy.answers", text, "Look at its log (docker logs launcher), and restart it.")
    yield from _version(facts)
    ready = judge_ready(proxy.ready)._replace(check="proxy.ready")
    yield (
        ready
        if ready.fix is None
        else ready._replace(fix="See what is said of Docker above, and the proxy's log.")
    )
    if proxy.shut.status == 200 and not is_loopback(proxy.target.host):
        text = "Everybody who reaches the proxy may use it: no key is asked for."
        yield fail("proxy.key", text, "Set VLLM_API_KEY (openssl rand -hex 32), and restart it.")
    yield from _backends(facts)


def _absent(facts: Facts) -> Finding:
    proxy = facts.proxy
    base, error = proxy.target.base, proxy.health.error
    if error is None:
        server = proxy.health.headers.get("server")
        who = f" ({server})" if server else ""
        text = f"Something else answers at {base}{who}, with {proxy.health.status}."
        return fail(
            "proxy.answers", text, "Set LLMPROXY_URL to where llmproxy listens, or free that port for it."
        )
    if (proxy.target.host, proxy.target.port) in facts.busy and error != "refused":
        port = proxy.target.port
        fix = (
            f"See which (sudo ss -ltnp 'sport = :{port}'); end it, or set LLMPROXY_URL to where"
            " llmproxy listens."
        )
        return fail("proxy.answers", f"Another program has port {port}, and does not answer ({error}).", fix)
    launcher = facts.engine.containers.get("launcher")
    if launcher is not None and launcher.state not in ("running", "created"):
        text = f"llmproxy does not answer at {base} ({error}); its container launcher is {launcher.state}."
        return fail("proxy.answers", text, "docker logs --tail 20 launcher tells why; docker start launcher.")
    text = f"llmproxy does not answer at {base} ({error})."
    return fail("proxy.answers", text, f"Start it ({START}), or set LLMPROXY_URL to where it listens.")


def _version(facts: Facts) -> Iterator[Finding]:
    name, _, version = facts.proxy.health.headers.get("server", "").partition("/")
    if name != "llmproxy":
        yield skipped("proxy.version", "Its version is not told: another server stands in between.")
    elif version == facts.version:
        yield ok("proxy.version", f"It is of the same version as this command ({version}).")
    else:
        yield warn(
            "proxy.version",
            f"It is llmproxy {version}, and this command {facts.version}.",
            "Restart it, with its image built again (docker compose build launcher), or use its own command"
            " (docker exec launcher llmproxy doctor).",
        )


def _backends(facts: Facts) -> Iterator[Finding]:
    answer, keyed = facts.proxy.backends, facts.proxy.keyed
    document = answer.document
    if answer.status == 401:
        text = "Its key is another one." if keyed else "It asks for a key, and none is set here."
        fix = (
            "Set LLMPROXY_ADMIN_KEY (or VLLM_API_KEY) as in its .env; after a change there,"
            " restart the proxy."
        )
        yield (fail if keyed else warn)("proxy.key", text, fix)
    elif answer.status == 403:
        text = "The key here is no administrator's: how the backends are cannot be asked."
        yield warn("proxy.key", text, "Set LLMPROXY_ADMIN_KEY to an administrator's key.")
    elif answer.status == 200 and isinstance(document, dict) and isinstance(document.get("backends"), list):
        if keyed:
            yield ok("proxy.key", "The key is accepted.")
        yield from _states([each for each in document["backends"] if isinstance(each, dict)])
    else:
        text = f"/api/backends is answered with {answer.error or answer.status}."
        yield fail("proxy.backends", text, "Look at the proxy's log.")


def _states(backends: list[Mapping[str, Any]]) -> Iterator[Finding]:
    ill = [each for each in backends if each.get("state") == "failed"]
    for each in ill:
        name = str(each.get("name"))
        failure = each.get("last_failure")
        told: Mapping[str, Any] = failure if isinstance(failure, dict) else {}
        text = f"Backend {name} has failed: {told.get('message') or 'the proxy does not say why'}"
        hint = told.get("hint") or f"llmproxy logs {name} tells more."
        yield fail("proxy.backends", text, f"{hint} Then: llmproxy restart {name}.")
    for each in backends:
        if each.get("refused"):
            text = f"Backend {each.get('name')} cannot be started: {each['refused']}"
            yield fail("proxy.backends", text, "llmproxy gpus has the sums; lower --gpu-memory-utilization.")
    if not ill:
        states = ", ".join(f"{each.get('name')} {each.get('state')}" for each in backends)
        yield ok("proxy.backends", f"No backend has failed: {states or 'there are none'}.")
