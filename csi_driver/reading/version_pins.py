"""Which version of an object all of its bytes are taken from.

A strong ETag in the listing says it: every request is under its condition, and nothing here costs anything. Where the
listing has none, or a weak one, size and modification time are the version, and the store is asked before the first
byte: an answer of another size or time is another version. The ETag of that answer is the *pin* of the object. If it is
strong, every request is under its condition, also those of a later daemon: it is kept with the object file.

Where the answers have no strong ETag either (or weaken that of the listing, as proxies do that compress) nothing
conditional can be asked. Then a weak ETag is compared with that of each answer, and bytes are handed out only after
the store was asked, behind them, whether the object is still the same: a change is noticed, unless it is within one
second and of the same size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.entity_tags import is_strong, weakened, weakly_equal
from csi_driver.model.errors import HayloftError, ObjectChanged
from csi_driver.model.snapshot import TIME_UNKNOWN_NS, ObjectInfo, ObjectVersion, representable_ns
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore, WholeObject, read_whole
from csi_driver.objects.tier.tiered_hooks import past_the_tier
from csi_driver.reading.services import ObjectSource

CHECKED_BYTES = 4 << 20
"""So much is held back until the store has confirmed it: one request for each, and memory for each fetch thread."""

MOST_PINS = 1 << 16
"""Remembered beside those in object files: for objects that were evicted, or that the disk did not take."""

_MOST_PLACES = 1024
_SECOND_NS = 10**9


class VersionPins:
    """For all mounts of a daemon. Methods may be called from any thread.

    ``_lock`` guards ``_pins``. Not held across disk or network. ``_weakening`` needs none: single steps of a
    dictionary.
    """

    def __init__(self, count_request: Callable[[], None]) -> None:
        self._count_request = count_request
        self._lock = threading.Lock()
        self._pins: dict[str, str] = {}
        """By digest of the version, oldest first."""
        self._weakening: dict[tuple[str, str, str], bool] = {}
        """Buckets whose listings have strong ETags, and whose answers have weak ones (True) or none: by domain,
        endpoint and bucket."""

    def is_conditional(self, version: ObjectVersion) -> bool:
        """True if the ETag of the listing is the condition of every request."""
        return version.has_strong_etag and (not self._weakening or _place(version) not in self._weakening)

    def pin(self, source: ObjectSource, store: ObjectStore, file: ObjectFile | None) -> str:
        """The ETag that all bytes of the object have; empty if the store sends none. May ask the store, and records the
        answer with the file. Raises ObjectChanged and what ``ObjectStore.stat`` raises."""
        version = source.version
        if version.etag is not None and version.has_strong_etag:
            return version.etag
        digest = version.digest(CHUNK_BYTES)
        recorded = None if file is None else file.pinned_etag()
        known = recorded if recorded is not None else self._pins.get(digest)
        if known is None:
            self._count_request()
            known = confirmed(store, version).etag or ""
        # Of two threads that asked at the same time, the first one's answer counts for both.
        with self._lock:
            pinned = self._pins.setdefault(digest, known)
            if len(self._pins) > MOST_PINS:
                del self._pins[next(iter(self._pins))]
        if pinned != known:
            raise _changed(version)
        if file is not None and recorded is None:
            file.pin_etag(pinned)
        return pinned

    def record(self, version: ObjectVersion, file: ObjectFile) -> None:
        """Records the pin with the file of an object that was fetched. Sends nothing: a pin that is not remembered is
        found out by the request that needs it."""
        if version.has_strong_etag:
            return
        known = self._pins.get(version.digest(CHUNK_BYTES))
        if known is not None:
            file.pin_etag(known)

    def read_range(
        self, source: ObjectSource, store: ObjectStore, etag: str, byte_range: ByteRange
    ) -> Iterator[memoryview]:
        """As ``ObjectStore.read_range``, all bytes of the pinned version."""
        start, version = byte_range.start, source.version
        if self._may_ask_for(version, etag):
            try:
                for piece in store.read_range(version.key, byte_range, if_match=etag):
                    start += len(piece)
                    yield piece
                return
            except ObjectChanged:
                if not self._weakens(source, etag):
                    raise
        while start < byte_range.stop:
            # A request of its own, which has ended before the next: one that is open would hold a connection.
            part = ByteRange(start, min(start + CHECKED_BYTES, byte_range.stop))
            pieces = list(store.read_range(version.key, part, if_match=self._weak_etag(version, etag)))
            self._count_request()
            confirmed(store, version, etag)
            yield from pieces
            start = part.stop

    def read_whole(self, source: ObjectSource, store: ObjectStore, etag: str) -> WholeObject:
        """As ``store.read_whole``, of the pinned version."""
        version = source.version
        if self._may_ask_for(version, etag):
            try:
                return read_whole(store, version.key, version.size_bytes, if_match=etag)
            except ObjectChanged:
                if not self._weakens(source, etag):
                    raise
        whole = read_whole(store, version.key, version.size_bytes, if_match=self._weak_etag(version, etag))
        self._count_request()
        confirmed(store, version, etag)
        return whole

    def require(self, source: ObjectSource, store: ObjectStore, file: ObjectFile | None) -> None:
        """One request that needs the permission to read the object. Raises what the store answers, and ObjectChanged
        for another version than that of the listing, or of the file."""
        version, store = source.version, past_the_tier(store)
        pinned = file.pinned_etag() if file is not None and not version.has_strong_etag else None
        etag = pinned or version.etag or ""
        if self._may_ask_for(version, etag):
            try:
                for _ in store.read_range(version.key, ByteRange(0, 1), if_match=etag):
                    pass
                return
            except ObjectChanged:
                if not self._weakens(source, etag):
                    raise
        confirmed(store, version, etag)

    def _may_ask_for(self, version: ObjectVersion, etag: str) -> bool:
        """Whether ``etag`` can be the condition of a request."""
        return is_strong(etag) and (not self._weakening or _place(version) not in self._weakening)

    def _weak_etag(self, version: ObjectVersion, etag: str) -> str | None:
        """What each answer must have where nothing conditional can be requested; None where it has no ETag."""
        return weakened(etag) if etag and self._weakening.get(_place(version), True) else None

    def _weakens(self, source: ObjectSource, etag: str) -> bool:
        """After ObjectChanged: whether the object is the one that was listed, and the store, or a proxy in front of it,
        weakens or drops the ETag ``etag``: a strong comparison fails for ever then."""
        try:
            self._count_request()
            found = confirmed(without_retries(source.store), source.version, etag)
        except HayloftError:
            return False
        if is_strong(found.etag):
            return False
        if len(self._weakening) >= _MOST_PLACES:
            self._weakening.clear()  # found out again, by one more request each
        self._weakening[_place(source.version)] = found.etag is not None
        return True


def confirmed(store: ObjectStore, version: ObjectVersion, etag: str | None = None) -> ObjectInfo:
    """What the store says of the object. Raises ObjectChanged unless it is that version, of that ``etag`` where both
    are known, and what ``ObjectStore.stat`` raises."""
    found = store.stat(version.key)
    expected = etag or version.etag
    same_etag = not expected or not found.etag or weakly_equal(found.etag, expected)
    if not same_etag or found.size_bytes != version.size_bytes or not _same_time(found.mtime_ns, version.mtime_ns):
        raise _changed(version)
    return found


def _same_time(one_ns: int, other_ns: int) -> bool:
    """In whole seconds: some services list fractions that the headers of an object do not have."""
    one_s, other_s = representable_ns(one_ns) // _SECOND_NS, representable_ns(other_ns) // _SECOND_NS
    return TIME_UNKNOWN_NS in (one_ns, other_ns) or one_s == other_s


def _place(version: ObjectVersion) -> tuple[str, str, str]:
    return version.access_domain, version.endpoint, version.bucket


def _changed(version: ObjectVersion) -> ObjectChanged:
    return ObjectChanged(f"{version.key} is not the version that was listed; make a new snapshot")
