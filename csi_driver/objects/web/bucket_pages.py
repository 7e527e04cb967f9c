"""The root of a public bucket, as S3, Google and many CDNs in front of them show it: a page of S3's own listing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote

from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.listing_pages import ListedPage, all_pages
from csi_driver.objects.s3.listing import parse_listing
from csi_driver.objects.web.web_client import Page
from csi_driver.objects.web.web_urls import WebLocation, below

_XML = frozenset({"application/xml", "text/xml"})
_START_BYTES = 1024


def is_bucket(page: Page) -> bool:
    """Whether the page is a listing of a bucket."""
    return page.media_type in _XML and b"<ListBucketResult" in page.body[:_START_BYTES]


def bucket_pages(fetch: Callable[[str], Page], location: WebLocation, root: str) -> Iterator[ObjectPage]:
    """All objects of the bucket at ``root``. ``fetch`` requests ``root`` with a query. Raises StoreProtocolError, also
    for a server that does not pass the query on to its bucket."""

    def fetched(token: str | None) -> ListedPage:
        query = "list-type=2&encoding-type=url" + (f"&continuation-token={quote(token, safe='')}" if token else "")
        page, next_token = parse_listing(fetch(query).body, location)
        return ListedPage(_named_from(page, root), next_token)

    return all_pages(fetched, location.name(root))


def _named_from(page: ObjectPage, root: str) -> ObjectPage:
    """With keys from the server's root on, as far as a URL can name them."""
    keys = [root + key for key in page.keys]
    kept = [number for number, key in enumerate(keys) if below(root, key) == key]
    return ObjectPage(
        [keys[number] for number in kept],
        [page.sizes_bytes[number] for number in kept],
        [page.etags[number] for number in kept],
        [page.mtimes_ns[number] for number in kept],
        unreadable=[key for key in keys if below(root, key) != key],
    )
