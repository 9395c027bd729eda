"""The documentation as a site: it is built strictly, stands alone, and has what belongs on it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.integration.world import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built anew, with each warning an error: a link, an anchor or a page that is not there."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        why = "mkdocs-material is not installed (make docs)"
        if os.environ.get("LLMPROXY_REQUIRE_DOCS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        # The first is about the next major version of mkdocs, which setup.cfg excludes.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


class _Assets(HTMLParser):
    """Gathers what a browser loads by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "embed") and given.get("src"):
            self.found.append(str(given["src"]))
        # A canonical address and the like are not loaded.
        loaded = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload"}
        if tag == "link" and loaded & set((given.get("rel") or "").split()):
            self.found.append(str(given.get("href")))


def pages(site: Path) -> list[Path]:
    """All of them."""
    return sorted(site.rglob("*.html"))


def test_each_page_is_there(site: Path) -> None:
    """Each file of docs/ is a page, and so is the reference that is made of the settings' own tables."""
    built = {str(path.parent.relative_to(site)) for path in pages(site) if path.name == "index.html"}
    wanted = {path.stem for path in DOCS.glob("*.md")} - {"index"} | {".", "reference"}
    assert wanted <= built
    for name in ("index", "wsl2", "linux", "migration", "compare", "troubleshooting", "models"):
        assert (DOCS / f"{name}.md").exists()


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """No page has a browser load anything from another machine."""
    for page in pages(site):
        assets = _Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        away = [each for each in assets.found if re.match(r"(https?:)?//", each)]
        assert away == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]+", style.read_text()) == []


def test_the_reference_has_every_setting(site: Path) -> None:
    """What the parser knows stands on the page, with what is allowed."""
    from llmproxy.config.fields import FIELDS
    from llmproxy.config.file import SECTIONS, TOP

    text = (site / "reference" / "index.html").read_text(encoding="utf-8")
    told = set(re.findall(r"<td><code>([^<]+)</code></td>", text))
    assert FIELDS.keys() <= told
    assert set(TOP) <= told
    assert {f"{section}.{name}" for section, names in SECTIONS.items() for name in names} <= told


def test_the_picture_can_be_read_in_the_dark(site: Path) -> None:
    """It has a ground of its own, and words for those who do not see it."""
    picture = (site / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert re.search(r'<rect y="40" width="940" height="440" rx="12" fill="#f8fafc"/>', picture)
    assert "<title" in picture
    assert "<desc" in picture
    assert "http://" not in picture.replace("http://www.w3.org/2000/svg", "")
