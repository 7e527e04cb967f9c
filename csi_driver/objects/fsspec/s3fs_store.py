"""S3 through s3fs: for ``backend: s3fs``, and as a well-known baseline."""

from __future__ import annotations

import asyncio
import tempfile
import weakref
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec.asyn
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.loaders import Loader, create_loader
from botocore.utils import parse_timestamp

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.entity_tags import if_match_header, plain_etag, satisfies
from csi_driver.model.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, from_s3_headers, md5_worthwhile_bytes
from csi_driver.objects.content_range import check_range_answer
from csi_driver.objects.endpoints import check_ca_bundle, service_endpoint
from csi_driver.objects.error_mapping import from_fsspec
from csi_driver.objects.http.bounded_body import LONGEST_S
from csi_driver.objects.http.connection_pool import proxy_of
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S
from csi_driver.objects.http.dialling import check_endpoint
from csi_driver.objects.listing_pages import ListedPage, all_pages
from csi_driver.objects.s3.addressing import s3_address, s3_endpoint
from csi_driver.objects.s3.identity import open_identity
from csi_driver.objects.s3.listing import ARCHIVES
from csi_driver.objects.s3.region import bucket_region
from csi_driver.objects.store_location import StoreLocation

T = TypeVar("T")

PIECE_BYTES = 1 << 20
WAITS_OF_A_PAGE = 10
"""So many time-outs may a page of a listing take as a whole, and at the most ``LONGEST_S``."""
GRACE_S = 5.0
"""After the time-out of a call, in which the libraries end it themselves: more than a busy machine takes for it."""
_OF_EVERY_LISTING = ("Contents", "IsTruncated", "KeyCount", "Name")
"""botocore takes an empty body, and XML of any kind, for a listing without these fields: the last page, and empty."""
_UNKNOWN = datetime.fromtimestamp(TIME_UNKNOWN_NS, UTC)


class S3fsStore:
    """One bucket. Calls S3's operations through s3fs' session rather than its file functions, which support neither
    If-Match nor keys that are not paths. Safe for any number of threads: s3fs runs on an event loop of its own."""

    def __init__(self, filesystem: Any, location: StoreLocation, timeout_s: float, ca_file: Path | None = None) -> None:
        """``ca_file``: the CA bundle, which is removed with this object."""
        self._filesystem, self._location = filesystem, location
        if ca_file is not None:
            weakref.finalize(self, ca_file.unlink, missing_ok=True)
        self._timeout_s = timeout_s
        self.md5_up_to_bytes = md5_worthwhile_bytes(location.endpoint)

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    lists_pages = True

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return all_pages(lambda token: self.list_page(prefix, token), self._location.name(None))

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        arguments = {} if token is None else {"ContinuationToken": token}
        response = self._call(None, "list_objects_v2", Prefix=prefix, **arguments)
        if response.keys().isdisjoint(_OF_EVERY_LISTING):
            raise StoreProtocolError(
                f"{self._location.name(None)}: the answer is not a listing; is this an S3 endpoint?"
            )
        with self._understood(None):
            contents = response.get("Contents", [])
            page = ObjectPage(
                keys=[entry.get("Key", "") for entry in contents],
                sizes_bytes=[entry.get("Size", SIZE_UNKNOWN) for entry in contents],
                etags=[plain_etag(entry.get("ETag")) for entry in contents],
                mtimes_ns=[_time_ns(entry.get("LastModified", _UNKNOWN)) for entry in contents],
                archived=[entry.get("Key", "") for entry in contents if entry.get("StorageClass") in ARCHIVES],
            )
            return ListedPage(page, response["NextContinuationToken"] if response.get("IsTruncated") else None)

    def stat(self, key: str) -> ObjectInfo:
        try:
            response = self._call(key, "head_object", Key=key)
        except (ObjectNotFound, AccessDenied):
            # As in RestClient.stat: a listing raises the more precise error.
            self._call(None, "list_objects_v2", Prefix=key, MaxKeys=1)
            raise
        with self._understood(key):
            etag = plain_etag(response.get("ETag"))
            return ObjectInfo(key, response["ContentLength"], etag, _time_ns(response["LastModified"]))

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        response = self._call(key, "head_object", Key=key, ChecksumMode="ENABLED", **_condition(if_match))
        return from_s3_headers(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        span = f"bytes={byte_range.start}-{byte_range.stop - 1}"
        response = self._call(key, "get_object", Key=key, Range=span, **_condition(if_match))
        try:
            self._check(key, byte_range, if_match, response)
            pieces = self._pieces(key, len(byte_range), response["Body"])
            if response.get("ContentLength") is not None:
                yield from pieces
                return
            # The end of the body is all that shows its length: bytes of a longer one are not those that were requested.
            held = list(pieces)
            if self._run(key, response["Body"].read(1), self._timeout_s):
                raise StoreProtocolError(f"{self._location.name(key)}: the answer is longer than the range")
            yield from held
        finally:
            response["Body"].close()

    def close(self) -> None:
        """s3fs closes its session with the file system object."""

    @contextmanager
    def _understood(self, key: str | None) -> Iterator[None]:
        """Around the use of an answer, in which fields may be missing or of any type."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            name = self._location.name(key)
            raise StoreProtocolError(f"{name}: a field of the answer is missing or cannot be read") from error

    def _check(self, key: str, requested: ByteRange, if_match: str | None, response: dict[str, Any]) -> None:
        name = self._location.name(key)
        if if_match is not None and not satisfies(plain_etag(response.get("ETag")), if_match):
            raise ObjectChanged(f"{name} is not the version that was listed; make a new snapshot")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        check_range_answer(status, response.get("ContentRange"), response.get("ContentLength"), requested, name)

    def _pieces(self, key: str, expected_bytes: int, body: Any) -> Iterator[memoryview]:
        missing = expected_bytes
        while missing:
            piece: bytes = self._run(key, body.read(min(PIECE_BYTES, missing)), self._timeout_s)
            if not piece:
                raise TransientStoreError(f"{self._location.name(key)}: bytes are missing at the end")
            missing -= len(piece)
            yield memoryview(piece)

    def _call(self, key: str | None, operation: str, **arguments: Any) -> dict[str, Any]:
        """The head of the answer, and its body if that is metadata. Bounded as a whole: the time-out of the connection
        is for each byte."""
        step = self._filesystem._call_s3(operation, Bucket=self._location.bucket, **arguments)
        longest_s = self._timeout_s if key is not None else min(LONGEST_S, WAITS_OF_A_PAGE * self._timeout_s)
        response: dict[str, Any] = self._run(key, asyncio.wait_for(step, longest_s), longest_s)
        return response

    def _run(self, key: str | None, step: Awaitable[T], longest_s: float) -> T:
        """The libraries keep to the time-out by themselves. A step that does not, and takes no notice of being
        cancelled, is left behind: the caller's thread waits for ``GRACE_S`` more, and no longer."""

        async def awaited() -> T:
            return await step

        try:
            result: T = fsspec.asyn.sync(self._filesystem.loop, awaited, timeout=longest_s + GRACE_S)
        except Exception as error:  # noqa: BLE001 - errors of aiohttp, botocore and s3fs; from_fsspec maps them
            raise from_fsspec(error, self._location, key) from None
        return result


def open_s3fs(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> S3fsStore:
    """Raises AddressNotAllowed, CredentialsRejected, InvalidParameter. botocore resolves names and dials by itself; the
    policy leaves it to trusted volumes and listed endpoints. Blocks as ``open_s3`` does."""
    if options.endpoint:
        check_endpoint(options.address_rules, options.endpoint)
    identity = open_identity(options, credentials)
    keys = None if identity is None else identity.keys()
    wait_s = options.request_timeout_s
    address = s3_address(url.bucket, options, bucket_region(url.bucket, options))
    endpoint = s3_endpoint(options, address.region)
    proxy = proxy_of(address.base_url, options.address_rules)
    ca_file = _ca_file(check_ca_bundle(options.ca_bundle_pem))
    arguments: dict[str, Any] = {
        "anon": options.anonymous,
        "endpoint_url": endpoint,
        "requester_pays": options.requester_pays,
        "client_kwargs": {"region_name": address.region} | ({"verify": str(ca_file)} if ca_file else {}),
        "config_kwargs": {
            "connect_timeout": min(CONNECT_TIMEOUT_S, wait_s),
            "read_timeout": wait_s,
            "max_pool_connections": options.max_connections,
            "retries": {"max_attempts": 0},
            # Always given: without it botocore reads the environment by a rule of its own.
            "proxies": {} if proxy is None else {endpoint.partition(":")[0]: proxy.full_url},
            # Not "auto", by which botocore would put the bucket before the host of an endpoint.
            "s3": {"addressing_style": "virtual" if address.virtual_hosted else "path"},
            "http_session_cls": _SessionWithoutRedirects,
        },
        # s3fs caches one file system for equal arguments; two volumes must not share one.
        "skip_instance_cache": True,
    }
    if keys is not None and not keys.rotates:
        arguments |= {"key": keys.access_key_id, "secret": keys.secret_access_key, "token": keys.session_token}
    filesystem = s3fs.S3FileSystem(session=_session(), **arguments)
    filesystem.retries = 1  # retrying.py alone retries
    via = "" if proxy is None else proxy.url
    location = StoreLocation(service_endpoint(url, options, credentials), url.bucket, options.anonymous, via)
    return S3fsStore(filesystem, location, wait_s, ca_file)


def _session() -> AioSession:
    """botocore refuses a page of a listing for one time that it cannot read."""
    session = AioSession()
    session.register_component("data_loader", _service_models(session.get_config_variable("data_path")))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return session


@cache
def _service_models(paths: str | None) -> Loader:
    """One for all stores: each would parse botocore's description of S3 anew, which takes a tenth of a second of
    processor time and some megabytes. Two threads may both parse it the first time."""
    return create_loader(paths)


def _timestamp(text: Any) -> datetime:
    try:
        return parse_timestamp(text)
    except (ValueError, OverflowError, TypeError):
        return _UNKNOWN


class _SessionWithoutRedirects(AIOHTTPSession):  # type: ignore[misc]  # untyped
    """botocore itself follows no redirect, but the HTTP library below it would."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _WithoutRedirects(await super()._get_session(proxy_url))


class _WithoutRedirects:
    """The part of aiohttp's session that aiobotocore uses."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **arguments: Any) -> Any:
        return await self._session.request(method, allow_redirects=False, **arguments)


def _ca_file(pem: str | None) -> Path | None:
    """botocore reads certificates from a file only, and trusts them instead of the system's."""
    if pem is None:
        return None
    descriptor, name = tempfile.mkstemp(prefix="hayloft-ca-", suffix=".pem")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(pem)
    return Path(name)


def _time_ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def _condition(if_match: str | None) -> dict[str, str]:
    value = if_match_header(if_match)
    return {} if value is None else {"IfMatch": value}
