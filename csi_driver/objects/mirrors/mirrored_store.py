"""A store wrapper that reads each object from the first of several stores that has it and answers.

The first store is that of the volume's URL: it is listed, and its version of each object is what readers get. An object
of a mirror is read after it was found to have the same bytes (``same_object.py``), and under the mirror's own ETag, so
that no read mixes two versions. A store that fails is left alone for a while, and then tried by a thread of its own:
no reader waits for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from csi_driver.model.chunk import ByteRange
from csi_driver.model.conditions import Condition
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import (
    AccessDenied,
    AddressNotAllowed,
    CredentialsRejected,
    HayloftError,
    InternalFailure,
    ObjectChanged,
    ObjectNotFound,
    RequestError,
    StoreError,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, checksum_provider
from csi_driver.objects.listing_pages import ListedPage, page_lister
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.noted_object import NotedObject
from csi_driver.objects.mirrors.object_verdicts import ObjectVerdicts, SourceStore, is_of_store
from csi_driver.objects.mirrors.same_object import SameBy, is_of_content
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.store import (
    InFlightObject,
    ObjectStore,
    StoreAtLimit,
    WholeObject,
    read_whole,
    whole_reader,
)
from csi_driver.objects.tier.replica_health import ReplicaHealth
from csi_driver.objects.version_listing import ListedVersions, version_lister

_MOST_DISTRUSTED = 1 << 12

_DECISIONS = (AccessDenied, CredentialsRejected, AddressNotAllowed, RequestError)
"""Of the first store: what it, or the operator, refuses is not fetched from its mirrors."""


class _Attempt(NamedTuple):
    """A request that one store may answer."""

    number: int
    store: ObjectStore
    key: str
    if_match: str | None


class Mirrored:
    """May be used from any thread: ``_distrusted`` is changed by single steps of a dictionary."""

    def __init__(
        self,
        sources: Sequence[SourceStore],
        reports: MirrorReports,
        *,
        size_is_enough: bool = False,
        probe_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Owns the stores. ``probe_timeout_s``: when a request that tries a store again is no longer awaited."""
        self._sources, self._first = tuple(sources), sources[0]
        self._all = tuple(range(len(sources)))
        self._health = ReplicaHealth(probe_timeout_s, clock)
        self._reports, self._size_is_enough = reports, size_is_enough
        self._verdicts = ObjectVerdicts(sources, reports, self, size_is_enough=size_is_enough, clock=clock)
        self._distrusted: dict[tuple[str, str], int] = {}
        """How often damaged bytes of an object version were received: with each, another store is asked first."""
        self._closed = threading.Event()
        provider = checksum_provider(sources[0].store)
        self.md5_up_to_bytes = 0 if provider is None else provider.md5_up_to_bytes

    def know_volume(self, volume_id: str, size_of: Callable[[str], int | None]) -> None:
        """``size_of``: the size of a listed object by its key; None: not known."""
        self._reports.volume_id = volume_id
        self._verdicts.size_of = size_of

    @property
    def endpoint(self) -> str:
        return self._first.store.endpoint

    @property
    def bucket(self) -> str:
        return self._first.store.bucket

    # -- of the first store alone --

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._first.store.list(prefix)

    @property
    def lists_pages(self) -> bool:
        return page_lister(self._first.store) is not None

    @property
    def lists_ranges(self) -> bool:
        return bool(getattr(self._first.store, "lists_ranges", False))

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        """Only if ``lists_pages``."""
        store = page_lister(self._first.store)
        if store is None:
            raise InternalFailure("this kind of store lists no single pages")
        return store.list_page(prefix, token)

    @property
    def lists_versions(self) -> bool:
        return version_lister(self._first.store) is not None

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        """Only if ``lists_versions``."""
        store = version_lister(self._first.store)
        if store is None:
            raise InternalFailure("this kind of store lists no versions")
        return store.list_versions_page(prefix, token)

    def stat(self, key: str) -> ObjectInfo:
        return self._first.store.stat(key)

    # -- of whichever answers --

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        """A store that fails in the middle is followed by the next, from the first byte that is missing."""
        start, first_error = byte_range.start, None
        for attempt in self._attempts(key, if_match):
            try:
                rest = ByteRange(start, byte_range.stop)
                for piece in attempt.store.read_range(attempt.key, rest, if_match=attempt.if_match):
                    start += len(piece)
                    yield piece
            except HayloftError as error:
                first_error = self._note(attempt, key, if_match, error, first_error)
                continue
            self._worked(attempt.number)
            return
        raise first_error or _unanswered(key)

    @property
    def reads_whole(self) -> bool:
        return whole_reader(self._first.store) is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        first_error = None
        for attempt in self._attempts(key, if_match, size_bytes):
            try:
                whole = read_whole(attempt.store, attempt.key, size_bytes, if_match=attempt.if_match)
            except HayloftError as error:
                first_error = self._note(attempt, key, if_match, error, first_error)
                continue
            self._worked(attempt.number)
            return whole
        raise first_error or _unanswered(key)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Of the first store that works; of a mirror, if it has the object under an ETag that is known to be the same.
        None: ``read_whole`` finds out."""
        number = self._order(key, if_match)[0]
        whole = whole_reader(self._sources[number].store)
        if whole is None:
            return None
        at, etag, is_guess = key, if_match, False
        if number:
            known = self._verdicts.known(number, key, if_match or "")
            is_guess = known is None and is_of_content(if_match)
            at, etag = self._verdicts.key_at(number, key), if_match if known is None else known.etag
            if not etag or (known is None and not is_guess):
                return None
        worked = partial(self._guessed, number, key) if is_guess else partial(self._worked, number)
        return self._noted(number, worked, lambda: whole.begin_whole(at, size_bytes, if_match=etag))

    def _noted(
        self, number: int, worked: Callable[[], None], begin: Callable[[], InFlightObject | None]
    ) -> InFlightObject | None:
        try:
            response = begin()
        except StoreAtLimit as limit:
            waiting = limit.begin
            raise StoreAtLimit(limit.take, limit.give_back, lambda: self._noted(number, worked, waiting)) from None
        return None if response is None else NotedObject(response, worked, partial(self.failed, number))

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """Of the bytes, which are the same in all stores; but an ETag is that of the first."""
        first_error = None
        for attempt in self._attempts(key, if_match):
            provider = checksum_provider(attempt.store)
            if provider is None:
                continue
            try:
                stored = provider.checksum(attempt.key, if_match=attempt.if_match)
            except HayloftError as error:
                first_error = self._note(attempt, key, if_match, error, first_error)
                continue
            self._worked(attempt.number)
            return stored
        if first_error is not None:
            raise first_error
        return StoredChecksum(None, etag_may_be_md5=False)

    @property
    def signs_requests(self) -> bool:
        return request_signer(self._first.store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """For a replica of the tier: to the first store, and while that fails to a mirror with the same ETag, so that
        the names in the tier stay the same. None: neither is possible."""
        for number in self._order(key, if_match):
            source = self._sources[number]
            signer = request_signer(source.store)
            if number and (not source.relays or not is_of_content(if_match)):
                continue
            known = self._verdicts.known(number, key, if_match) if number else None
            if signer is None or self.is_failing(number) or (known is not None and known.etag != if_match):
                continue
            at = self._verdicts.key_at(number, key)
            return signer.origin_request(at, if_match, whole=whole, may_block=may_block)
        return None

    def distrust(self, key: str, if_match: str | None) -> None:
        """Damaged bytes of this version were received: another store is asked first from now on."""
        if len(self._distrusted) >= _MOST_DISTRUSTED:
            self._distrusted.clear()
        name = key, if_match or ""
        self._distrusted[name] = self._distrusted.get(name, 0) + 1

    def examine(self, samples: Iterable[tuple[str, str | None]]) -> None:
        """Looks up objects, by key and ETag, in all mirrors, so that one that cannot be used is reported before it is
        needed. Blocks on the stores; raises nothing."""
        for key, etag in samples:
            for number in self._all[1:]:
                if self._closed.is_set():
                    return
                if etag is None or self.is_failing(number):
                    continue
                try:
                    self._verdicts.verdict(number, key, etag)
                    self._worked(number)
                except HayloftError as error:
                    self.failed(number, error)

    def conditions(self) -> Iterator[Condition]:
        """As ``MirrorReports.conditions``."""
        return self._reports.conditions()

    def rules(self, number: int) -> dict[str, int]:
        """As ``MirrorReports.rules``."""
        return self._reports.rules(number)

    def close(self) -> None:
        self._closed.set()
        for source in self._sources:
            source.store.close()

    # -- which store is asked --

    def _order(self, key: str, if_match: str | None) -> Sequence[int]:
        """As they are named, those that fail last; another one first, after damaged bytes. An object without an ETag
        is asked of the first alone: nothing tells its bytes from those of another version."""
        if if_match is None or not (is_strong(if_match) or self._size_is_enough):
            return (0,)
        order: Sequence[int] = self._all
        if self._distrusted:
            turn = self._distrusted.get((key, if_match), 0) % len(order)
            order = (*order[turn:], *order[:turn])
        failing = [number for number in order if self.is_failing(number)]
        if not failing:
            return order
        for number in failing:
            self._try_again(number, key, if_match)
        return [*(number for number in order if number not in failing), *failing]

    def _attempts(self, key: str, if_match: str | None, size_bytes: int | None = None) -> Iterator[_Attempt]:
        """Requests to the stores, each of which may be sent if the one before has failed."""
        for number in self._order(key, if_match):
            store = self._sources[number].store
            if not number:
                yield _Attempt(0, store, key, if_match)
                continue
            try:
                verdict = self._verdicts.verdict(number, key, if_match or "", size_bytes)
            except HayloftError as error:
                self.failed(number, error)
                continue
            if verdict.etag:
                yield _Attempt(number, store, self._verdicts.key_at(number, key), verdict.etag)

    # -- which stores work --

    def is_failing(self, number: int) -> bool:
        """Whether the last request to it has failed."""
        return not self._health.is_well(self._sources[number].name)

    def _note(
        self, attempt: _Attempt, key: str, if_match: str | None, error: HayloftError, first_error: HayloftError | None
    ) -> HayloftError:
        """The error that a reader gets if no other store has the object: that of the first store, if it was asked.
        Raises it if the others are not to be asked."""
        number = attempt.number
        if not isinstance(error, StoreError | RequestError):
            raise error
        if is_of_store(error, number):
            self.failed(number, error)
        if isinstance(error, ObjectChanged | ObjectNotFound):
            self._verdicts.refuse(number, key, if_match or "", str(error))
        if not number:
            if isinstance(error, _DECISIONS):
                raise error
            return error
        return first_error or error

    def failed(self, number: int, error: Exception) -> None:
        """A request has failed for a reason that is not its object's."""
        self._health.failed(self._sources[number].name)
        self._reports.failed(number, error)

    def _guessed(self, number: int, key: str) -> None:
        """A mirror has sent an object under the ETag of the first store."""
        self._reports.accepted(number, key, SameBy.ETAG)
        self._worked(number)

    def _worked(self, number: int) -> None:
        self._health.worked(self._sources[number].name)
        self._reports.works(number)

    def _try_again(self, number: int, key: str, if_match: str) -> None:
        """After its pause, one thread finds out whether the store answers."""
        name = self._sources[number].name
        if not self._closed.is_set() and self._health.may_be_probed(name) and self._health.may_ask(name):
            threading.Thread(target=self._probe, args=(number, key, if_match), name="mirror-probe", daemon=True).start()

    def _probe(self, number: int, key: str, if_match: str) -> None:
        """By a request as a reader sends it: some failures are of GETs alone."""
        known = self._verdicts.known(number, key, if_match) if number else None
        condition = if_match if not number else known.etag if known is not None and known.etag else None
        try:
            pieces = self._sources[number].store.read_range(
                self._verdicts.key_at(number, key) if number else key, ByteRange(0, 1), if_match=condition
            )
            for _ in pieces:
                pass
        except HayloftError as error:
            if is_of_store(error, number):
                self.failed(number, error)
                return
        self._worked(number)


def _unanswered(key: str) -> HayloftError:
    return TransientStoreError(f"{key}: none of the volume's stores has answered")
