"""S3 through s3fs: for ``backend: s3fs``, and as a well-known baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import fsspec.asyn
import s3fs

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectNotFound,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, from_s3_headers, md5_worthwhile_bytes
from csi_driver.objects.content_range import check_content_range
from csi_driver.objects.endpoints import check_ca_bundle, parse_endpoint, service_endpoint
from csi_driver.objects.error_mapping import from_fsspec
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.s3.region import DEFAULT_REGION, find_region
from csi_driver.objects.store_location import StoreLocation

T = TypeVar("T")

PIECE_BYTES = 1 << 20


class S3fsStore:
    """One bucket. Calls S3's operations through s3fs' session rather than its file functions, which support neither
    If-Match nor keys that are not paths. Safe for any number of threads: s3fs runs on an event loop of its own."""

    def __init__(self, filesystem: Any, location: StoreLocation, ca_file: Any = None) -> None:
        """``ca_file``: the CA bundle, which exists as long as this object is referenced."""
        self._filesystem, self._location, self._ca_file = filesystem, location, ca_file
        self.md5_up_to_bytes = md5_worthwhile_bytes(location.endpoint)

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self.list_after(prefix, "")

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        arguments = {"Prefix": prefix} | ({"StartAfter": after} if after else {})
        while True:
            response = self._call(None, "list_objects_v2", **arguments)
            contents = response.get("Contents", [])
            if contents:
                yield ObjectPage(
                    keys=[entry["Key"] for entry in contents],
                    sizes_bytes=[entry["Size"] for entry in contents],
                    etags=[entry.get("ETag", "").strip('"') or None for entry in contents],
                    mtimes_ns=[_time_ns(entry["LastModified"]) for entry in contents],
                )
            if not response.get("IsTruncated"):
                return
            arguments = {"Prefix": prefix, "ContinuationToken": response["NextContinuationToken"]}

    def stat(self, key: str) -> ObjectInfo:
        try:
            response = self._call(key, "head_object", Key=key)
        except (ObjectNotFound, AccessDenied):
            # As in RestClient.stat: a listing raises the more precise error.
            self._call(None, "list_objects_v2", Prefix=key, MaxKeys=1)
            raise
        etag = response.get("ETag", "").strip('"') or None
        return ObjectInfo(key, response["ContentLength"], etag, _time_ns(response["LastModified"]))

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        condition = {} if if_match is None else {"IfMatch": f'"{if_match}"'}
        response = self._call(key, "head_object", Key=key, ChecksumMode="ENABLED", **condition)
        return from_s3_headers(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        condition = {} if if_match is None else {"IfMatch": f'"{if_match}"'}
        span = f"bytes={byte_range.start}-{byte_range.stop - 1}"
        response = self._call(key, "get_object", Key=key, Range=span, **condition)
        try:
            self._check(key, byte_range, if_match, response)
            yield from self._pieces(key, len(byte_range), response["Body"])
        finally:
            response["Body"].close()

    def close(self) -> None:
        """s3fs closes its session with the file system object."""

    def _check(self, key: str, requested: ByteRange, if_match: str | None, response: dict[str, Any]) -> None:
        name = self._location.name(key)
        if if_match is not None and response.get("ETag", "").strip('"') != if_match:
            raise ObjectChanged(f"{name} is not the version that was listed; make a new snapshot")
        check_content_range(response.get("ContentRange"), requested, name)

    def _pieces(self, key: str, expected_bytes: int, body: Any) -> Iterator[memoryview]:
        missing = expected_bytes
        while missing:
            piece: bytes = self._run(key, body.read(min(PIECE_BYTES, missing)))
            if not piece:
                raise TransientStoreError(f"{self._location.name(key)}: {missing} bytes are missing at the end")
            missing -= len(piece)
            yield memoryview(piece)

    def _call(self, key: str | None, operation: str, **arguments: Any) -> dict[str, Any]:
        response: dict[str, Any] = self._run(
            key, self._filesystem._call_s3(operation, Bucket=self._location.bucket, **arguments)
        )
        return response

    def _run(self, key: str | None, step: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await step

        try:
            result: T = fsspec.asyn.sync(self._filesystem.loop, awaited)
        except Exception as error:  # noqa: BLE001 - errors of aiohttp, botocore and s3fs; from_fsspec maps them
            raise from_fsspec(error, self._location, key) from None
        return result


def open_s3fs(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> S3fsStore:
    """Raises CredentialsRejected, InvalidParameter. Blocks as ``open_s3`` does."""
    keys = None if options.anonymous else S3Identity(credentials).keys()
    wait_s = options.request_timeout_s
    region = options.region or (None if options.endpoint else find_region(url.bucket, CONNECT_TIMEOUT_S))
    ca_file = _ca_file(check_ca_bundle(options.ca_bundle_pem))
    arguments: dict[str, Any] = {
        "anon": options.anonymous,
        "endpoint_url": parse_endpoint(options.endpoint) if options.endpoint else None,
        "requester_pays": options.requester_pays,
        "client_kwargs": {"region_name": region or DEFAULT_REGION} | ({"verify": ca_file.name} if ca_file else {}),
        "config_kwargs": {
            "connect_timeout": min(CONNECT_TIMEOUT_S, wait_s),
            "read_timeout": wait_s,
            "max_pool_connections": options.max_connections,
            "retries": {"max_attempts": 0},
            "s3": {"addressing_style": options.addressing_style},
        },
        # s3fs caches one file system for equal arguments; two volumes must not share one.
        "skip_instance_cache": True,
    }
    if keys is not None and not keys.rotates:
        arguments |= {"key": keys.access_key_id, "secret": keys.secret_access_key, "token": keys.session_token}
    filesystem = s3fs.S3FileSystem(**arguments)
    filesystem.retries = 1  # retrying.py alone retries
    return S3fsStore(filesystem, StoreLocation(service_endpoint(url, options, credentials), url.bucket), ca_file)


def _ca_file(pem: str | None) -> Any:
    """botocore reads certificates from a file only, and trusts them instead of the system's."""
    if pem is None:
        return None
    file = tempfile.NamedTemporaryFile("w", prefix="hayloft-ca-", suffix=".pem")  # noqa: SIM115 - lives with the store
    file.write(pem)
    file.flush()
    return file


def _time_ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
