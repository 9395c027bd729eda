"""The dashboard's files: scripts, styles and pages, read from the package when they are first asked for."""

from __future__ import annotations

from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template

from attrs import frozen

__all__ = ["File", "Files", "page"]

_KINDS = {
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml; charset=utf-8",
}


@frozen
class File:
    """One of them.

    :ivar etag: changes with what is in it.
    """

    data: bytes
    kind: bytes
    etag: bytes


class Files:
    """Those that a browser may ask for; nobody's secret is in them."""

    def __init__(self, folder: Traversable | None = None) -> None:
        self._folder = folder or files(__package__) / "static"
        self._known: dict[str, File | None] | None = None

    def get(self, name: str) -> File | None:
        """The file of that name, if there is one."""
        if self._known is None:
            # What is not listed does not exist, whatever dots and slashes are in its name.
            self._known = {
                each.name: None for each in self._folder.iterdir() if _extension(each.name) in _KINDS
            }
        if name not in self._known:
            return None
        found = self._known[name]
        if found is None:
            data = (self._folder / name).read_bytes()
            etag = b'"%b"' % sha256(data).hexdigest()[:24].encode("ascii")
            found = self._known[name] = File(data, _KINDS[_extension(name)], etag)
        return found


def _extension(name: str) -> str:
    return name.rpartition(".")[2]


_TABS = (
    ("overview", "/ui/", "Overview"),
    ("requests", "/ui/requests", "Requests"),
    ("usage", "/ui/usage", "Usage"),
    ("playground", "/ui/playground", "Playground"),
)


def page(
    name: str, *, title: str, version: str, who: str = "", current: str = "", signs_out: bool = False
) -> bytes:
    """A whole page.  What it shows of the proxy it asks for itself.

    :param name: of the file that has its middle.
    :param who: the name of the key that is signed in.
    :param current: the tab that it belongs to.
    :param signs_out: there is something to sign out of.
    """
    folder = files(__package__) / "pages"
    tabs = "".join(
        f'<li><a href="{address}"{" aria-current=page" if tab == current else ""}>{words}</a></li>'
        for tab, address, words in _TABS
    )
    bar = (folder / "bar.html").read_text("utf-8")
    who = f'<span class="who">{escape(who)}</span>' if who else ""
    leave = '<button type="button" class="quiet" id="sign-out">Sign out</button>' if signs_out else ""
    filled = Template(bar).substitute(tabs=tabs, who=who, leave=leave) if current else ""
    told = Template((folder / "layout.html").read_text("utf-8")).substitute(
        title=escape(title),
        version=escape(version),
        bar=filled,
        main=(folder / f"{name}.html").read_text("utf-8"),
        script=name,
    )
    return told.encode("utf-8")
