"""Looks at a site that mkdocs has built: ``python -m tools.docs_site_check build/site``.

No page and no style loads anything from another host, and no page links to a file or an anchor that the site lacks.
Links for people (``<a href>``) may lead to other hosts.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
_IMPORT = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//", re.IGNORECASE)
_FONTS = re.compile(r"fonts\.(?:googleapis|gstatic)\.com")


class _Page(HTMLParser):
    """Collects what a page loads, what it links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag in _LOADING and given.get(_LOADING[tag]) and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given[_LOADING[tag]])
        if tag == "a" and given.get("href"):
            self.linked.append(given["href"])


def faults(site: Path) -> list[str]:
    """One line for each fault."""
    site = site.resolve()
    pages = {path: _parsed(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {target}" for target in page.loaded if urlsplit(target).netloc]
        if name.name == "404.html":
            continue  # its links are absolute, for any depth
        for target in page.linked:
            fault = _broken(path, target, pages)
            if fault:
                found.append(f"{name}: {target}: {fault}")
    for style in site.rglob("*.css"):
        if _IMPORT.search(style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(site)} loads from another host")
    for path in [*pages, *site.rglob("*.css")]:
        if _FONTS.search(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)} names Google's fonts")
    if not (site / "search" / "search_index.json").exists():
        found.append("the site has no index for its search")
    return found


def _broken(path: Path, target: str, pages: dict[Path, _Page]) -> str:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    place = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    if place.is_dir():
        place /= "index.html"
    if not place.exists():
        return "no such file"
    if parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].anchors:
        return "no such anchor"
    return ""


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def main() -> int:
    site = Path(sys.argv[1])
    found = faults(site)
    sys.stderr.write("".join(f"{fault}\n" for fault in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
