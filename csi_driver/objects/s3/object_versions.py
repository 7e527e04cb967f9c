"""Parses the pages of ListObjectVersions."""

from __future__ import annotations

import json
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from csi_driver.model.entity_tags import plain_etag
from csi_driver.model.errors import StoreProtocolError, VersionsNotPinned
from csi_driver.model.snapshot import NO_VERSION, ObjectPage, VersionPage
from csi_driver.objects.http.exact_xml import exact_text, parse_exact
from csi_driver.objects.s3.listing import listed_size, listed_time_ns
from csi_driver.objects.store_location import StoreLocation
from csi_driver.objects.version_listing import ListedVersions

_LONGEST_ID = 1024
"""Characters of a version id, by S3's documentation."""


def page_query(prefix: str, token: str | None) -> dict[str, str]:
    """The query of the page that ``token`` names; None: of the first."""
    query = {"versions": "", "encoding-type": "url", "prefix": prefix}
    if token is not None:
        query["key-marker"], query["version-id-marker"] = json.loads(token)
    return {name: value for name, value in query.items() if value or name != "version-id-marker"}


def parse_version_page(body: bytes, location: StoreLocation) -> ListedVersions:
    """Raises StoreProtocolError, and VersionsNotPinned for the answer to another request."""
    try:
        root = parse_exact(body)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise StoreProtocolError(f"{location.name(None)}: the listing of versions is no valid XML") from error
    namespace, _, name = root.tag.rpartition("}")
    namespace = f"{namespace}}}" if namespace else ""
    if name != "ListVersionsResult":
        raise VersionsNotPinned(f"{location.name(None)}: the store does not answer a request for versions with them")
    encoded = root.findtext(f"{namespace}EncodingType") == "url"
    page = _page(root, namespace, encoded)
    if root.findtext(f"{namespace}IsTruncated") != "true":
        return ListedVersions(page, None)
    key = _text(root.findtext(f"{namespace}NextKeyMarker"), encoded)
    if not key:
        raise StoreProtocolError(f"{location.name(None)}: the listing of versions breaks off without a marker")
    version_id = exact_text(root.findtext(f"{namespace}NextVersionIdMarker"))
    return ListedVersions(page, json.dumps([key, version_id]))


def _page(root: ElementTree.Element, namespace: str, encoded: bool) -> VersionPage:
    keys, sizes, etags, times, version_ids = [], [], [], [], []
    for entry in root.iterfind(f"{namespace}Version"):
        fields = {child.tag.removeprefix(namespace): child.text for child in entry}
        version_id = exact_text(fields.get("VersionId")) or NO_VERSION
        if len(version_id) > _LONGEST_ID or not version_id.isascii() or not version_id.isprintable():
            version_id = NO_VERSION  # nothing that could be requested
        keys.append(_text(fields.get("Key"), encoded))
        sizes.append(listed_size(exact_text(fields.get("Size"))))
        etags.append(plain_etag(exact_text(fields.get("ETag"))))
        times.append(listed_time_ns(exact_text(fields.get("LastModified"))))
        version_ids.append(version_id)
    return VersionPage(ObjectPage(keys, sizes, etags, times), version_ids)


def _text(text: str | None, encoded: bool) -> str:
    plain = exact_text(text)
    return unquote_plus(plain, errors="surrogateescape") if encoded else plain
