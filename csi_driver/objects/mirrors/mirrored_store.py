"""A store wrapper that reads each object from the nearest of several stores, or the first in the listed order, that has
it and answers.

The first store is that of the volume's URL: it is listed, and its version of each object is what readers get. An object
of a mirror is read after it was found to have the same bytes (``same_object.py``), and under the mirror's own ETag, so
that no read mixes two versions. Which store is asked first: ``origin_choice.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from csi_driver.model.chunk import ByteRange
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import (
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
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.listing_pages import ListedPage, page_lister
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.noted_object import NotedObject
from csi_driver.objects.mirrors.object_verdicts import SourceStore, is_of_store
from csi_driver.objects.mirrors.origin_choice import DECISIONS, OriginChoice
from csi_driver.objects.mirrors.origin_speeds import OriginSpeeds
from csi_driver.objects.mirrors.same_object import is_of_content
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.store import (
    InFlightObject,
    ObjectStore,
    StoreAtLimit,
    WholeObject,
    read_whole,
    whole_reader,
)
from csi_driver.objects.version_listing import ListedVersions, version_lister


class _Attempt(NamedTuple):
    """A request that one store may answer."""

    number: int
    store: ObjectStore
    key: str
    if_match: str | None
    is_guess: bool = False
    """Whether the store has the object, under this ETag, is not known yet."""


class Mirrored:
    """May be used from any thread."""

    def __init__(
        self,
        sources: Sequence[SourceStore],
        reports: MirrorReports,
        *,
        size_is_enough: bool = False,
        speeds: OriginSpeeds | None = None,
        probe_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Owns the stores. ``speeds``: of these stores, the nearest of which is read; None: the first that works is.
        ``probe_timeout_s``: when a request that tries a store again is no longer awaited."""
        self._sources, self._first = tuple(sources), sources[0]
        self._reports = reports
        self._choice = OriginChoice(
            sources,
            reports,
            size_is_enough=size_is_enough,
            speeds=speeds,
            probe_timeout_s=probe_timeout_s,
            clock=clock,
        )
        self._verdicts = self._choice.verdicts
        late = self._first.store
        self._late = late if isinstance(late, LazyStore) else None
        """The first store, if its kind was not known before it is open."""

    @property
    def md5_up_to_bytes(self) -> int:
        provider = checksum_provider(self._first.store)
        return 0 if provider is None else provider.md5_up_to_bytes

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
            rest = ByteRange(start, byte_range.stop)
            try:
                for piece in attempt.store.read_range(attempt.key, rest, if_match=attempt.if_match):
                    start += len(piece)
                    yield piece
            except HayloftError as error:
                first_error = self._note(attempt, key, if_match, error, first_error)
                continue
            finally:  # also where the reader leaves before the end
                if start > rest.start:
                    self._reports.counts.read(attempt.number, start - rest.start, is_complete=start == rest.stop)
            self._succeeded(attempt, key, if_match)
            return
        raise first_error or _unanswered(key)

    @property
    def reads_whole(self) -> bool:
        """True also where the first store may have this path and is not open yet: ``Retrying`` asks once."""
        return self._late is not None or whole_reader(self._first.store) is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        first_error = None
        for attempt in self._attempts(key, if_match, size_bytes):
            try:
                if isinstance(attempt.store, LazyStore):
                    attempt.store.open()  # before, it does not know whether it has the faster path
                whole = read_whole(attempt.store, attempt.key, size_bytes, if_match=attempt.if_match)
            except HayloftError as error:
                first_error = self._note(attempt, key, if_match, error, first_error)
                continue
            self._reports.counts.read(attempt.number, size_bytes)
            self._succeeded(attempt, key, if_match)
            return whole
        raise first_error or _unanswered(key)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Of the first store in the order that may have the object; of a mirror, if it has it under an ETag that is
        known to be the same. None: ``read_whole`` finds out."""
        for number in self._choice.order(key, if_match):
            at, etag, known = key, if_match, None
            if number:
                known = self._verdicts.known(number, key, if_match or "")
                if known is not None and not known.etag:
                    continue
                if known is None and not is_of_content(if_match):
                    return None
                at, etag = self._verdicts.key_at(number, key), if_match if known is None else known.etag
            whole = whole_reader(self._sources[number].store)
            if whole is None:
                return None
            attempt = _Attempt(number, self._sources[number].store, at, etag, bool(number) and known is None)
            worked = partial(self._received, attempt, key, if_match, size_bytes)
            return self._noted(number, worked, partial(whole.begin_whole, at, size_bytes, if_match=etag))
        return None

    def _noted(
        self, number: int, worked: Callable[[], None], begin: Callable[[], InFlightObject | None]
    ) -> InFlightObject | None:
        try:
            response = begin()
        except StoreAtLimit as limit:
            waiting = limit.begin
            raise StoreAtLimit(limit.take, limit.give_back, lambda: self._noted(number, worked, waiting)) from None
        return None if response is None else NotedObject(response, worked, partial(self._choice.failed, number))

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
            self._succeeded(attempt, key, if_match)
            return stored
        if first_error is not None:
            raise first_error
        return StoredChecksum(None, etag_may_be_md5=False)

    @property
    def signs_requests(self) -> bool:
        """True also as long as it is not known of the first store: mirrors sign for it."""
        return self._is_late or request_signer(self._first.store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """For a replica of the tier: to the first store, and while that fails to a mirror with the same ETag, so that
        the names in the tier stay the same. None: neither is possible."""
        for number in self._choice.order(key, if_match):
            source = self._sources[number]
            if not number and self._is_late and not self._opened_now(may_block=may_block):
                if not may_block or not self._choice.is_failing(0):  # it refuses: the read itself says so
                    return None
                continue
            signer = request_signer(source.store)
            if number and (not source.relays or not is_of_content(if_match)):
                continue
            known = self._verdicts.known(number, key, if_match) if number else None
            if signer is None or self._choice.is_failing(number) or (known is not None and known.etag != if_match):
                continue
            at = self._verdicts.key_at(number, key)
            return signer.origin_request(at, if_match, whole=whole, may_block=may_block)
        return None

    def distrust(self, key: str, if_match: str | None) -> None:
        """As ``OriginChoice.distrust``."""
        self._choice.distrust(key, if_match)

    def examine(self, samples: Iterable[tuple[str, str | None]]) -> None:
        """Looks up objects, by key and ETag, in all mirrors, so that one that cannot be used is reported before it is
        needed. Blocks on the stores; raises nothing."""
        known = list(samples)
        for key, etag in known:
            for number in self._choice.all[1:]:
                if self._choice.closed.is_set():
                    return
                if etag is None or self._choice.is_failing(number):
                    continue
                try:
                    self._verdicts.verdict(number, key, etag)
                    self._choice.worked(number)
                except HayloftError as error:
                    self._choice.failed(number, error)
        first = next(((key, etag) for key, etag in known if etag is not None), None)
        if first is not None:
            self._choice.explore(*first)

    def conditions(self) -> Iterator[Condition]:
        """As ``MirrorReports.conditions``."""
        return self._reports.conditions()

    def rules(self, number: int) -> dict[str, int]:
        """As ``MirrorReports.rules``."""
        return self._reports.rules(number)

    def close(self) -> None:
        self._choice.closed.set()
        for source in self._sources:
            source.store.close()

    # -- which store is asked --

    def _attempts(self, key: str, if_match: str | None, size_bytes: int | None = None) -> Iterator[_Attempt]:
        """Requests to the stores, each of which may be sent if the one before has failed."""
        for number in self._choice.order(key, if_match):
            store = self._sources[number].store
            if not number:
                yield _Attempt(0, store, key, if_match)
                continue
            known = self._verdicts.known(number, key, if_match or "")
            if known is None and if_match is not None and is_of_content(if_match):
                yield _Attempt(number, store, self._verdicts.key_at(number, key), if_match, is_guess=True)
                # Here it has failed: of another ETag, which says nothing yet, or for another reason.
                if self._choice.is_failing(number) or self._verdicts.known(number, key, if_match) is not None:
                    continue
            try:
                verdict = self._verdicts.verdict(number, key, if_match or "", size_bytes)
            except HayloftError as error:
                self._choice.failed(number, error)
                continue
            if verdict.etag:
                yield _Attempt(number, store, self._verdicts.key_at(number, key), verdict.etag)

    # -- which stores work --

    def _note(
        self, attempt: _Attempt, key: str, if_match: str | None, error: HayloftError, first_error: HayloftError | None
    ) -> HayloftError:
        """The error that a reader gets if no other store has the object: that of the first store, if it was asked.
        Raises it if the others are not to be asked."""
        number = attempt.number
        if not isinstance(error, StoreError | RequestError):
            raise error
        if is_of_store(error, number):
            self._choice.failed(number, error)
        if isinstance(error, ObjectChanged) and attempt.is_guess:
            return first_error or error
        if isinstance(error, ObjectChanged | ObjectNotFound):
            self._verdicts.refuse(number, key, if_match or "", str(error))
        if not number:
            if isinstance(error, DECISIONS):
                raise error
            return error
        return first_error or error

    def _received(self, attempt: _Attempt, key: str, if_match: str | None, size_bytes: int) -> None:
        """By the event loop."""
        self._reports.counts.read(attempt.number, size_bytes)
        self._succeeded(attempt, key, if_match)

    def _succeeded(self, attempt: _Attempt, key: str, if_match: str | None) -> None:
        if attempt.is_guess:
            self._verdicts.accept(attempt.number, key, if_match or "")
        self._choice.worked(attempt.number)

    # -- a first store that could not be opened yet --

    @property
    def _is_late(self) -> bool:
        return self._late is not None and not self._late.is_open

    def _opened_now(self, *, may_block: bool) -> bool:
        """Whether the first store can be used; if it ``may_block``, and does not fail, it is opened for that."""
        if self._late is None or not may_block or self._choice.is_failing(0):
            return False
        try:
            self._late.open()
        except HayloftError as error:
            if is_of_store(error, 0):
                self._choice.failed(0, error)
            return False
        return True


def _unanswered(key: str) -> HayloftError:
    return TransientStoreError(f"{key}: none of the volume's stores has answered")
