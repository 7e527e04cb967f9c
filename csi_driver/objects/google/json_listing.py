"""Parses pages of a listing of Google's JSON API.

JSON holds every key as it is. The XML API is the older one, and XML has no form for control characters.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectInfo, ObjectPage
from csi_driver.objects.listing_pages import ListedPage
from csi_driver.objects.store_location import StoreLocation

OBJECT_FIELDS = "name,size,updated,generation"
LISTING_FIELDS = f"kind,items({OBJECT_FIELDS}),nextPageToken"
"""All that is read, a fifth of what there is. ``kind`` tells a listing without objects from other JSON."""
GENERATION = re.compile(r"[0-9]{1,20}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def parse_page(body: bytes, location: StoreLocation) -> ListedPage:
    """An entry without a name, which is no object, is skipped. Of values that cannot be read, a size becomes
    ``SIZE_UNKNOWN``, a time ``TIME_UNKNOWN_NS``, a generation None. Raises StoreProtocolError."""
    name = location.name(None)
    page = _parsed(body, name)
    items, token = page.get("items", []), page.get("nextPageToken")
    # A listing without objects has no items. Any other JSON in its place would end a listing short.
    is_listing = page.get("kind") == "storage#objects" or not page.keys().isdisjoint(("items", "nextPageToken"))
    is_readable = isinstance(items, list) and isinstance(token, str | None) and not _SURROGATE.search(token or "")
    if not is_listing or not is_readable:
        raise StoreProtocolError(f"{name}: the answer is not a listing; is this an endpoint of Google Cloud Storage?")
    found = [item for item in items if isinstance(item, dict) and isinstance(item.get("name"), str) and item["name"]]
    listed = ObjectPage(
        keys=[item["name"] for item in found],
        sizes_bytes=[_size(item.get("size")) for item in found],
        etags=[_generation(item.get("generation")) for item in found],
        mtimes_ns=[_time_ns(item.get("updated")) for item in found],
    )
    return ListedPage(listed, token or None)


def parse_object(body: bytes, key: str, location: StoreLocation) -> ObjectInfo:
    """Raises StoreProtocolError."""
    item = _parsed(body, location.name(key))
    size_bytes = _size(item.get("size"))
    if size_bytes == SIZE_UNKNOWN:
        raise StoreProtocolError(f"{location.name(key)}: the answer has no size that can be read")
    return ObjectInfo(key, size_bytes, _generation(item.get("generation")), _time_ns(item.get("updated")))


def _parsed(body: bytes, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise StoreProtocolError(f"{name}: the answer is no JSON; is this an endpoint of Google Cloud Storage?")
    return parsed


def _size(value: object) -> int:
    text = str(value)
    return int(text) if len(text) < 20 and text.isdecimal() and text.isascii() else SIZE_UNKNOWN


def _generation(value: object) -> str | None:
    return value if isinstance(value, str) and GENERATION.match(value) else None


def _time_ns(value: object) -> int:
    try:
        return (datetime.fromisoformat(str(value)) - _EPOCH) // _MICROSECOND * 1000
    except (TypeError, ValueError, OverflowError):
        return TIME_UNKNOWN_NS
