#!/usr/bin/env python3
"""Whether llmproxy answers as it should, seen from here: what to check after a rebuild, from another machine.

This file stands alone.  Copy it to a client and run it there (Python 3.8 or newer, nothing to install)::

    python3 doctor_client.py http://192.168.1.5:8000 --model coder3b

It is also ``llmproxy doctor --from-client URL``.  The key is read from the environment (``VLLM_API_KEY``, or
what ``--key-env`` names) and never shown.  Exit status: 0 all well, or warnings only; 1 something fails;
2 wrong usage.
"""

from __future__ import annotations

import argparse
import email.utils
import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = [
    "Answer",
    "Finding",
    "Target",
    "UsageError",
    "ask",
    "as_document",
    "examine",
    "main",
    "parse_target",
]

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"

TIMEOUT = 10.0
"""Seconds for each step that wakes no model."""
PATIENCE = 600.0
"""Seconds for a completion: it may have to start the model."""
TOKENS = 64
"""Enough that one can see whether they come one by one."""
EXPIRES_SOON = 14 * 86400
SKEW = 30.0
"""Seconds that two clocks may be apart: a date in HTTP has no fractions, and its answer takes a while."""
INSTANT = 0.15
"""An answer that is whole within so many seconds tells nothing about what is between."""
FASTEST = 3000.0
"""Events a second that no model writes into one stream: they had been kept somewhere."""


class Finding(NamedTuple):
    """What one check has found.

    :ivar check: its name; what stands before the dot is its section.
    :ivar status: ``ok``, ``warn``, ``fail`` or ``skipped``.
    :ivar finding: one line: how it is.
    :ivar fix: one line: what to do about it.
    """

    check: str
    status: str
    finding: str
    fix: str | None = None


class UsageError(Exception):
    """The command line asks for something that cannot be."""


class Target(NamedTuple):
    """Where the proxy is."""

    tls: bool
    host: str
    port: int
    prefix: str

    @property
    def base(self) -> str:
        """As a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


class Attempt(NamedTuple):
    """A try to connect; ``error`` is ``refused``, ``timeout``, ``unreachable`` or other words."""

    address: str
    seconds: float
    error: str | None


class Answer(NamedTuple):
    """What was answered; ``error`` says why nothing was.

    :ivar headers: by lower-case name.
    :ivar at: POSIX time at which it came.
    """

    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    at: float = 0.0
    error: str | None = None

    @property
    def document(self) -> Any:
        """The body's JSON, or None."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Stream(NamedTuple):
    """How a streamed completion came.

    :ivar head_after: seconds until its head was there.
    :ivar reads: for each read, the seconds since the request and how many events with content it brought.
    :ivar heard: seconds until the last heartbeat, if one came.
    :ivar broken: the message of an ``error`` event.
    """

    answer: Answer
    head_after: float = 0.0
    reads: tuple[tuple[float, int], ...] = ()
    heard: float | None = None
    done: bool = False
    broken: str | None = None


class Certificate(NamedTuple):
    """What TLS told; ``error`` when the certificate was not accepted or TLS failed."""

    until: float | None = None
    error: str | None = None


def parse_target(url: str) -> Target:
    """Read an address as people write it: without a scheme it is http, and ``/v1`` at its end is left away.

    :raises UsageError: it is none, or has a secret in it.
    """
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UsageError("the URL is none; it must be an address such as http://192.168.1.5:8000") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "the URL must not have a user or password; keys are read from the environment (--key-env)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError("the URL is none; it must be an address such as http://192.168.1.5:8000")
    prefix = parts.path.rstrip("/")
    if prefix == "/v1" or prefix.endswith("/v1"):
        prefix = prefix[:-3].rstrip("/")
    tls = parts.scheme == "https"
    return Target(tls, parts.hostname, port or (443 if tls else 80), prefix)


# -- gathering ------------------------------------------------------------------------------------------


def _words(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or "it cannot be verified"
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return "unreachable"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


# ENETUNREACH and EHOSTUNREACH on Linux, macOS and Windows.
_UNREACHABLE = (101, 113, 51, 65, 10051, 10065)


def resolve(target: Target) -> tuple[tuple[str, ...], str | None]:
    """The addresses of the host's name, or why there are none."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return (), _words(error)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found)), None


def connect(target: Target, addresses: Iterable[str], timeout: float) -> tuple[Attempt, ...]:
    """Try each address."""
    found = []
    for address in addresses:
        began = time.monotonic()
        try:
            socket.create_connection((address, target.port), timeout).close()
            error = None
        except OSError as wrong:
            error = _words(wrong)
        found.append(Attempt(address, time.monotonic() - began, error))
    return tuple(found)


def read_certificate(target: Target, timeout: float) -> Certificate:
    """Shake hands as any client would (``SSL_CERT_FILE`` names more authorities)."""
    try:
        context = ssl.create_default_context()
        plain = socket.create_connection((target.host, target.port), timeout)
        with plain, context.wrap_socket(plain, server_hostname=target.host) as secured:
            told = secured.getpeercert() or {}
    except (OSError, ValueError) as error:  # what is no TLS at all is an SSLError, which is an OSError
        return Certificate(error=_words(error))
    until = told.get("notAfter")
    return Certificate(ssl.cert_time_to_seconds(until) if isinstance(until, str) else None)


def _connection(target: Target, timeout: float) -> http.client.HTTPConnection:
    # No proxy of the environment: that would be another way than the one that is looked at.
    if target.tls:
        return http.client.HTTPSConnection(target.host, target.port, timeout=timeout)
    return http.client.HTTPConnection(target.host, target.port, timeout=timeout)


def _headers(key: str | None) -> dict[str, str]:
    found = {"Accept": "application/json, text/event-stream", "User-Agent": "llmproxy-doctor"}
    if key:
        found["Authorization"] = f"Bearer {key}"
    return found


def _told(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def ask(target: Target, path: str, key: str | None = None, timeout: float = TIMEOUT) -> Answer:
    """GET; redirections are not followed."""
    connection = _connection(target, timeout)
    try:
        connection.request("GET", target.prefix + path, headers=_headers(key))
        response = connection.getresponse()
        at = time.time()
        return Answer(response.status, _told(response), response.read(4 << 20), at)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(error=_words(error))
    finally:
        connection.close()


def complete(target: Target, key: str | None, model: str, patience: float) -> Stream:
    """Have the model count, and note when each piece arrives."""
    asked = {
        "model": model,
        "stream": True,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": "Count from one to fifty, in words."}],
    }
    connection = _connection(target, patience)
    began = time.monotonic()
    try:
        headers = {**_headers(key), "Content-Type": "application/json"}
        connection.request(
            "POST", f"{target.prefix}/v1/chat/completions", json.dumps(asked).encode(), headers
        )
        response = connection.getresponse()
        head_after = time.monotonic() - began
        answer = Answer(response.status, _told(response), b"", time.time())
        if response.status != 200 or "text/event-stream" not in answer.headers.get("content-type", ""):
            return Stream(answer._replace(body=response.read(4 << 20)), head_after)
        pieces = _pieces(response, began, patience)
        return read_stream(answer, head_after, pieces)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Stream(Answer(error=_words(error)), time.monotonic() - began)
    finally:
        connection.close()


def _pieces(
    response: http.client.HTTPResponse, began: float, patience: float
) -> Iterator[tuple[float, bytes | None]]:
    """What each read brings; None where the connection broke."""
    try:
        while True:
            data = response.read1(65536)
            after = time.monotonic() - began
            if not data:
                return
            yield after, data
            if after > patience:  # heartbeats would keep it waiting for ever
                yield after, None
                return
    except (OSError, http.client.HTTPException, ValueError):
        yield time.monotonic() - began, None


def read_stream(answer: Answer, head_after: float, pieces: Iterable[tuple[float, bytes | None]]) -> Stream:
    """From bytes and their times to events and their times."""
    reads, heard, done, broken, rest = [], None, False, None, b""
    for after, data in pieces:
        if data is None:
            broken = broken or "the connection broke"
            break
        *lines, rest = (rest + data).split(b"\n")
        count = 0
        for line in lines:
            if line.startswith(b":"):
                heard = after
            elif line.startswith(b"data:"):
                text = line[5:].strip()
                if text == b"[DONE]":
                    done = True
                    continue
                event = Answer(body=text).document
                if isinstance(event, dict) and event.get("error"):
                    broken = broken or _message(event)
                elif _has_content(event):
                    count += 1
        if count:
            reads.append((after, count))
    return Stream(answer, head_after, tuple(reads), heard, done, broken)


def _has_content(event: Any) -> bool:
    choices = event.get("choices") if isinstance(event, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(
            value for name, value in delta.items() if name != "role" and isinstance(value, (str, list))
        ):
            return True
    return False


# -- judging: pure --------------------------------------------------------------------------------------


def _message(document: Any) -> str:
    """The words of an error body, in one line."""
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        found = " ".join(str(error.get("message") or error.get("code") or "an error").split())
        code = error.get("code")
        return f"{found} ({code})" if code and str(code) not in found else found
    return " ".join(str(error).split())[:300] if error else "no reason given"


def _hint(document: Any) -> str | None:
    error = document.get("error") if isinstance(document, dict) else None
    hint = error.get("hint") if isinstance(error, dict) else None
    return " ".join(str(hint).split()) if hint else None


def is_loopback(address: str) -> bool:
    """Whether only this machine itself is reached there."""
    return address.startswith("127.") or address in ("::1", "localhost")


def firewall_fix(port: int) -> str:
    """How the Windows host lets the LAN in."""
    return (
        f'On the Windows host, PowerShell as administrator: New-NetFirewallRule -DisplayName "llmproxy {port}'
        f' (Private)" -Direction Inbound -Action Allow -Protocol TCP -LocalPort {port} -Profile Private;'
        " and set the network to Private (Settings, Network & Internet)."
    )


def judge_name(target: Target, addresses: tuple[str, ...], error: str | None) -> Finding:
    """Name resolution."""
    if not addresses:
        return Finding(
            "client.name",
            FAIL,
            f"{target.host} has no address here ({error or 'no answer'}).",
            "Use the host's IP address, or add a DNS record or a DHCP reservation for it in the router.",
        )
    if all(is_loopback(each) for each in addresses):
        text = (
            f"{target.host} is this machine itself; run it on another one to see whether the LAN is let in."
        )
        return Finding("client.name", OK, text)
    if addresses == (target.host,):
        return Finding("client.name", OK, f"It is asked at {target.host}.")
    return Finding("client.name", OK, f"{target.host} is {', '.join(addresses)}.")


def judge_connect(target: Target, attempts: tuple[Attempt, ...]) -> Finding:
    """TCP: one address that answers is enough, but each that does not costs clients time."""
    well = [each for each in attempts if each.error is None]
    ill = [each for each in attempts if each.error is not None]
    where = f"port {target.port}"
    if not well:
        errors = {each.error for each in ill}
        told = ", ".join(f"{each.address}: {each.error}" for each in ill)
        local = all(is_loopback(each.address) for each in ill)
        if local:
            fix = "Start llmproxy (make run, or docker compose up -d launcher), or correct the port."
        elif errors <= {"unreachable"}:
            fix = "Join the same network (no guest Wi-Fi, no VPN), and see that the address is still right."
        else:
            fix = (
                "See on the host itself whether it answers, and listens for the LAN (llmproxy doctor)."
                f" {firewall_fix(target.port)}"
            )
        return Finding("client.connect", FAIL, f"No connection to {where} ({told}).", fix)
    fastest = min(each.seconds for each in well)
    if ill:
        told = ", ".join(f"{each.address}: {each.error}" for each in ill)
        return Finding(
            "client.connect",
            WARN,
            f"Connected to {where} in {fastest * 1000:.0f} ms, but not at every address ({told}).",
            f"Clients lose time there: use {well[0].address} itself, or remove the other addresses from DNS.",
        )
    return Finding("client.connect", OK, f"Connected to {where} in {fastest * 1000:.0f} ms.")


def judge_certificate(target: Target, told: Certificate, now: float) -> Finding:
    """TLS."""
    if told.error is not None:
        words = told.error.lower()
        if "wrong version" in words or "record layer" in words or "http request" in words:
            fix = f"Nothing speaks TLS there: use http://, not https:// (port {target.port})."
        elif "expired" in words:
            fix = "Renew the certificate on the server that ends TLS, and have it loaded again."
        elif "hostname" in words or "doesn't match" in words or "not valid for" in words:
            fix = "Use the name that the certificate is for, or get one for this name."
        else:
            fix = "Trust its authority here (SSL_CERT_FILE=/path/ca.pem), or use a public certificate."
        return Finding("client.tls", FAIL, f"TLS fails: {told.error}.", fix)
    if told.until is None:
        return Finding("client.tls", OK, "The certificate is accepted.")
    days = (told.until - now) / 86400
    if told.until - now < EXPIRES_SOON:
        text = f"The certificate ends in {max(days, 0):.0f} days."
        return Finding("client.tls", WARN, text, "Renew it, and see why that does not happen by itself.")
    return Finding("client.tls", OK, f"The certificate is accepted and good for {days:.0f} days.")


def judge_proxies(target: Target, proxy: str | None) -> Finding | None:
    """A proxy of the environment that curl and SDKs would use.

    :param proxy: its address, which is not shown, for it may have a password in it.
    """
    if not proxy:
        return None
    return Finding(
        "client.environment",
        WARN,
        "This machine sends HTTP through a proxy (HTTP_PROXY, or the system's settings); these checks went"
        " around it, curl and SDKs do not.",
        f"Add the host to the exceptions: export NO_PROXY={target.host}",
    )


def judge_health(answer: Answer) -> Finding:
    """``/healthz``, and that it is llmproxy which answers."""
    name = "client.healthz"
    if answer.error is not None:
        fix = "Something else listens there, or it hangs: look at the proxy's log (docker logs launcher)."
        if (
            "RemoteDisconnected" in answer.error
            or "BadStatusLine" in answer.error
            or "without response" in answer.error
        ):
            fix = "It may speak TLS: try https://; or WSL forwards the port to nobody: restart llmproxy."
        return Finding(name, FAIL, f"/healthz is not answered ({answer.error}).", fix)
    server = answer.headers.get("server", "").strip()
    if answer.status in (301, 302, 303, 307, 308):
        return Finding(
            name, FAIL, f"/healthz is redirected ({answer.status}).", "Use the address that it leads to."
        )
    if answer.status == 200 and isinstance(answer.document, dict):
        if server.startswith("llmproxy/"):
            return Finding(name, OK, f"{server.replace('/', ' ', 1)} answers.")
        between = f" ({server})" if server else ""
        return Finding(name, OK, f"It answers, through another server in between{between}.")
    if answer.status == 503:
        status = answer.document.get("status") if isinstance(answer.document, dict) else None
        text = f"/healthz says 503: {status or 'no reason given'}."
        return Finding(name, FAIL, text, "Look at the proxy's log (docker logs launcher), and restart it.")
    text = (
        f"/healthz is answered with {answer.status}{f' by {server}' if server else ''}, not as llmproxy does."
    )
    return Finding(name, FAIL, text, "Correct host and port: something else listens there.")


def judge_ready(answer: Answer) -> Finding:
    """``/readyz``."""
    if answer.status == 200:
        return Finding(
            "client.readyz", OK, "It is ready: the configuration is loaded, and what runs models answers."
        )
    told = answer.document if isinstance(answer.document, dict) else {}
    why = told.get("reason") or told.get("status") or answer.error or f"status {answer.status}"
    return Finding(
        "client.readyz",
        FAIL,
        f"/readyz is not ready: {' '.join(str(why).split())}",
        "Run llmproxy doctor on the host itself: it tells what is wrong with Docker there.",
    )


def judge_shut(answer: Answer, *, local: bool) -> Finding:
    """That nobody is let in without a key."""
    name = "client.no_key"
    if answer.status == 401:
        return Finding(name, OK, "Without a key it says 401.")
    if answer.status == 200:
        fix = "Set VLLM_API_KEY (openssl rand -hex 32) in .env on the host, and bring the launcher up again."
        if local:
            return Finding(name, WARN, "No key is asked for: it can be used from its own machine only.", fix)
        return Finding(name, FAIL, "Everybody who reaches it may use it: no key is asked for.", fix)
    text = f"Without a key it says {answer.error or answer.status}, and not 401."
    return Finding(name, WARN, text, "Something in between answers in its place: look at that.")


def judge_models(answer: Answer, key: str | None, key_name: str, model: str | None) -> Finding:
    """``/v1/models`` with the key."""
    name = "client.models"
    if key is None and answer.status == 401:
        return Finding(
            name, SKIPPED, f"No key is set here ({key_name}).", f"export {key_name}=..., and run it again."
        )
    if answer.status == 401:
        return Finding(
            name,
            FAIL,
            f"The key in {key_name} is not accepted (401).",
            "Copy it from .env on the host; after a change there the launcher has to be brought up again.",
        )
    document = answer.document
    if answer.status != 200 or not isinstance(document, dict) or not isinstance(document.get("data"), list):
        text = f"/v1/models is answered with {answer.error or answer.status}: {_message(document)}"
        return Finding(name, FAIL, text, _hint(document) or "Look at the proxy's log.")
    known = {str(each["id"]): each for each in document["data"] if isinstance(each, dict) and "id" in each}
    if model is not None and model not in known:
        text = f"There is no model {model!r}; there are: {', '.join(known) or 'none'}."
        return Finding(
            name, FAIL, text, "Name one of them with --model, or see which routes the key may use."
        )
    if not known:
        text = "The list of models is empty."
        return Finding(name, WARN, text, "Label the models' containers, or see which routes the key may use.")
    return Finding(
        name, OK, f"The models are listed: {', '.join(_named(one, each) for one, each in known.items())}."
    )


def _named(name: str, model: Any) -> str:
    meta = model.get("meta")
    own = meta.get("llmproxy") if isinstance(meta, dict) else None
    state = own.get("state") if isinstance(own, dict) else None
    return f"{name} ({state})" if state else name


def judge_clock(answer: Answer) -> Finding | None:
    """Its clock beside ours."""
    try:
        date = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None
    apart = date - answer.at
    if abs(apart) <= SKEW:
        return Finding("client.clock", OK, "Its clock and this one agree.")
    words = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'}"
    return Finding(
        "client.clock",
        WARN,
        f"Its clock is {words} this one.",
        "Set the one that is wrong; in WSL after the machine slept: sudo hwclock -s, or wsl --shutdown.",
    )


def judge_completion(stream: Stream, model: str) -> list[Finding]:
    """A streamed completion: that it comes, how soon, and piece by piece."""
    name, answer = "client.completion", stream.answer
    if answer.error is not None:
        text = f"The completion was not answered ({answer.error} after {stream.head_after:.1f} s)."
        fix = "Look at llmproxy why and llmproxy logs for that model on the host; allow more with --timeout."
        return [Finding(name, FAIL, text, fix)]
    document = answer.document
    if answer.status != 200:
        fix = _hint(document) or "llmproxy status and llmproxy logs on the host tell more."
        return [Finding(name, FAIL, f"{model} answers {answer.status}: {_message(document)}", fix)]
    if "text/event-stream" not in answer.headers.get("content-type", ""):
        text = "The answer is no event stream, though one was asked for."
        fix = "Something in between has put it together: turn off its buffering for this host."
        return [Finding(name, FAIL, text, fix)]
    if stream.broken is not None:
        fix = "llmproxy events and llmproxy logs on the host tell why."
        return [Finding(name, FAIL, f"The stream was broken off: {stream.broken}", fix)]
    total = sum(count for _, count in stream.reads)
    if not total or not stream.done:
        text = f"The stream ended {'without its [DONE]' if total else 'without a word of the model'}."
        fix = "Something in between cut it off, or the model died: llmproxy logs tells which."
        return [Finding(name, FAIL, text, fix)]
    first = stream.reads[0][0]
    cold = _cold(stream)
    began = f", {cold:.2f} s of it a cold start" if cold else ""
    last = stream.reads[-1][0]
    text = f"{model} streams: first word after {first:.2f} s{began}, {total} pieces in {last:.2f} s."
    return [Finding(name, OK, text), judge_pace(stream)]


def _cold(stream: Stream) -> float:
    """Seconds of it that were a cold start, as far as the head could tell."""
    try:
        return max(float(stream.answer.headers.get("x-llmproxy-cold-start", 0)), 0.0)
    except ValueError:
        return 0.0


def judge_pace(stream: Stream) -> Finding:
    """Whether the pieces came as they were written."""
    name = "client.streaming"
    total = sum(count for _, count in stream.reads)
    first, last = stream.reads[0][0], stream.reads[-1][0]
    if total < 8:
        return Finding(
            name, SKIPPED, f"{total} pieces are too few to tell whether something in between keeps them back."
        )
    fix = _between(stream.answer) or (
        "Turn its buffering off (nginx: proxy_buffering off; Caddy: flush_interval -1; no gzip for"
        " text/event-stream); some virus scanners and VPNs do it, too."
    )
    if len(stream.reads) == 1 or total / max(last - first, 1e-9) > FASTEST:
        if stream.heard is not None and first - stream.heard > INSTANT:
            return Finding(
                name, OK, "Heartbeats came long before the first word: nothing keeps the stream back."
            )
        if last - _cold(stream) < INSTANT:
            return Finding(
                name, SKIPPED, "It was whole too quickly to tell whether something in between keeps it back."
            )
        text = (
            f"All {total} pieces came at once after {last:.2f} s: something in between keeps the stream back."
        )
        return Finding(name, WARN, text, fix)
    gap = max(
        (after - stream.reads[number][0] for number, (after, _) in enumerate(stream.reads[1:])), default=0.0
    )
    if total / len(stream.reads) >= 8 and gap >= 0.2:
        text = f"{total} pieces came in {len(stream.reads)} lumps: something in between gathers them."
        return Finding(name, WARN, text, fix)
    return Finding(name, OK, f"They came one by one ({(total - 1) / (last - first):.0f} a second).")


def _between(answer: Answer) -> str | None:
    """What is in between, where it says so."""
    server, via = answer.headers.get("server", ""), answer.headers.get("via", "")
    known = {
        "nginx": "It is nginx: proxy_buffering off; in the location that leads to llmproxy.",
        "caddy": "It is Caddy: flush_interval -1 in its reverse_proxy, and no encode for text/event-stream.",
        "cloudflare": "It is Cloudflare: turn off what alters answers (compression) for this host.",
        "apache": "It is Apache: flushpackets=on at its ProxyPass, and no mod_deflate for text/event-stream.",
    }
    for name, fix in known.items():
        if name in server.lower() or name in via.lower():
            return fix
    return None


# -- all of it ------------------------------------------------------------------------------------------


def examine(
    target: Target,
    key: str | None = None,
    model: str | None = None,
    *,
    key_name: str = "VLLM_API_KEY",
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
) -> Iterator[Finding]:
    """Every check as soon as it is made; ends at the first step without which the next make no sense."""
    addresses, error = resolve(target)
    yield judge_name(target, addresses, error)
    if not addresses:
        return
    attempts = connect(target, addresses, timeout)
    yield judge_connect(target, attempts)
    if all(each.error is not None for each in attempts):
        return
    proxy = None
    if not urllib.request.proxy_bypass(target.host):
        proxy = urllib.request.getproxies().get("https" if target.tls else "http")
    remark = judge_proxies(target, proxy)
    if remark is not None:
        yield remark
    if target.tls:
        certificate = read_certificate(target, timeout)
        yield judge_certificate(target, certificate, time.time())
        if certificate.error is not None:  # the key is for nobody else
            return
    health = ask(target, "/healthz", timeout=timeout)
    found = judge_health(health)
    yield found
    clock = judge_clock(health)
    if clock is not None:
        yield clock
    if found.status == FAIL and health.status != 503:
        return
    yield judge_ready(ask(target, "/readyz", timeout=timeout))
    local = all(is_loopback(each) for each in addresses)
    yield judge_shut(ask(target, "/v1/models", timeout=timeout), local=local)
    found = judge_models(ask(target, "/v1/models", key, timeout), key, key_name, model)
    yield found
    if model is None:
        yield Finding(
            "client.completion", SKIPPED, "No model was named.", "Name one with --model to have it answer."
        )
    elif found.status != OK:
        yield Finding("client.completion", SKIPPED, "The list of models has to be right first.")
    else:
        yield from judge_completion(complete(target, key, model, patience), model)


def hide(found: Finding, secrets: Iterable[str]) -> Finding:
    """The same without secrets, which others may have repeated in what they answered, and without control
    characters, which would reach the terminal."""
    texts = ["".join(one if one.isprintable() else " " for one in text or "") for text in found[2:]]
    for secret in sorted(secrets, key=len, reverse=True):
        if secret:
            pattern = rf"(?<![0-9A-Za-z]){re.escape(secret)}(?![0-9A-Za-z])"
            texts = [re.sub(pattern, "***", text) for text in texts]
    return found._replace(finding=texts[0], fix=texts[1] or None)


def as_document(findings: Iterable[Finding]) -> dict[str, Any]:
    """For programs."""
    every = list(findings)
    counts = {status: sum(each.status == status for each in every) for status in (OK, WARN, FAIL, SKIPPED)}
    return {"ok": not counts[FAIL], "counts": counts, "findings": [each._asdict() for each in every]}


def find_key(name: str | None, environ: dict[str, str] | os._Environ[str]) -> tuple[str, str | None]:
    """The variable that has the key, and the key.

    :raises UsageError: the variable that was named is not set.
    """
    if name is not None:
        key = environ.get(name, "").strip()
        if not key:
            raise UsageError(f"the variable {name} that --key-env names is not set")
        return name, key
    return "VLLM_API_KEY", environ.get("VLLM_API_KEY", "").strip() or None


def main(arguments: list[str] | None = None, write: Callable[[str], Any] = sys.stdout.write) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="doctor_client.py", description="Does llmproxy answer as it should?"
    )
    parser.add_argument("url", help="where it is, such as http://192.168.1.5:8000")
    parser.add_argument("--key-env", metavar="NAME", help="the variable that has the key [VLLM_API_KEY]")
    parser.add_argument("--model", metavar="M", help="have that model answer; it is started if need be")
    parser.add_argument(
        "--timeout", type=float, default=PATIENCE, help="seconds for that answer [%(default)g]"
    )
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    asked = parser.parse_args(arguments)
    try:
        target = parse_target(asked.url)
        key_name, key = find_key(asked.key_env, os.environ)
        if not asked.timeout > 0:
            raise UsageError("--timeout must be more than 0")
    except UsageError as wrong:
        parser.error(str(wrong))
    found = []
    for each in examine(target, key, asked.model, key_name=key_name, patience=asked.timeout):
        # What others have answered may hold what they were sent.
        clean = hide(each, [key] if key else [])
        found.append(clean)
        if not asked.json:
            write(f"{clean.status:<8}{clean.check:<20}{clean.finding}\n")
            if clean.fix:
                write(f"{'':<28}fix: {clean.fix}\n")
    if asked.json:
        write(json.dumps(as_document(found)) + "\n")
    return 1 if any(each.status == FAIL for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
