"""Reads the index of a directory, as web servers make it.

HTML: the links to what lies below the directory, which is what nginx, Apache, ``python -m http.server``, caddy,
lighttpd and ``rclone serve http`` have in common. JSON: the lists of nginx (``autoindex_format json``) and caddy.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from csi_driver.objects.web.web_client import Page
from csi_driver.objects.web.web_urls import WebLocation, below
from csi_driver.objects.web.web_versions import modified_version, seconds_of

ACCEPTED = ("application/json, text/html;q=0.9", "text/html")
"""Tried in this order: a server may have JSON of another kind there."""
HTML = frozenset({"text/html", "application/xhtml+xml"})
_JSON = frozenset({"application/json", "text/json"})
_LARGEST = 1 << 53


class WebEntry(NamedTuple):
    """An entry of an index. The key of a directory ends in a slash."""

    key: str
    size_bytes: int | None = None
    version: str | None = None
    """As in ``web_versions.py``."""
    mtime_ns: int = 0


def parse_index(page: Page, location: WebLocation, directory: str) -> list[WebEntry] | None:
    """The entries below the directory, each once. None: the page is no index."""
    text = page.body.decode("utf-8", "surrogateescape")
    if page.media_type in HTML:
        return _distinct(WebEntry(key) for key in _linked(text, location, directory))
    if page.media_type in _JSON:
        return _from_json(text, directory)
    return None


def size_of(text: object) -> int | None:
    """Bytes; None for anything but a number that an object can have."""
    digits = str(text) if isinstance(text, str | int) else ""
    return (
        int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) < _LARGEST else None
    )


def _distinct(entries: Iterable[WebEntry]) -> list[WebEntry]:
    return list({entry.key: entry for entry in entries}.values())


def _linked(text: str, location: WebLocation, directory: str) -> Iterator[str]:
    for found in _LINK.finditer(text):
        key = location.key_of(html.unescape(found[1] or found[2] or found[3] or ""), directory)
        if key is not None:
            yield key


# In time that is linear in the page, whatever it holds: no attempt goes beyond the next tag or quote.
_LINK = re.compile(r"""<a\s[^<>]*?\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s<>"']+))""", re.IGNORECASE)


def _from_json(text: str, directory: str) -> list[WebEntry] | None:
    try:
        # Not strict: nginx writes the control characters of names as they are.
        rows = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        return None
    return _distinct(entry for row in rows if (entry := _entry(row, directory)) is not None)


def _entry(row: dict[str, Any], directory: str) -> WebEntry | None:
    """Of nginx: name, type, mtime, size; of caddy: name, is_dir, mod_time, size."""
    name = row["name"].removesuffix("/")
    key = below(directory, directory + name)
    if key is None or "/" in name or row.get("type", "file") not in ("file", "directory"):
        return None
    if row.get("is_dir") is True or row.get("type") == "directory":
        return WebEntry(f"{key}/")
    seconds = seconds_of(row["mtime"]) if isinstance(row.get("mtime"), str) else _iso_seconds(row.get("mod_time"))
    if seconds is None:
        return WebEntry(key)
    return WebEntry(key, size_of(row.get("size")), modified_version(seconds), seconds * 10**9)


_FRACTION = re.compile(r"\.\d+")


def _iso_seconds(text: object) -> int | None:
    """``2026-01-02T03:04:05.678901234Z``, without the fraction, as Last-Modified."""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", str(text)))
        return max(0, int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()))
    except (ValueError, OverflowError):
        return None
