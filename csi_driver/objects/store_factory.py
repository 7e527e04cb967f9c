"""Opens the store that a URL names. The client of a store is imported when one is opened: a process has those that it
uses, and one that has opened none has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.checksums import ANY_SIZE, ChecksumProvider
from csi_driver.objects.concurrency_limit import Limited, LimitedWithChecksums
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.local_file_store import FileStore
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.objects.retrying import Retrying, RetryingWithChecksums, RetryPolicy
from csi_driver.objects.store import ObjectStore

Opener = Callable[[DatasetUrl, StoreOptions, Credentials], ObjectStore]


def open_store(
    url: DatasetUrl,
    options: StoreOptions,
    credentials: Credentials,
    *,
    deadline_s: float | None = None,
    counts: RequestCounts | None = None,
) -> ObjectStore:
    """The store of ``url``, with retries under ``deadline_s`` (default: the options') and at most ``max_connections``
    requests in flight, which are added to ``counts``. Keys are complete keys: pass ``url.prefix`` to ``list``.

    Sends no request to the store, except for the region of an AWS bucket whose region is not given; may block some
    seconds on the node's identity. Raises UnsupportedUrl, InvalidParameter, MissingParameter, CredentialsRejected.
    """
    limit_s = options.deadline_s if deadline_s is None else deadline_s
    # A single try must not outlast the deadline of them all.
    options = dataclasses.replace(
        options, request_timeout_s=min(options.request_timeout_s, limit_s), deadline_s=limit_s
    )
    counts = counts or RequestCounts()
    policy = RetryPolicy(limit_s, retried=counts.retried)
    store = _open(url, options, credentials)
    if options.verify_checksums == "off" or not isinstance(store, ChecksumProvider):
        return Retrying(Limited(store, options.max_connections, counts), limit_s, policy)
    md5_up_to_bytes = ANY_SIZE if options.verify_checksums == "full" else store.md5_up_to_bytes
    limited = LimitedWithChecksums(store, store, options.max_connections, counts)
    return RetryingWithChecksums(limited, limited, limit_s, md5_up_to_bytes, policy)


def open_store_late(
    url: DatasetUrl,
    options: StoreOptions,
    credentials: Callable[[], Credentials],
    counts: RequestCounts | None = None,
) -> ObjectStore:
    """As ``open_store``, but sends no request before the first use of the store, which then raises what ``credentials``
    and ``open_store`` raise. Of Azure, where the account names the endpoint, the credentials are needed at once."""
    endpoint = service_endpoint(url, options, credentials() if url.scheme == "az" else Credentials())
    return LazyStore(endpoint, url.bucket, lambda: open_store(url, options, credentials(), counts=counts))


def import_client(scheme: str) -> None:
    """Imports the client of a kind of store before the first one is opened."""
    _opener(scheme)


_WITH_PAYERS = ("s3", "gs", "gcs")


def _open(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> ObjectStore:
    if options.requester_pays and url.scheme not in _WITH_PAYERS:
        remedy = f"Nothing in a request to {url.scheme}:// names who pays: leave it out"
        raise InvalidParameter("requesterPays", "true", "true for s3:// and gs:// URLs only", remedy)
    if options.backend == "s3fs":
        if url.scheme != "s3":
            raise InvalidParameter("backend", "s3fs", "auto or obstore for a URL that is not s3://")
        from csi_driver.objects.fsspec.s3fs_store import open_s3fs

        return open_s3fs(url, options, credentials)
    if url.scheme == "file":
        return FileStore("/" + url.prefix)
    opener = _opener(url.scheme)
    if opener is not None:
        return opener(url, options, credentials)
    if options.backend == "obstore":
        raise InvalidParameter("backend", "obstore", f"auto for {url.scheme}://")
    from csi_driver.objects.fsspec.fsspec_store import open_fsspec

    return open_fsspec(url, options, credentials)


def _opener(scheme: str) -> Opener | None:
    """Of the stores with a client of their own."""
    if scheme == "s3":
        from csi_driver.objects.s3.s3_factory import open_s3

        return open_s3
    if scheme in ("gs", "gcs"):
        from csi_driver.objects.google.google_store import open_gcs

        return open_gcs
    if scheme == "az":
        from csi_driver.objects.azure.azure_store import open_azure

        return open_azure
    if scheme in ("http", "https"):
        from csi_driver.objects.web.web_factory import open_web

        return open_web
    return None
