"""``llmproxy doctor``: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap

import click
from rich.text import Text

from llmproxy.cli.client import DEFAULT_URL, read_env_file
from llmproxy.cli.command import in_json, json_option, say_json
from llmproxy.cli.terminal import console, print_lines
from llmproxy.doctor.doctor_client import (
    PATIENCE,
    Finding,
    UsageError,
    as_document,
    examine,
    find_key,
    hide,
    parse_target,
)
from llmproxy.doctor.findings import FAIL, OK, SECTIONS, SKIPPED, WARN, section

__all__ = ["doctor", "finding_lines", "summary"]

_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}
_INDENT = 11


def finding_lines(found: Finding, width: int) -> list[Text]:
    """One finding for a person: the finding itself, and its fix below."""
    room = max(width - _INDENT, 20)
    parts = wrap(found.finding, room, break_long_words=False, break_on_hyphens=False) or [""]
    fix = wrap(f"fix: {found.fix}", room, break_long_words=False, break_on_hyphens=False) if found.fix else []
    first = Text("  ").append(f"{found.status:<{_INDENT - 2}}", _STYLES[found.status])
    first.append(parts[0], "dim" if found.status == SKIPPED else "")
    return [first, *(Text(" " * _INDENT + part) for part in (*parts[1:], *fix))]


def summary(found: Iterable[Finding]) -> str:
    """The last line.

    >>> summary([Finding("a.b", "fail", "x", "y"), Finding("a.c", "ok", "z")])
    '1 failed, 0 warnings, 1 ok, 0 skipped.'
    """
    counts = as_document(found)["counts"]
    warnings = f"{counts[WARN]} warning{'' if counts[WARN] == 1 else 's'}"
    return f"{counts[FAIL]} failed, {warnings}, {counts[OK]} ok, {counts[SKIPPED]} skipped."


def _show(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Show each as soon as it is there."""
    if as_json:
        every = list(findings)
        say_json(as_document(every))
        return every
    out, every, last = console(), [], None
    for found in findings:
        title = section(found)
        if title != last:
            print_lines(out, [*([Text()] if every else []), Text(SECTIONS[title], "bold")])
            last = title
        print_lines(out, finding_lines(found, out.width))
        every.append(found)
    print_lines(out, [Text(), Text(summary(every))])
    return every


@click.command()
@click.option("--config", "file", type=click.Path(dir_okay=False), metavar="FILE", help="llmproxy.yaml.")
@click.option("--demo", is_flag=True, help="As with twistd llmproxy --demo.")
@click.option("--security", is_flag=True, help="Who reaches what, and with which keys; nothing else.")
@click.option("--from-client", "url", metavar="URL", help="See from here how it answers there; nothing else.")
@click.option("--key-env", metavar="NAME", help="The variable that has the key [VLLM_API_KEY].")
@click.option(
    "--model", metavar="M", help="With --from-client: have that model answer; it may have to start."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"With --model: how long that may take [{PATIENCE:g}].",
)
@json_option
@click.pass_context
def doctor(
    context: click.Context,
    file: str | None,
    demo: bool,
    security: bool,
    url: str | None,
    key_env: str | None,
    model: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Look for what is wrong with this installation, and tell what to do about it.

    It only looks: nothing is started or changed. It takes the settings as the proxy would in this folder, and
    asks the one at LLMPROXY_URL. With --from-client it makes the checks that matter from another machine;
    there one file does it without llmproxy, too (docs/doctor.md).

    \b
    Examples:
      llmproxy doctor
      llmproxy doctor --security
      llmproxy doctor --from-client http://192.168.1.5:8000 --model coder3b

    Exit status: 0 all is well, or there are warnings only; 1 something fails; 2 wrong usage.
    """
    as_json = in_json(context, as_json)
    asked = context.find_root().params.get("url")
    written = read_env_file(Path(".env"))
    try:
        if url is not None:
            if file or demo or security:
                raise UsageError("--from-client takes neither --config nor --demo nor --security")
            findings = _from_client(url, key_env, model, timeout, {**written, **os.environ})
        else:
            if model or timeout is not None or key_env:
                raise UsageError("--key-env, --model and --timeout go with --from-client")
            findings = _from_here(asked, written, file, demo=demo, security=security)
        found = _show(findings, as_json=as_json)
    except UsageError as wrong:
        raise click.UsageError(f"{str(wrong)[:1].upper()}{str(wrong)[1:]}.") from None
    context.exit(1 if any(each.status == FAIL for each in found) else 0)


def _from_client(
    url: str, key_env: str | None, model: str | None, timeout: float | None, environment: dict[str, str]
) -> Iterator[Finding]:
    target = parse_target(url)
    name, key = find_key(key_env, environment)
    found = examine(target, key, model, key_name=name, patience=timeout or PATIENCE)
    return (hide(each, [key] if key else []) for each in found)


def _from_here(
    asked: str | None, written: dict[str, str], file: str | None, *, demo: bool, security: bool
) -> Iterator[Finding]:
    from llmproxy.doctor.findings import clean
    from llmproxy.doctor.gather.everything import Question, gather, secrets_of
    from llmproxy.doctor.judge import CHECKS, SECURITY, judge

    settings = {**written, **os.environ}
    target = parse_target(asked or settings.get("LLMPROXY_URL") or DEFAULT_URL)
    key = settings.get("LLMPROXY_ADMIN_KEY") or settings.get("VLLM_API_KEY") or None
    question = Question(target, key, dict(os.environ), written, file, demo)
    facts = gather(question)
    secrets = secrets_of(question, facts)
    return (clean(each, secrets) for each in judge(facts, SECURITY if security else CHECKS))
