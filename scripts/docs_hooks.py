"""What mkdocs is told when it builds the site: which pages there are, and where links out of docs/ lead.

mkdocs calls the functions by their names (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

REFERENCE = "reference.md"
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_HOME = {"README.md": "index.md"}
"""What stands on the site under another name."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out what is not there yet, and add what stands nowhere."""
    folder = Path(config.docs_dir)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.md")} | {REFERENCE}
    nav = _pruned(config.nav or [], there)
    missing = sorted(there - set(_pages(nav)))
    if missing:
        nav.append({"More": missing})
    config.nav = nav
    return config


def _pruned(nav: list[Any], there: set[str]) -> list[Any]:
    kept: list[Any] = []
    for entry in nav:
        if isinstance(entry, str):
            kept += [entry] if entry in there else []
            continue
        for title, value in entry.items():
            if isinstance(value, list):
                kept.append({title: _pruned(value, there)})
            elif value in there:
                kept.append({title: value})
    return kept


def _pages(nav: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        if isinstance(entry, str):
            found.append(entry)
        else:
            for value in entry.values():
                found += _pages(value) if isinstance(value, list) else [value]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, which is made of the tables that the proxy itself reads its settings by."""
    from scripts.config_reference import reference

    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Have links into the repository say where it is there: the site stands alone."""

    def inside(match: re.Match[str]) -> str:
        text, path, anchor = match.groups()
        if path in _HOME:
            return f"[{text}]({_HOME[path]}{anchor or ''})"
        assert (ROOT / path).exists(), f"{page.file.src_uri}: there is no {path}"
        return text if path in text else f"{text} (`{path}`)"

    return _OUTSIDE.sub(inside, markdown)
