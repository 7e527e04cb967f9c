"""Requests of a user: a URL, a selection, and how to reach the store."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, unquote

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.errors import InvalidParameter

AddressingStyle = Literal["auto", "path", "virtual"]
Backend = Literal["auto", "obstore", "s3fs"]
VerifyChecksums = Literal["auto", "full", "off"]

WEB_SCHEMES = ("http", "https")
_SAFE_IN_PATH = "/-_.~!$&'()*+,;=:@"
"""Characters that a path of a URL may hold as they are."""


_QUERY = re.compile("[?#]")


@dataclass(frozen=True, slots=True)
class DatasetUrl:
    """A parsed dataset URL.

    ``bucket`` is the part after ``://`` up to the next slash (empty for ``file://``); ``prefix`` is the rest without
    a leading slash and, unless it is empty, with one trailing slash. For ``file://`` the prefix is the absolute path
    without its leading slash.
    """

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> DatasetUrl:
        """Raises InvalidParameter. ``objects/store_factory.py`` decides whether the scheme is supported."""
        scheme, separator, rest = text.strip().partition("://")
        if not separator or not scheme or not rest:
            raise InvalidParameter("url", without_query(text), "scheme://bucket/prefix, such as s3://my-bucket/train")
        scheme = scheme.lower()
        if "@" in rest.partition("/")[0]:
            shown = without_query(f"{scheme}://{rest.rpartition('@')[2]}")
            raise InvalidParameter("url", shown, "a URL without a user or password; credentials belong in a secret")
        if _QUERY.search(rest if scheme in WEB_SCHEMES else rest.partition("/")[0]):
            allowed = "a URL without a query or fragment (in the path of a web server ? is %3F, and # is %23)"
            raise InvalidParameter("url", without_query(text), allowed)
        if scheme in ("s3a", "s3n"):
            scheme = "s3"
        bucket, _, prefix = rest.partition("/")
        if scheme in WEB_SCHEMES:
            prefix = _web_path(text, prefix)
        if scheme == "file" and bucket not in ("", "localhost"):
            raise InvalidParameter("url", without_query(text), "file:///absolute/path")
        if scheme == "file":
            bucket = ""
        elif not bucket and scheme in ("s3", "gs", "az", "http", "https"):
            raise InvalidParameter("url", without_query(text), f"{scheme}://bucket/prefix with a bucket")
        prefix = prefix.lstrip("/") if scheme == "file" else prefix
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        return cls(scheme, bucket, prefix)

    @property
    def is_web(self) -> bool:
        """Whether it is the URL of a web server, whose path is decoded in ``prefix``."""
        return self.scheme in WEB_SCHEMES

    def __str__(self) -> str:
        path = quote(self.prefix, safe=_SAFE_IN_PATH, errors="surrogateescape") if self.is_web else self.prefix
        return f"{self.scheme}://{self.bucket}/{path}"


def without_query(url: str) -> str:
    """Without a query or a fragment, where people write signatures and tokens."""
    found = _QUERY.search(url)
    return f"{url[: found.start() + 1]}…" if found else url


def _web_path(url: str, path: str) -> str:
    """Decoded. Raises InvalidParameter for what servers and clients read as another path."""
    decoded = unquote(path, errors="surrogateescape")
    parts = decoded.split("/")
    if "%2f" in path.lower() or "\0" in decoded or "." in parts or ".." in parts:
        raise InvalidParameter("url", without_query(url), "a URL without dots as parts of its path, %2F and %00")
    return decoded


@dataclass(frozen=True, slots=True)
class Dataset:
    """A URL and a selection of the objects below it. Globs are matched against the path below the prefix; one without a
    slash matches a name in any directory (``catalog/selection.py``)."""

    url: DatasetUrl
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Holds no secret."""

    endpoint: str | None = None
    """Base URL of an S3-compatible (or GCS, Azure) service; None is the provider's own."""
    region: str | None = None
    """None: that of the bucket on AWS, else us-east-1."""
    addressing_style: AddressingStyle = "auto"
    anonymous: bool = False
    requester_pays: bool = False
    billing_project: str | None = None
    """The project of Google Cloud that pays; None: that of the key in the Secret."""
    ca_bundle_pem: str | None = None
    """Certificates to trust in addition to the system's, in PEM form: the text, not a path."""
    backend: Backend = "auto"
    verify_checksums: VerifyChecksums = "auto"
    """Which checksums are verified before an object is complete in the cache. ``auto``: the cheap ones; ``full``: also
    ETags that may be MD5s, of every size and over TLS."""
    request_timeout_s: float = 30.0
    """A request without a byte for this long times out and is retried."""
    deadline_s: float = 120.0
    """Time without progress over all tries of one operation; then StoreUnavailable."""
    max_connections: int = 128
    """Requests in flight, of readers and warmups together. With 64, cold files of 110 kB would wait for it: a volume
    has up to 112 requests for small objects in flight, and 14 fetch threads."""
    manifest: str | None = None
    """Of a web server: the list of the dataset's files, a path below its URL, or a URL there."""
    page_bytes: int = 32 << 20
    """The longest page of a listing after decompression (``ListingSettings.page_bytes``)."""
    address_rules: AddressRules = ANY_BUT_METADATA
    """The addresses that may be dialled for the store; the operator's policy makes them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Secrets of a volume, under the normalised names of ``objects/credentials.py``. Never printed."""

    values: dict[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.values)
