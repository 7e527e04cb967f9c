"""A store wrapper that asks the tier first, and the store itself for all that the tier has not got.

Whatever a replica does, a read does not fail because of it: what it sends is checked as an answer of the store is
(length, range, version), and the first byte that is missing is asked of the next replica, then of the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.model.replica import Replica
from csi_driver.model.snapshot import ObjectInfo, ObjectPage, version_id_of
from csi_driver.objects.checksums import ChecksumProvider, StoredChecksum, checksum_provider
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import (
    InFlightObject,
    ObjectStore,
    UnusableResponse,
    WholeObject,
    read_whole,
    whole_reader,
)
from csi_driver.objects.tier.ranking import shard_of, stripes
from csi_driver.objects.tier.replica_client import NotInTier, RelayedKey, ReplicaObjectClient, is_failure, judge
from csi_driver.objects.tier.replica_set import MOST_ASKED, Tier
from csi_driver.objects.tier.slice_names import OBJECTS, SLICES, SliceNames
from csi_driver.objects.version_listing import ListedVersions, version_lister
from csi_driver.objects.wrapped_object import WrappedObject

logger = logging.getLogger(__name__)

_MOST_DISTRUSTED = 1 << 12


class _Attempt(NamedTuple):
    """A request that one replica may answer."""

    replica: Replica
    name: str
    origin: OriginRequest
    if_match: str


class _Place(NamedTuple):
    """Where an object version, or a part of it, may be in the tier."""

    replicas: Sequence[Replica]
    name: str
    if_match: str


class Tiered:
    """Ranges and complete objects of the tier first; all other requests go to the store.

    A version that has no strong ETag is read from the store alone: nothing could tell its bytes from those of another
    one. Safe for any number of threads: ``_distrusted`` is changed by single steps of a dictionary.
    """

    is_behind_tier = True

    def __init__(self, store: ObjectStore, tier: Tier, names: SliceNames) -> None:
        """``store`` signs requests, or will when it is open. Owns it."""
        self._store, self._tier, self._names = store, tier, names
        self._distrusted: dict[str, None] = {}
        """Names of object versions of which the tier has sent damaged bytes."""
        self.dataset_bytes = 0
        """Of the snapshot that is read; 0: not known yet."""

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    @property
    def bucket(self) -> str:
        return self._store.bucket

    @property
    def origin(self) -> ObjectStore:
        """The store, which alone knows who may read."""
        return self._store

    @property
    def unretried(self) -> ObjectStore:
        """See ``without_retries``: past the tier."""
        return without_retries(self._store)

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._store.list(prefix)

    @property
    def lists_versions(self) -> bool:
        return version_lister(self._store) is not None

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        """Only if ``lists_versions``."""
        store = version_lister(self._store)
        if store is None:
            raise InternalFailure("this kind of store lists no versions")
        return store.list_versions_page(prefix, token)

    def stat(self, key: str) -> ObjectInfo:
        return self._store.stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        """A replica that stops in the middle costs its time-out; then the rest is asked of the next, or the store."""
        for part in stripes(byte_range):
            start = part.start
            for attempt in self._attempts(key, if_match, start, whole=False):
                try:
                    for piece in self._pieces(attempt, ByteRange(start, part.stop)):
                        start += len(piece)
                        yield piece
                    break
                except NotInTier as error:
                    logger.debug("%s: not in the tier: %s", key, error)
                    self._tier.health.worked(attempt.replica.name)
                    break
                except HayloftError as error:
                    self._note(attempt.replica, error)
            if start < part.stop:
                yield from self._of_store(key, ByteRange(start, part.stop), if_match)

    def _of_store(self, key: str, part: ByteRange, if_match: str | None) -> Iterator[memoryview]:
        began_s = time.monotonic()
        for piece in self._store.read_range(key, part, if_match=if_match):
            if began_s:
                self._tier.pace.bucket(time.monotonic() - began_s)
                began_s = 0.0
            yield piece

    def _pieces(self, attempt: _Attempt, part: ByteRange) -> Iterator[memoryview]:
        """All bytes of the range. Raises NotInTier, HayloftError."""
        tier = self._tier
        key = RelayedKey(tier.path(SLICES + attempt.name), attempt.origin)
        ranges = tier.clients(attempt.replica, attempt.origin.answers).ranges
        response = ranges.request(key, part, attempt.if_match)
        if response is None:
            raise NotInTier("the answer cannot be used")
        for piece in response.pieces():
            tier.counts.received(len(piece))
            yield piece
        tier.health.worked(attempt.replica.name)

    @property
    def reads_whole(self) -> bool:
        return whole_reader(self._store) is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        for attempt in self._attempts(key, if_match, 0, whole=True) if size_bytes else ():
            health, name = self._tier.health, attempt.replica.name
            try:
                relayed = RelayedKey(self._tier.path(OBJECTS + attempt.name), attempt.origin)
                clients = self._tier.clients(attempt.replica, attempt.origin.answers)
                whole = clients.objects.fetch(relayed, size_bytes, attempt.if_match)
            except NotInTier as error:
                logger.debug("%s: not in the tier: %s", key, error)
                health.worked(name)
                break
            except HayloftError as error:
                self._note(attempt.replica, error)
                continue
            self._tier.counts.received(size_bytes)
            health.worked(name)
            return whole
        began_s = time.monotonic()
        whole = read_whole(self._store, key, size_bytes, if_match=if_match)
        self._tier.pace.bucket(time.monotonic() - began_s)
        return whole

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """None also where the tier is to be asked and cannot be without blocking: ``read_whole`` does."""
        whole = whole_reader(self._store)
        if whole is None:
            return None
        place = self._place(key, if_match, 0) if size_bytes else None
        if place is None:
            return whole.begin_whole(key, size_bytes, if_match=if_match)
        health = self._tier.health
        for replica in place.replicas[:MOST_ASKED]:
            if health.is_well(replica.name):
                return self._begin(replica, place, key, size_bytes)
            if health.may_be_probed(replica.name):
                return None  # by a thread, which may wait for it
        return whole.begin_whole(key, size_bytes, if_match=if_match)

    def _begin(self, replica: Replica, place: _Place, key: str, size_bytes: int) -> InFlightObject | None:
        """None: not without blocking. Raises CredentialsRejected."""
        signer = request_signer(self._store)
        if signer is None:
            return None
        origin = signer.origin_request(key, place.if_match, whole=True, may_block=False)
        if origin is None:
            return None
        client = self._tier.clients(replica, origin.answers).objects
        relayed = RelayedKey(self._tier.path(OBJECTS + place.name), origin)
        response = client.begin(relayed, size_bytes, place.if_match)
        return None if response is None else _TierObject(response, client, self._tier, replica, size_bytes)

    def distrust(self, key: str, if_match: str | None) -> None:
        """The bytes of this version were damaged: from now on this daemon takes them from the store."""
        if len(self._distrusted) >= _MOST_DISTRUSTED:
            self._distrusted.clear()
        self._distrusted[self._names.name(key, version_id_of(key), if_match or "")] = None

    @property
    def signs_requests(self) -> bool:
        return request_signer(self._store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        signer = request_signer(self._store)
        return None if signer is None else signer.origin_request(key, if_match, whole=whole, may_block=may_block)

    def close(self) -> None:
        """Connections to replicas are of the tier, and stay."""
        self._store.close()

    # -- what is asked --

    def _attempts(self, key: str, if_match: str | None, start: int, *, whole: bool) -> Iterator[_Attempt]:
        """Of the first in the ranking those that may be asked. May wait for credentials."""
        place, signer = self._place(key, if_match, start), request_signer(self._store)
        if place is None or signer is None:
            return
        try:
            origin = signer.origin_request(key, place.if_match, whole=whole, may_block=True)
        except HayloftError:  # the store says so, too
            return
        if origin is None:
            return
        for replica in place.replicas[:MOST_ASKED]:
            if self._tier.health.may_ask(replica.name):
                yield _Attempt(replica, place.name, origin, place.if_match)

    def _place(self, key: str, if_match: str | None, start: int) -> _Place | None:
        """None: the bucket is asked at once."""
        if if_match is None or not is_strong(if_match):
            return None
        name = self._names.name(key, version_id_of(key), if_match)
        if name not in self._distrusted:
            share = self._tier.share_of(self.dataset_bytes)
            candidates = self._tier.candidates(shard_of(name, start), share)
            if candidates:
                return _Place(candidates, name, if_match)
        self._tier.counts.bypassed()
        return None

    def _note(self, replica: Replica, error: Exception) -> None:
        if is_failure(error):
            self._tier.failed(replica, error)
        else:
            self._tier.health.worked(replica.name)


class TieredWithChecksums(Tiered):
    """A ``ChecksumProvider``."""

    def __init__(self, store: ObjectStore, tier: Tier, names: SliceNames, provider: ChecksumProvider) -> None:
        super().__init__(store, tier, names)
        self._provider = provider

    @property
    def md5_up_to_bytes(self) -> int:
        return self._provider.md5_up_to_bytes

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._provider.checksum(key, if_match=if_match)


def tiered(store: ObjectStore, tier: Tier, names: SliceNames) -> Tiered:
    """The store behind the tier."""
    provider = checksum_provider(store)
    return Tiered(store, tier, names) if provider is None else TieredWithChecksums(store, tier, names, provider)


class _TierObject(WrappedObject):
    """An ``InFlightObject`` of a replica, which notes how it ends."""

    __slots__ = ("_began_s", "_client", "_ended", "_replica", "_size_bytes", "_tier")

    def __init__(
        self,
        response: InFlightObject,
        client: ReplicaObjectClient,
        tier: Tier,
        replica: Replica,
        size_bytes: int,
    ) -> None:
        super().__init__(response)
        self._client, self._tier, self._replica = client, tier, replica
        self._size_bytes, self._ended = size_bytes, False
        self._began_s = time.monotonic()

    def advance(self) -> WholeObject | None:
        try:
            whole = self._response.advance()
        except UnusableResponse:
            self._end(judge(getattr(self._response, "answered", None)))
            raise
        except OSError as error:
            self._end(error)
            raise
        if whole is not None:
            self._client.count(getattr(self._response, "answered", None), time.monotonic() - self._began_s)
            self._tier.counts.received(self._size_bytes)
            self._end(None)
        return whole

    def abort(self) -> None:
        """Before the end: no byte has come in time, or the daemon ends."""
        if not self._ended:
            self._end(TimeoutError("no answer in time"))
        self._response.abort()

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        if error is not None and is_failure(error):
            self._tier.failed(self._replica, error)
        else:
            self._tier.health.worked(self._replica.name)
