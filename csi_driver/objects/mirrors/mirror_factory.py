"""Opens a dataset with its mirrors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import RequestError, StoreError, TransientStoreError
from csi_driver.objects.checksums import ChecksumProvider
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.mirrored_store import Mirrored
from csi_driver.objects.mirrors.object_verdicts import SourceStore
from csi_driver.objects.mirrors.origin_choice import DECISIONS
from csi_driver.objects.mirrors.origin_speeds import OriginSpeeds
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
    speeds: OriginSpeeds | None = None,
    mirror_counts: MirrorCounts | None = None,
) -> tuple[ObjectStore, Mirrored]:
    """``store``, as ``open_store`` or ``first_opened_late`` has opened it for ``url``, with its mirrors, and what reads
    them. Retries are around all of them: a failure is followed by a request to the next place at once, and by a pause
    if all have failed. ``speeds``: of so many stores, the nearest of which is read, with the counts that ``store`` was
    opened with; None: the listed order holds.

    Sends no request. Owns the store. Raises InvalidParameter, and MissingParameter for Azure without an account.
    """
    counts = counts or RequestCounts()
    late = isinstance(store, LazyStore)
    first = store if late else without_retries(store)
    sources = [SourceStore(_name(url, store.endpoint), first, url.prefix, _relays(options, store))]
    for number, place in enumerate(places, 1):
        mirror = _opened_late(place, counts if speeds is None else speeds.counting(number, counts), lenient=late)
        relays = _relays(place.options, mirror)
        sources.append(SourceStore(_name(place.url, mirror.endpoint), mirror, place.url.prefix, relays))
    mirrored = Mirrored(
        sources,
        MirrorReports([source.name for source in sources], counts=mirror_counts),
        size_is_enough=size_is_enough,
        speeds=speeds,
        probe_timeout_s=options.request_timeout_s,
    )
    policy = RetryPolicy(options.deadline_s, retried=counts.retried)
    if not isinstance(store, ChecksumProvider):
        return Retrying(mirrored, options.deadline_s, policy), mirrored
    md5_up_to_bytes = None if late else store.md5_up_to_bytes
    return RetryingWithChecksums(mirrored, mirrored, options.deadline_s, md5_up_to_bytes, policy), mirrored


def first_opened_late(place: MirrorPlace, counts: RequestCounts | None = None) -> LazyStore:
    """The first store of a daemon that cannot open it yet: until it can, each use fails as one of a store that does
    not answer, so that mirrors are read and it is tried again. What is refused stays a refusal, of which no mirror is a
    way around. Raises MissingParameter for an Azure dataset with a Secret that this version refuses."""
    endpoint = service_endpoint(place.url, place.options, place.credentials() if place.url.scheme == "az" else _NONE)

    def opened() -> ObjectStore:
        try:
            return without_retries(open_store(place.url, place.options, place.credentials(), counts=counts))
        except (TransientStoreError, *DECISIONS):
            raise
        except StoreError as error:
            raise TransientStoreError(f"the store cannot be opened: {error}") from error

    return LazyStore(endpoint, place.url.bucket, opened)


_NONE = Credentials()


def _opened_late(place: MirrorPlace, counts: RequestCounts, *, lenient: bool) -> LazyStore:
    """``lenient``: a Secret that is refused keeps the volume from reading this mirror, and from nothing else."""
    try:
        endpoint = service_endpoint(place.url, place.options, place.credentials())
    except RequestError:
        if not lenient:
            raise
        endpoint = place.options.endpoint or f"{place.url.scheme}://"

    def opened() -> ObjectStore:
        return without_retries(open_store(place.url, place.options, place.credentials(), counts=counts))

    return LazyStore(endpoint, place.url.bucket, opened)


def _name(url: DatasetUrl, endpoint: str) -> str:
    return f"{url} at {endpoint}"


def _relays(options: StoreOptions, store: ObjectStore) -> bool:
    """As ``TierOfMounts`` decides it for the first store: replicas resolve names and verify certificates themselves."""
    host = urlsplit(store.endpoint).hostname or ""
    return options.ca_bundle_pem is None and options.address_rules.trusts(host)
