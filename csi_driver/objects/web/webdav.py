"""Reads directories by WebDAV: PROPFIND of one directory at a time, since servers may refuse more (RFC 4918, 9.1)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from csi_driver.model.errors import StoreProtocolError
from csi_driver.objects.web.index_pages import WebEntry, size_of
from csi_driver.objects.web.web_urls import WebLocation
from csi_driver.objects.web.web_versions import etag_version, modified_version, seconds_of

MULTISTATUS = 207
HEADERS = {"Depth": "1", "Content-Type": "application/xml", "Accept": "application/xml, text/xml"}
REQUEST = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/>'
    b"<getetag/><getlastmodified/></prop></propfind>"
)
"""Named properties: ``allprop`` would bring names for display, which hold any character."""

_UNKNOWN = "\ufffd"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ROOT = re.compile(r"<((?:[\w.-]+:)?multistatus)\b[^<>]*>")
_RESPONSE_END = re.compile(r"</(?:[\w.-]+:)?response\s*>")
_AMPERSAND = re.compile(r"&(?:#x([0-9a-fA-F]{1,8});|#([0-9]{1,9});|(amp|lt|gt|quot|apos);)?")


def parse_multistatus(body: bytes, location: WebLocation, directory: str) -> list[WebEntry | str]:
    """The entries below the directory; of one whose name cannot be read only the key, approximately. Each entry is
    parsed by itself, so that no name makes another one unreadable. Raises StoreProtocolError."""
    text = _AMPERSAND.sub(_valid_reference, _NOT_XML.sub(_UNKNOWN, body.decode("utf-8", "replace")))
    root = _ROOT.search(text)
    if root is None or "<!DOCTYPE" in text:
        raise StoreProtocolError(f"{location.name(directory)}: the server's list of properties is no WebDAV")
    found: dict[str, WebEntry] = {}
    unreadable: list[str] = []
    start = root.end()
    for end in _RESPONSE_END.finditer(text, start):
        response = _parsed(f"{root[0]}{text[start : end.end()]}</{root[1]}>")
        start = end.end()
        if response is None:
            unreadable.append(f"{directory}{_UNKNOWN}")
            continue
        href = response.findtext("{DAV:}href") or ""
        key = location.key_of(href, directory)
        if key is not None and _UNKNOWN in href:
            unreadable.append(key)
        elif key is not None:
            entry = _entry(key, response)
            found[entry.key] = entry
    return [*found.values(), *unreadable]


def _parsed(text: str) -> ElementTree.Element | None:
    """The one response in a list of properties."""
    try:
        return ElementTree.fromstring(text).find("{DAV:}response")  # noqa: S314 - no DOCTYPE, so no entities
    except ElementTree.ParseError:
        return None


def _valid_reference(found: re.Match[str]) -> str:
    """A reference to a character that XML can hold. Servers write what a name has, also where XML cannot hold it."""
    if found[3]:
        return found[0]
    if not (found[1] or found[2]):
        return "&amp;"
    code = int(found[1], 16) if found[1] else int(found[2])
    return found[0] if code <= 0x10FFFF and not _NOT_XML.match(chr(code)) else _UNKNOWN


def _entry(key: str, response: ElementTree.Element) -> WebEntry:
    properties: dict[str, ElementTree.Element] = {}
    for group in response.iterfind("{DAV:}propstat"):
        if " 200" in (group.findtext("{DAV:}status") or " 200"):
            properties |= {element.tag: element for element in group.iterfind("{DAV:}prop/*")}
    kind = properties.get("{DAV:}resourcetype")
    if key.endswith("/") or (kind is not None and kind.find("{DAV:}collection") is not None):
        return WebEntry(f"{key.removesuffix('/')}/")

    def value(name: str) -> str:
        element = properties.get(f"{{DAV:}}{name}")
        return "" if element is None else (element.text or "").strip()

    seconds = seconds_of(value("getlastmodified"))
    version = etag_version(value("getetag")) or (None if seconds is None else modified_version(seconds))
    return WebEntry(key, size_of(value("getcontentlength")), version, (seconds or 0) * 10**9)
