"""The documentation holds what it promises: links lead somewhere, and the tables have what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import fields

from llmproxy.cli.main import cli
from llmproxy.config.fields import FIELDS
from llmproxy.config.file import SECTIONS, TOP
from llmproxy.config.model import BackendSpec

ROOT = Path(__file__).resolve().parents[2]
CODES = sorted(
    set(
        re.findall(
            r'Refusal\(\s*\d{3},\s*"(\w+)"', (ROOT / "llmproxy" / "errors.py").read_text(encoding="utf-8")
        )
    )
)
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """Without what stands in code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and mkdocs make them."""
    found = set()
    for line in _FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
        heading = re.match(r"#+ (.*)", line)
        if heading is not None:
            words = re.sub(r"[^\w\s-]", "", heading[1].replace("`", "")).strip().lower()
            # mkdocs makes one hyphen of several spaces, GitHub one of each.
            found |= {re.sub(r"[\s-]+", "-", words), re.sub(r"\s", "-", words)}
    return found


def links() -> list[tuple[str, str]]:
    """All that do not lead to other machines, with the page they stand on."""
    return [
        (str(page.relative_to(ROOT)), target)
        for page in PAGES
        for target in _LINK.findall(text_of(page))
        if not re.match(r"[a-z]+:", target)
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_somewhere(page: str, target: str) -> None:
    """To a file that is there and, where a heading is named, to one that it has."""
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page}: there is no {path}"
    if anchor and file.suffix == ".md":
        assert anchor in anchors(file), f"{page}: {path} has no heading #{anchor}"


def table(page: str, heading: str) -> dict[str, str]:
    """The first two columns of the first table below a heading; several names of a row each have one."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    section = text.partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    found = {}
    for names, defaults in rows:
        told = re.findall(r"`([^`]+)`", names)
        each = re.findall(r"`([^`]+)`", defaults)
        for place, name in enumerate(told):
            found[name] = (
                each[place] if len(each) == len(told) and "read" not in defaults else defaults.strip("`")
            )
    return found


def test_the_fields_are_all_told() -> None:
    """docs/configuration.md has each field of a backend, and no other."""
    assert table("configuration.md", "Fields of a backend").keys() == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_defaults_are_right(name: str) -> None:
    """Where the table names a value, it is the one that counts."""
    told = table("configuration.md", "Fields of a backend")[name]
    default = getattr(fields(BackendSpec), name).default
    if isinstance(default, bool):
        assert told == str(default).lower()
    elif isinstance(default, int | float):
        assert float(told) == default
    elif isinstance(default, str):
        assert told == default
    else:
        assert told == "none" or "read from" in told or told.startswith("that of")


def test_the_settings_of_the_proxy_are_all_told() -> None:
    """docs/configuration.md, or the page that it names, has each of them."""
    pages = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in [*TOP, *(f"{section}.{each}" for section, names in SECTIONS.items() for each in names)]:
        assert f"`{name}`" in pages, name


def test_every_command_is_told() -> None:
    """docs/command.md has each command of llmproxy."""
    text = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    for name in cli.later:
        assert re.search(rf"`(llmproxy )?{name}\b", text), name


@pytest.mark.parametrize("code", CODES)
def test_every_error_is_told(code: str) -> None:
    """Each code that a client may see stands in docs/clients.md, and what to do about it somewhere."""
    assert f"`{code}`" in (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_troubleshooting_has_our_own_words() -> None:
    """The messages that the table quotes are those that llmproxy says."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (?:\.\.\. )?(?:\d{3}|[^|]*?\d{3}) `(\w+)`", text, re.MULTILINE)) <= set(CODES)
    for words in (
        "no key is configured (VLLM_API_KEY): listening on loopback only",
        "its socket belongs to group",
    ):
        assert words in text
        sources = (path.read_text(encoding="utf-8") for path in (ROOT / "llmproxy").rglob("*.py"))
        assert any(words in source for source in sources), words
