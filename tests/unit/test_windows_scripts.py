"""deploy/windows: PowerShell that a parser takes, that changes nothing with -WhatIf, and goes again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "windows"
SCRIPTS = sorted(FOLDER.glob("*.ps1"))
CHANGING = re.compile(
    rb"^(New|Set|Remove|Register|Unregister|Stop|Start|Enable|Disable)-(?:NetFirewall\w+|ScheduledTask)$"
)
"""Commands that change the machine. What only makes a value (New-ScheduledTaskAction ...) is none."""


def parsed(script: Path) -> tree_sitter.Node:
    """The script's syntax tree."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    return parser.parse(script.read_bytes()).root_node


def nodes(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """All of a tree."""
    yield node
    for child in node.children:
        yield from nodes(child)


def is_asked(node: tree_sitter.Node) -> bool:
    """Whether it runs only where ShouldProcess says yes."""
    above = node.parent
    while above is not None:
        if above.type == "if_statement":
            condition = above.child_by_field_name("condition")
            if condition is not None and b"ShouldProcess" in (condition.text or b""):
                return True
        above = above.parent
    return False


def test_there_are_scripts() -> None:
    """One for the firewall, and one for the start."""
    assert [script.name for script in SCRIPTS] == ["firewall.ps1", "start-at-logon.ps1"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(script: Path) -> None:
    """PowerShell's grammar takes it, and it is ASCII: Windows PowerShell 5.1 reads other text as it likes."""
    wrong = [node for node in nodes(parsed(script)) if node.is_error or node.is_missing]
    assert [(node.start_point, node.text) for node in wrong] == []
    script.read_bytes().decode("ascii")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_nothing_changes_without_being_asked(script: Path) -> None:
    """Each command that changes something stands behind ShouldProcess, so that -WhatIf changes nothing."""
    names = [node for node in nodes(parsed(script)) if node.type == "command_name"]
    changing = [node for node in names if CHANGING.match(node.text or b"")]
    assert changing
    assert [node.text for node in changing if not is_asked(node)] == []
    assert b"SupportsShouldProcess = $true" in script.read_bytes()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_can_be_taken_back(script: Path) -> None:
    """-Uninstall removes what is made."""
    text = script.read_text(encoding="ascii")
    assert "[switch]$Uninstall" in text
    made = set(re.findall(r"\b(?:New|Register)-(NetFirewall\w*Rule|ScheduledTask)\b", text))
    removed = set(re.findall(r"\b(?:Remove|Unregister)-(NetFirewall\w*Rule|ScheduledTask)\b", text))
    assert made
    assert made <= removed


def test_the_rule_is_for_the_lan() -> None:
    """By default it is for TCP 8000 from the local subnet on the Private profile alone."""
    text = (FOLDER / "firewall.ps1").read_text(encoding="ascii")
    assert "[int]$Port = 8000" in text
    assert "$RemoteAddress = @('LocalSubnet')" in text
    assert "$profiles = 'Private'\n" in text
    assert re.search(r"if \(\$Public\) \{ \$profiles = 'Private, Public' \}", text)


def test_the_guide_names_what_there_is() -> None:
    """docs/wsl2.md and docs/troubleshooting.md use switches that the scripts have."""
    for page in ("wsl2.md", "troubleshooting.md"):
        text = (FOLDER.parents[1] / "docs" / page).read_text(encoding="utf-8")
        for name, switch in re.findall(r"(firewall|start-at-logon)\.ps1`? ?`?-(\w+)", text):
            source = (FOLDER / f"{name}.ps1").read_text(encoding="ascii")
            assert switch == "WhatIf" or re.search(rf"\${switch}\b", source), (page, switch)
