"""Whether the objects of mirrors are the same as those that were listed: asked once for each, and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import (
    AccessDenied,
    AddressNotAllowed,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    RequestError,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.objects.checksums import StoredChecksum, checksum_provider
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.same_object import ObjectEvidence, SameBy, differ, same_by
from csi_driver.objects.store import ObjectStore

REFUSED_S = 60.0
"""An object that the mirror lacks, or has in another version, is looked up again after so long."""
UNDECIDED_S = 5.0
"""The same where the first store could not be asked for its checksum."""
SILENT_S = 30.0
"""So long nothing is asked of a first store that has not answered such a question."""
MOST_VERDICTS = 1 << 14
"""Some 300 bytes each."""

_OUTAGES = (TransientStoreError, StoreUnavailable, EndpointUnreachable, BucketNotFound)
_REFUSALS = (CredentialsRejected, AddressNotAllowed, RequestError, AccessDenied)


def is_of_store(error: HayloftError, number: int) -> bool:
    """Whether the error shows that the store is not to be read, and not that one object is not. A mirror that refuses
    an object counts as one that refuses all; what the first store refuses is its answer."""
    return isinstance(error, _OUTAGES) or (number > 0 and isinstance(error, _REFUSALS))


class SourceStore(NamedTuple):
    """One of the stores that have the dataset."""

    name: str
    """Its URL."""
    store: ObjectStore
    """Without retries, which are around all of them."""
    prefix: str
    """In place of the first store's."""
    relays: bool = False
    """Whether replicas of the tier may be sent to it."""


class Verdict(NamedTuple):
    """Whether the object of a mirror is the same."""

    etag: str
    """Of the mirror's object; empty: it is not used."""
    until_s: float = float("inf")


class _Finding(NamedTuple):
    verdict: Verdict
    rule: SameBy | None
    reason: str = ""


class FailingStores(Protocol):
    """Knows which stores fail, by their numbers."""

    def is_failing(self, number: int) -> bool:
        """Whether the last request to it has failed."""

    def failed(self, number: int, error: Exception) -> None:
        """A request has failed for a reason that is not its object's."""


class ObjectVerdicts:
    """May be used from any thread: ``_verdicts`` is changed by single steps of a dictionary. Two threads that look up
    an object at the same time both ask."""

    def __init__(
        self,
        sources: Sequence[SourceStore],
        reports: MirrorReports,
        failing: FailingStores,
        *,
        size_is_enough: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._reports, self._failing = tuple(sources), reports, failing
        self._size_is_enough, self._clock = size_is_enough, clock
        self._verdicts: dict[tuple[int, str, str], Verdict] = {}
        self._silent_until_s = 0.0
        """Until then the first store is not asked for checksums while it fails."""
        self.size_of: Callable[[str], int | None] = lambda _: None
        """The size of a listed object by its key; None: not known."""

    def key_at(self, number: int, key: str) -> str:
        """In a store. Without the id of a version, which is one of the first store."""
        return self._sources[number].prefix + str(key)[len(self._sources[0].prefix) :] if number else key

    def known(self, number: int, key: str, etag: str) -> Verdict | None:
        """Without a request; None: not known, or no more."""
        verdict = self._verdicts.get((number, str(key), etag))
        return verdict if verdict is not None and self._clock() < verdict.until_s else None

    def accept(self, number: int, key: str, etag: str) -> None:
        """A mirror has sent the object under the ETag of the first store, which is made of the bytes."""
        if self.known(number, key, etag) is None:
            self._remember(number, key, etag, Verdict(etag))
            self._reports.accepted(number, key, SameBy.ETAG)

    def refuse(self, number: int, key: str, etag: str, reason: str) -> None:
        """The store has said so in answer to a read."""
        if number:  # the first one is asked each time: its answer is what the volume shows
            self._remember(number, key, etag, self._refusal())
        self._reports.refused(number, key, reason)

    def verdict(self, number: int, key: str, etag: str, size_bytes: int | None = None) -> Verdict:
        """Of a mirror. Asks it, and the first store if ETags do not tell. Raises what is about the mirror and not about
        the object."""
        known = self.known(number, key, etag)
        if known is not None:
            return known
        try:
            found = self._compared(number, key, etag, self.size_of(key) if size_bytes is None else size_bytes)
        except ObjectNotFound:
            found = _Finding(self._refusal(), None, "the mirror lacks it")
        except ObjectChanged:
            found = _Finding(self._refusal(), None, "it changed in the mirror while it was looked up")
        self._remember(number, key, etag, found.verdict)
        if found.rule is not None:
            self._reports.accepted(number, key, found.rule)
        else:
            self._reports.refused(number, key, found.reason)
        return found.verdict

    def _remember(self, number: int, key: str, etag: str, verdict: Verdict) -> None:
        if len(self._verdicts) >= MOST_VERDICTS:
            self._verdicts.clear()
        self._verdicts[number, str(key), etag] = verdict

    def _refusal(self, pause_s: float = REFUSED_S) -> Verdict:
        return Verdict("", self._clock() + pause_s)

    def _compared(self, number: int, key: str, etag: str, size_bytes: int | None) -> _Finding:
        """The cheapest evidence first: one request where ETags decide, up to three where checksums do."""
        store, at = self._sources[number].store, self.key_at(number, key)
        found = store.stat(at)
        if found.etag is None:
            return _Finding(self._refusal(), None, "the mirror gives it no ETag")
        if size_bytes is not None and found.size_bytes != size_bytes:
            reason = f"the mirror has another version: {found.size_bytes} bytes instead of {size_bytes}"
            return _Finding(self._refusal(), None, reason)
        listed, mirrored = ObjectEvidence(etag), ObjectEvidence(found.etag)
        rule, decided = same_by(listed, mirrored), True
        if rule is None:
            mirrored = ObjectEvidence(found.etag, _checksum_of(store, at, found.etag))
            rule = same_by(listed, mirrored)
        if rule is None:
            listed, decided = self._listed_evidence(key, etag)
            rule = same_by(listed, mirrored)
        if rule is None and differ(listed, mirrored):
            return _Finding(self._refusal(), None, "the mirror has another version: its checksum is another one")
        if rule is None and self._size_is_enough and size_bytes is not None:
            rule = SameBy.SIZE
        if rule is not None:
            return _Finding(Verdict(found.etag), rule)
        if not decided:
            reason = "its ETag is another one, and the volume's bucket cannot be asked for its checksum"
            return _Finding(self._refusal(UNDECIDED_S), None, reason)
        reason = "its ETag is another one, and the two stores keep no checksum of the same kind"
        return _Finding(self._refusal(), None, f"{reason}; mirrorCheck: size would accept it")

    def _listed_evidence(self, key: str, etag: str) -> tuple[ObjectEvidence, bool]:
        """Of the first store, and whether it has answered. One that fails reads may answer this request; if it does
        not, others do not wait for it as well."""
        if self._failing.is_failing(0) and self._clock() < self._silent_until_s:
            return ObjectEvidence(etag), False
        try:
            return ObjectEvidence(etag, _checksum_of(self._sources[0].store, key, etag)), True
        except (ObjectNotFound, ObjectChanged):  # its version is gone
            return ObjectEvidence(etag), True
        except HayloftError as error:
            if is_of_store(error, 0):
                self._silent_until_s = self._clock() + SILENT_S
                self._failing.failed(0, error)
            return ObjectEvidence(etag), False


def _checksum_of(store: ObjectStore, key: str, etag: str) -> StoredChecksum | None:
    provider = checksum_provider(store)
    return None if provider is None else provider.checksum(key, if_match=etag if is_strong(etag) else None)
