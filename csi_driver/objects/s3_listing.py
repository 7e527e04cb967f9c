"""The XML that S3 answers with: pages of a listing, and error codes."""

from __future__ import annotations

import calendar
import re
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.mapping import Place

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


def error_code(body: bytes) -> str | None:
    """The code in an error answer, if it is one of S3."""
    found = _CODE.search(body)
    return found[1].decode() if found else None


def parse_listing(body: bytes, place: Place) -> tuple[ObjectPage, str | None]:
    """One page of ListObjectsV2 and the token of the next, None after the last. Raises StoreProtocolError."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat refuses entity bombs since 2.4.1, and nothing is loaded
    except ElementTree.ParseError as error:
        raise StoreProtocolError(f"{place.name(None)}: the listing is no readable XML") from error
    namespace = root.tag.rpartition("ListBucketResult")[0]
    if not root.tag.endswith("ListBucketResult"):
        raise StoreProtocolError(f"{place.name(None)}: the answer to a listing is none; is this an S3 endpoint?")
    try:
        page = _columns(root, namespace, root.findtext(f"{namespace}EncodingType") == "url")
    except (TypeError, ValueError) as error:
        raise StoreProtocolError(f"{place.name(None)}: the listing holds an entry that cannot be read") from error
    if root.findtext(f"{namespace}IsTruncated") != "true":
        return page, None
    token = root.findtext(f"{namespace}NextContinuationToken")
    if not token:
        raise StoreProtocolError(f"{place.name(None)}: the listing breaks off without a token to go on")
    return page, token


def _columns(root: ElementTree.Element, namespace: str, encoded: bool) -> ObjectPage:
    keys, sizes, etags, times = [], [], [], []
    for entry in root.iterfind(f"{namespace}Contents"):
        fields = {child.tag: child.text for child in entry}
        key = fields[f"{namespace}Key"] or ""
        # S3 encodes keys as forms do: a plus is a space.
        keys.append(unquote_plus(key, errors="surrogateescape") if encoded else key)
        sizes.append(int(fields[f"{namespace}Size"] or ""))
        etags.append((fields.get(f"{namespace}ETag") or "").strip('"') or None)
        times.append(_time_ns(fields[f"{namespace}LastModified"] or ""))
    return ObjectPage(keys, sizes, etags, times)


def _time_ns(text: str) -> int:
    """``2026-01-02T03:04:05.678Z`` as nanoseconds since 1970."""
    fraction = text[19:].strip(".Z")
    return _seconds(text[:19]) * 10**9 + (int(fraction.ljust(9, "0")[:9]) if fraction else 0)


@lru_cache(maxsize=4096)  # objects that were written together share their second
def _seconds(text: str) -> int:
    date, _, time = text.partition("T")
    year, month, day = date.split("-")
    hour, minute, second = time.split(":")
    return calendar.timegm((int(year), int(month), int(day), int(hour), int(minute), int(second)))
