"""Parses the XML of S3: pages of a listing, and error codes."""

from __future__ import annotations

import calendar
import html
import re
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.store_location import StoreLocation

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


def error_code(body: bytes) -> str | None:
    """The code in the body of an error response, if S3 sent it."""
    found = _CODE.search(body)
    return found[1].decode() if found else None


def parse_listing(body: bytes, location: StoreLocation) -> tuple[ObjectPage, str | None]:
    """One page of ListObjectsV2 and the token of the next, None after the last. Raises StoreProtocolError."""
    try:
        found = _scan(body)
        page, token, truncated = found if found is not None else _parse(body)
    except _NotAListing:
        raise StoreProtocolError(
            f"{location.name(None)}: the answer is not a listing; is this an S3 endpoint?"
        ) from None
    except ElementTree.ParseError as error:
        raise StoreProtocolError(f"{location.name(None)}: the listing is no valid XML") from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreProtocolError(f"{location.name(None)}: the listing holds an entry that cannot be read") from error
    if truncated and not token:
        raise StoreProtocolError(f"{location.name(None)}: the listing breaks off without a continuation token")
    return page, token if truncated else None


class _NotAListing(Exception):
    """Valid XML of another kind."""


_COLUMNS = [re.compile(f"<{name}>([^<]*)</{name}>") for name in ("Key", "Size", "ETag", "LastModified")]
_TOKEN = re.compile("<NextContinuationToken>([^<]*)</NextContinuationToken>")


def _scan(body: bytes) -> tuple[ObjectPage, str, bool] | None:
    """Reads the regular form that stores write, column by column. 4 times as fast as a parser, which saves some seconds
    for a million keys. None if the page deviates from that form in any way."""
    text = body.decode()
    count = text.count("<Contents>")
    if not text.endswith("</ListBucketResult>") or "<!" in text or "<Contents " in text:
        return None
    keys, sizes, etags, times = (column.findall(text) for column in _COLUMNS)
    if not len(keys) == len(sizes) == len(etags) == len(times) == count:
        return None
    if "<EncodingType>url</EncodingType>" in text:
        keys = [unquote_plus(key, errors="surrogateescape") for key in keys]
    else:
        keys = [html.unescape(key) for key in keys]
    etags = [etag.replace("&quot;", "").replace("&#34;", "").strip('"') or None for etag in etags]
    token = _TOKEN.search(text)
    page = ObjectPage(keys, list(map(int, sizes)), etags, list(map(_time_ns, times)))
    return page, html.unescape(token[1]) if token else "", "<IsTruncated>true</IsTruncated>" in text


def _parse(body: bytes) -> tuple[ObjectPage, str, bool]:
    root = ElementTree.fromstring(body)  # noqa: S314 - expat refuses entity bombs since 2.4.1, and nothing is loaded
    namespace, name, rest = root.tag.rpartition("ListBucketResult")
    if not name or rest:
        raise _NotAListing
    page = _columns(root, namespace, root.findtext(f"{namespace}EncodingType") == "url")
    token = root.findtext(f"{namespace}NextContinuationToken") or ""
    return page, token, root.findtext(f"{namespace}IsTruncated") == "true"


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
