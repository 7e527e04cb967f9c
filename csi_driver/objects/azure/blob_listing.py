"""Parses pages of Azure's List Blobs."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import unquote
from xml.etree import ElementTree

from csi_driver.model.entity_tags import plain_etag
from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectPage
from csi_driver.objects.http.exact_xml import exact_text, parse_exact
from csi_driver.objects.listing_pages import ListedPage
from csi_driver.objects.store_location import StoreLocation

_NOTHING = ElementTree.Element("Properties")


def parse_blobs(body: bytes, location: StoreLocation) -> ListedPage:
    """A directory of an account with a hierarchical namespace, or of Hadoop's driver (``hdi_isfolder``), is an object
    without bytes; it is listed as its name and a slash, the key of a directory marker.

    An entry without a name, which is no object, is skipped. Of values that cannot be read, a size becomes
    ``SIZE_UNKNOWN``, a time ``TIME_UNKNOWN_NS``, an ETag None. Raises StoreProtocolError.
    """
    name = location.name(None)
    try:
        root = parse_exact(body)
    except ElementTree.ParseError as error:
        raise StoreProtocolError(f"{name}: the listing is no valid XML") from error
    if root.tag != "EnumerationResults" or root.find("Blobs") is None:
        raise StoreProtocolError(f"{name}: the answer is not a listing; is this an endpoint of Azure Blob Storage?")
    keys, sizes, etags, times, archived = [], [], [], [], []
    for blob in root.iterfind("Blobs/Blob"):
        key = _key(blob.find("Name"))
        if not key:
            continue
        properties = blob.find("Properties")
        text_of = _NOTHING.findtext if properties is None else properties.findtext
        is_directory = text_of("ResourceType") == "directory" or _is_folder(blob.find("Metadata"))
        keys.append(f"{key}/" if is_directory and not key.endswith("/") else key)
        sizes.append(_size(text_of("Content-Length")))
        etags.append(plain_etag(exact_text(text_of("Etag"))))
        times.append(_time_ns(text_of("Last-Modified") or ""))
        if text_of("AccessTier") == "Archive":
            archived.append(keys[-1])
    return ListedPage(
        ObjectPage(keys, sizes, etags, times, archived=archived), exact_text(root.findtext("NextMarker")) or None
    )


def _key(name: ElementTree.Element | None) -> str:
    if name is None:
        return ""
    key = exact_text(name.text)
    # Azure escapes the names that XML cannot hold.
    return unquote(key, errors="surrogateescape") if name.get("Encoded") == "true" else key


def _size(text: str | None) -> int:
    if text is None:
        return 0  # a directory has none
    text = text.strip()
    return int(text) if len(text) < 20 and text.isdecimal() and text.isascii() else SIZE_UNKNOWN


def _is_folder(metadata: ElementTree.Element | None) -> bool:
    """Whether the metadata are those of a directory. Their names are compared without case, as headers are."""
    return metadata is not None and any(
        entry.tag.lower() == "hdi_isfolder" and (entry.text or "").strip().lower() == "true" for entry in metadata
    )


@lru_cache(maxsize=4096)  # objects that were written together share their second
def _time_ns(text: str) -> int:
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 10**9
    except (TypeError, ValueError, OverflowError, IndexError):
        return TIME_UNKNOWN_NS
