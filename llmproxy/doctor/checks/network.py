"""Where the proxy listens, and whether the LAN gets there.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import frozen

from llmproxy.doctor.doctor_client import firewall_fix, is_loopback
from llmproxy.doctor.facts import Facts, WindowsFacts, WslFacts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn

__all__ = ["Listening", "check_firewall", "check_listening", "read_endpoint"]

MIRRORED = (
    "In .wslconfig of your Windows user: [wsl2] networkingMode=mirrored; then wsl"
    " --shutdown (Windows 11 22H2 or"
    " newer). Or forward the port: netsh interface portproxy add v4tov4 listenport={port} connectport={port}"
    " connectaddress=(the address of WSL)."
)
HYPERV = (
    "PowerShell as administrator: New-NetFirewallHyperVRule -Name llmproxy -DisplayName"
    " llmproxy -Direction Inbound"
    " -VMCreatorId '{{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}}' -Protocol TCP -LocalPorts {port} -Action Allow"
)
_POSITIONS = {"tcp": 2, "tcp6": 3, "ssl": 5}


@frozen
class Listening:
    """One endpoint; its port is None for what is no TCP of its own (``unix:``, ``systemd:``)."""

    kind: str
    port: int | None = None
    interface: str = ""

    @property
    def shut(self) -> bool:
        """Whether only this machine gets there."""
        return self.kind == "unix" or is_loopback(self.interface)


def read_endpoint(description: str) -> Listening:
    """What a Twisted endpoint string says.

    >>> read_endpoint("tcp:8000:interface=127.0.0.1")
    Listening(kind='tcp', port=8000, interface='127.0.0.1')
    """
    kind, _, rest = description.partition(":")
    if kind == "haproxy":
        return read_endpoint(rest)
    if kind not in _POSITIONS:
        return Listening(kind)
    # A part ends at a colon that no backslash stands before.
    parts = [part.replace("\\:", ":") for part in re.findall(r"(?:^|:)((?:\\.|[^:\\])*)", description)[1:]]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    port = named.get("port", plain[0] if plain else "")
    place = _POSITIONS[kind] - 1
    interface = named.get("interface", plain[place] if len(plain) > place else "")
    return Listening(kind, int(port) if re.fullmatch("[0-9]{1,5}", port) else None, interface)


def _publishers(facts: Facts) -> list[tuple[str, str]]:
    """Containers that publish the proxy's port, and at which address."""
    port = facts.proxy.target.port
    return [
        (each.name, one.address)
        for each in facts.engine.containers.values()
        if each.state == "running"
        for one in each.published
        if one.port == port
    ]


def check_listening(facts: Facts) -> Iterator[Finding]:
    """Whether it listens for the LAN at all."""
    name, port = "network.listen", facts.proxy.target.port
    if not is_loopback(facts.proxy.target.host):
        yield skipped(name, f"The proxy is looked for on another machine ({facts.proxy.target.base}).")
        return
    publishers = [] if facts.host.contained else _publishers(facts)
    if publishers:
        container = publishers[0][0]
        if all(is_loopback(address) for _, address in publishers):
            text = f"Container {container} publishes port {port} on loopback: only this machine gets there."
            yield warn(
                name,
                text,
                "Set LAUNCHER_BIND=0.0.0.0 in .env, and bring it up again, if the LAN is to be let in.",
            )
            return
        yield from _from_outside(
            facts, f"Container {container} publishes port {port} for the network", published=True
        )
        return
    config = facts.settings.config
    if config is None:
        return
    places = [read_endpoint(each) for each in config.listen]
    told = ", ".join(config.listen)
    if all(place.shut for place in places):
        yield from _shut(facts, told)
        return
    yield from _from_outside(facts, f"The proxy listens for the network ({told})", published=False)


def _shut(facts: Facts, told: str) -> Iterator[Finding]:
    name, text = "network.listen", f"The proxy listens for this machine only ({told})."
    config = facts.settings.config
    if facts.host.contained:
        fix = "Listen on all addresses in the container (LLMPROXY_LISTEN=tcp:8000), and set a key."
        yield fail(name, f"{text} In a container that is nobody.", fix)
    elif config is not None and not config.keys:
        yield warn(
            name, text, "Set a key (VLLM_API_KEY) if the LAN is to be let in: without one it never is."
        )
    else:
        port = facts.proxy.target.port
        yield warn(
            name, text, f"Use LLMPROXY_LISTEN=tcp:{port} (or --listen tcp:{port}) if the LAN is to be let in."
        )


def _from_outside(facts: Facts, text: str, *, published: bool) -> Iterator[Finding]:
    name, port, wsl = "network.listen", facts.proxy.target.port, facts.host.wsl
    if facts.host.contained:
        yield ok(name, f"{text}; whether it is published is seen outside of this container.")
    elif wsl is None:
        where = f": llmproxy doctor --from-client http://{facts.host.lan}:{port}" if facts.host.lan else ""
        yield ok(name, f"{text}; see from another machine whether it gets there{where}.")
    elif published and facts.engine.desktop:
        yield ok(name, f"{text}; Docker Desktop has Windows itself listen.")
    elif wsl.networking == "mirrored" or (wsl.networking is None and _configured(wsl) == "mirrored"):
        yield ok(name, f"{text}, and WSL has the addresses of Windows (mirrored).")
    elif wsl.networking == "nat" or (wsl.networking is None and wsl.config is not None):
        text = f"{text}, but WSL is behind NAT: the LAN does not get there, only Windows does."
        yield warn(name, text, MIRRORED.format(port=port))
    else:
        told = f" ({wsl.networking})" if wsl.networking else ""
        yield skipped(
            name, f"{text}; how WSL's network is set up{told} does not tell whether the LAN gets there."
        )


def _configured(wsl: WslFacts) -> str:
    return (wsl.config or {}).get("networkingmode", "nat").lower()


def check_firewall(facts: Facts) -> Iterator[Finding]:
    """The firewall of Windows, and what it takes the network for."""
    wsl, port = facts.host.wsl, facts.proxy.target.port
    if wsl is None:
        return
    windows = wsl.windows or WindowsFacts(error="Windows was not asked")
    if windows.networks:
        if all(one == "Public" for one in windows.networks):
            yield warn(
                "network.profile",
                "Windows takes the network for a Public one, where rules for Private ones do not count.",
                "Windows Settings, Network & Internet, the connection: Private network.",
            )
        else:
            yield ok("network.profile", f"Windows is in these networks: {', '.join(windows.networks)}.")
    if windows.allowed is None:
        yield skipped(
            "network.firewall",
            f"The firewall of Windows could not be asked ({windows.error or 'no rights to read its rules'}).",
            f"Look at it there. {firewall_fix(port)}",
        )
    elif not {"Private", "Any", "Domain", "Public"} & set(windows.allowed):
        if windows.hyperv == "Allow" and wsl.networking == "mirrored":
            yield ok("network.firewall", "Hyper-V's firewall lets in what comes for WSL.")
            return
        fix = firewall_fix(port)
        if wsl.networking == "mirrored" and windows.hyperv is not None:
            fix = f"{fix} {HYPERV.format(port=port)}"
        yield warn("network.firewall", f"No rule of the Windows firewall lets port {port} in.", fix)
    elif "Public" in windows.allowed or "Any" in windows.allowed:
        text = f"A rule lets port {port} in on Public networks, too."
        yield warn("network.firewall", text, "Restrict it: Set-NetFirewallRule ... -Profile Private.")
    else:
        yield ok(
            "network.firewall",
            f"A rule of the Windows firewall lets port {port} in ({', '.join(windows.allowed)}).",
        )
