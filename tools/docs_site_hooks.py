"""Hooks of mkdocs: the site is made of ``docs/`` as it is, so that the pages and their links are valid in the
repository too.

A link that leaves ``docs/`` leads to a copy of the file below ``repository/``; one to a directory to its README, or to
a page that lists its files. Decisions become entries of the navigation by themselves.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!\\)(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LIST_ITEM = re.compile(r"^(?:[-*] |\d+\. )")


def on_config(config: Any) -> Any:
    """Adds the decisions, by their titles, to the last part of the navigation."""
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("0*.md"))
    entries = [{_title(page): f"decisions/{page.name}"} for page in pages]
    (last,) = config.nav[-1].values()
    last.append({"Decisions": [{"All": "decisions/README.md"}, *entries]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds what the pages link to and ``docs/`` does not have."""
    from mkdocs.structure.files import File

    for path in sorted(linked_outside(REPOSITORY)):
        uri = site_uri(path)
        if (REPOSITORY / path).is_dir():
            files.append(File.generated(config, uri, content=listing(path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has them, and a blank line before each list and table, which Python's Markdown needs."""
    source = repository_path(page.file.src_uri)
    return with_links(with_blank_lines(markdown), lambda target: site_link(source, target))


def linked_outside(repository: Path) -> set[str]:
    """Paths in the repository, outside of ``docs/``, that pages of the site link to; also by way of each other."""
    found: set[str] = set()
    waiting = [str(page.relative_to(repository)) for page in (repository / "docs").rglob("*.md")]
    while waiting:
        source = waiting.pop()
        for target in link_targets((repository / source).read_text(encoding="utf-8")):
            path = resolved(source, target)
            if path is None or path.startswith("docs/") or path in found or not (repository / path).exists():
                continue
            found.add(path)
            if path.endswith(".md"):
                waiting.append(path)
    return found


def link_targets(markdown: str) -> Iterator[str]:
    """Of all links outside of code, without their anchors."""
    found: list[str] = []
    with_links(markdown, lambda target: found.append(target) or target)  # type: ignore[func-returns-value]
    return iter(found)


def with_links(markdown: str, change: Callable[[str], str]) -> str:
    """The page with other targets; code stays as it is."""
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(lambda link: link[1] + change(link[2]) + link[3], line))
    return "\n".join(lines)


def resolved(source: str, target: str) -> str | None:
    """The path in the repository that a page links to; of a directory its README, if it has one. None: another host."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith(".."):
        return None
    readme = f"{path}/README.md"
    return readme if (REPOSITORY / readme).exists() else path


def site_uri(path: str) -> str:
    """Where the site's source has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}/index.md" if (REPOSITORY / path).is_dir() else f"repository/{path}"


def repository_path(uri: str) -> str:
    """The inverse of ``site_uri``, for pages."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def site_link(source: str, target: str) -> str:
    """A link as it is in the site's source."""
    path = resolved(source, target)
    if path is None:
        return target
    return posixpath.relpath(site_uri(path), posixpath.dirname(site_uri(source)) or ".")


def listing(path: str) -> str:
    """A page in place of a directory."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in (REPOSITORY / path).iterdir())
    shown = "".join(f"- `{name}`\n" for name in names if not name.startswith((".", "__")))
    return f"# {PurePosixPath(path).name}\n`{path}` in the repository holds\n\n{shown}"


def with_blank_lines(markdown: str) -> str:
    """The page with a blank line before each list and table that follows a text."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        before = lines[-1] if lines else ""
        after_text = bool(before.strip()) and not before.startswith((" ", "|")) and not fenced
        if after_text and (line.startswith("|") or (_LIST_ITEM.match(line) and not _LIST_ITEM.match(before))):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").replace("`", "")
