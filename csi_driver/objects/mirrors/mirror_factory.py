"""Opens a dataset with its mirrors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.checksums import ChecksumProvider
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.mirrored_store import Mirrored
from csi_driver.objects.mirrors.object_verdicts import SourceStore
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.objects.retrying import Retrying, RetryingWithChecksums, RetryPolicy, without_retries
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store


class MirrorPlace(NamedTuple):
    """Where a copy of the dataset is."""

    url: DatasetUrl
    options: StoreOptions
    credentials: Callable[[], Credentials]
    """Raises InvalidParameter, MissingParameter."""


def mirrored_store(
    url: DatasetUrl,
    options: StoreOptions,
    store: ObjectStore,
    places: Sequence[MirrorPlace],
    *,
    size_is_enough: bool = False,
    counts: RequestCounts | None = None,
) -> tuple[ObjectStore, Mirrored]:
    """``store``, as ``open_store`` has opened it for ``url``, with its mirrors, and what reads them. Retries are around
    all of them: a failure is followed by a request to the next place at once, and by a pause if all have failed.

    Sends no request. Owns the store. Raises InvalidParameter, and MissingParameter for Azure without an account.
    """
    counts = counts or RequestCounts()
    sources = [SourceStore(_name(url, store.endpoint), without_retries(store), url.prefix, _relays(options, store))]
    for place in places:
        mirror = _opened_late(place, counts)
        relays = _relays(place.options, mirror)
        sources.append(SourceStore(_name(place.url, mirror.endpoint), mirror, place.url.prefix, relays))
    mirrored = Mirrored(
        sources,
        MirrorReports([source.name for source in sources]),
        size_is_enough=size_is_enough,
        probe_timeout_s=options.request_timeout_s,
    )
    policy = RetryPolicy(options.deadline_s, retried=counts.retried)
    if not isinstance(store, ChecksumProvider):
        return Retrying(mirrored, options.deadline_s, policy), mirrored
    md5_up_to_bytes = store.md5_up_to_bytes
    return RetryingWithChecksums(mirrored, mirrored, options.deadline_s, md5_up_to_bytes, policy), mirrored


def _opened_late(place: MirrorPlace, counts: RequestCounts) -> LazyStore:
    endpoint = service_endpoint(place.url, place.options, place.credentials())

    def opened() -> ObjectStore:
        return without_retries(open_store(place.url, place.options, place.credentials(), counts=counts))

    return LazyStore(endpoint, place.url.bucket, opened)


def _name(url: DatasetUrl, endpoint: str) -> str:
    return f"{url} at {endpoint}"


def _relays(options: StoreOptions, store: ObjectStore) -> bool:
    """As ``TierOfMounts`` decides it for the first store: replicas resolve names and verify certificates themselves."""
    host = urlsplit(store.endpoint).hostname or ""
    return options.ca_bundle_pem is None and options.address_rules.trusts(host)
