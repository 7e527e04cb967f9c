"""Cached bytes are shared by proof: a credential reads them after the store has let it read the object in that version.

A fetch is a proof for the credential that fetched. Another one asks the store for the first byte of the object under
the condition of its ETag: a request that needs the permission to read in every store. The answer is remembered by the
mount (``access.py``) and in an attribute of the object file (``cache/proof_attribute.py``), for a limited time.

While the store cannot be asked, an older proof stands: cached bytes are readable without the network.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.proof_attribute import AccessProof
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CacheError,
    EndpointUnreachable,
    HayloftError,
    InternalFailure,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.model.tracebacks import unexpected
from csi_driver.objects.retrying import without_retries
from csi_driver.reading.answers import answer_each
from csi_driver.reading.fetcher import Fetcher, Job
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.version_pins import VersionPins

AHEAD = 64
"""Files behind one that was not proven for which the store is asked in the background, in the order of the manifest."""

MOST_AHEAD = 256
"""Such requests queued or in flight for one credential: more would be memory without use."""

UNREACHABLE_S = 10.0
"""How long a store that gave no answer is not asked again for what it had allowed before."""

_DENIED = (AccessDenied, BucketNotFound, ObjectChanged, ObjectNotFound)
_NO_ANSWER = (EndpointUnreachable, StoreUnavailable, TransientStoreError)

Answer = Callable[[HayloftError | None], None]
"""Called once, on a fetch thread. None: the credential may read the object."""


class _Question:
    """One request to a store, and the opens that wait for its answer."""

    __slots__ = ("ahead", "file", "job", "source", "waiting")

    def __init__(self, source: ObjectSource, ahead: bool) -> None:
        self.source = source
        self.ahead = ahead
        """Whether it was asked before an open needed it."""
        self.file: ObjectFile | None = None
        """Where the answer is recorded, with a use of its own."""
        self.waiting: list[Answer] = []
        self.job: Job


class AccessProofs:
    """For all mounts of a daemon. Methods may be called from any thread.

    ``_lock`` guards ``_questions``, their ``waiting`` and ``file``, and ``_ahead``. Not held across disk, network or an
    answer; under it at most the lock of one object file is taken.
    """

    def __init__(
        self,
        chunk_store: ChunkStore,
        fetcher: Fetcher,
        pins: VersionPins,
        count_request: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chunk_store = chunk_store
        self._fetcher = fetcher
        self._pins = pins
        self._count_request = count_request
        self._clock = clock
        self._lock = threading.Lock()
        self._questions: dict[tuple[str, bytes], _Question] = {}
        """Queued or in flight, by object and credential: the store is asked once for all waiters."""
        self._ahead: Counter[bytes] = Counter()
        """How many of them were asked ahead, by credential."""
        self._unreachable_until_s: dict[tuple[str, bytes], float] = {}
        """By endpoint and credential. Only single steps of a dictionary: no lock."""

    # -- what is known --

    def holds(self, source: ObjectSource, file: ObjectFile) -> bool:
        """True if the mount may hand out the bytes of the file. One system call at the most."""
        access = source.access
        if access.is_proven(source.row):
            return True
        at_s = file.proven_at_s(access.credential.proven_as)
        if access.is_young(at_s):
            access.remember(source.row, at_s)
            if not access.is_proven(source.row) and access.source_of is not None:
                self._ask_ahead(source)  # it expires soon: renewed before an open has to wait
            return True
        return at_s > 0 and self._is_unreachable(source)

    def was_proven(self, source: ObjectSource, file: ObjectFile) -> bool:
        """True if the store ever let the credential read the object: for what is open since then."""
        access = source.access
        return access.is_proven(source.row) or file.proven_at_s(access.credential.proven_as) > 0

    def reveals(self, source: ObjectSource) -> bool:
        """True if the mount may tell that the object is cached, which is as secret as that another one reads it. Two
        system calls at the most."""
        access = source.access
        return access.is_proven(source.row) or (
            self._chunk_store.proven_at_s(source.version, access.credential.proven_as) > 0
        )

    def fetched(self, source: ObjectSource) -> AccessProof:
        """The store has sent the object to the credential: the proof, which is to be written to the object file."""
        access = source.access
        access.note_fetch(source.row)
        proof = AccessProof(access.credential.proven_as, access.now_s())
        access.remember(source.row, proof.at_s)
        return proof

    def note_fetch(self, source: ObjectSource, file: ObjectFile) -> None:
        """As ``fetched``, for a part of a large object: recorded with the first one."""
        if not source.access.is_proven(source.row):
            file.record_proof(self.fetched(source))
        else:
            source.access.note_fetch(source.row)

    # -- questions --

    def ask(self, source: ObjectSource, file: ObjectFile, answer: Answer) -> None:
        """Has the store asked on a fetch thread, and soon for the files that follow. Takes no use of the file."""
        question = self._joined(source, file, answer)
        if not question.job.claimed:
            self._fetcher.demand(question.job, source.share)
        if source.access.source_of is not None:
            self._fetcher.ahead(Job(lambda: self._look_ahead(source)), source.share)

    def require(self, source: ObjectSource, file: ObjectFile) -> ObjectFile:
        """The file, once its bytes may be handed out; one without bytes needs no proof. Asks the store on this thread.
        Releases the file when it raises: what a read of the object raises."""
        if (not file.complete and not file.present_bytes()) or self.holds(source, file):
            return file
        answers: list[HayloftError | None] = []
        done = threading.Event()

        def answer(error: HayloftError | None) -> None:
            answers.append(error)
            done.set()

        question = self._joined(source, file, answer)
        if question.job.claim():
            question.job.run()
        done.wait()  # for the thread that has claimed it; that one works on it now
        error = answers[0]
        if error is not None:
            file.release()
            raise error
        return file

    def prove_all(self, sources: Iterable[ObjectSource], until_s: float) -> bool:
        """Asks the store for all objects that are not proven, ``AHEAD`` at a time. False if one of them may not be read
        or is not cached, or if ``until_s``, by time.monotonic(), comes first."""
        places = threading.Semaphore(AHEAD)
        refused = threading.Event()

        def answer(error: HayloftError | None) -> None:
            if error is not None:
                refused.set()
            places.release()

        def has_place() -> bool:
            return places.acquire(timeout=max(0.0, until_s - self._clock())) and not refused.is_set()

        for source in sources:
            if not source.version.size_bytes or self._is_recorded(source):
                continue
            file = self._find(source)
            if file is None:
                return False
            try:
                if not self.holds(source, file):
                    if not has_place():
                        return False
                    self._fetcher.ahead(self._joined(source, file, answer).job, source.share)
            finally:
                file.release()
        return all(has_place() for _ in range(AHEAD))

    def _is_recorded(self, source: ObjectSource) -> bool:
        """By the name of the object file, which is not opened."""
        access = source.access
        at_s = self._chunk_store.proven_at_s(source.version, access.credential.proven_as)
        if not access.is_young(at_s):
            return False
        access.remember(source.row, at_s)
        return True

    def _joined(self, source: ObjectSource, file: ObjectFile, answer: Answer) -> _Question:
        with self._lock:
            question = self._questions.get(source.key) or self._new_question(source, ahead=False)
            question.waiting.append(answer)
            if question.file is None and file.acquire():
                question.file = file
        return question

    def _new_question(self, source: ObjectSource, *, ahead: bool) -> _Question:
        """The caller holds the lock."""
        question = self._questions[source.key] = _Question(source, ahead)
        question.job = Job(lambda: self._answer(question))
        self._ahead[source.access.credential.own] += ahead
        return question

    def _look_ahead(self, source: ObjectSource) -> None:
        """Asks for the files that follow: a reader that opens one after the other seldom waits."""
        access, source_of = source.access, source.access.source_of
        if source_of is None:
            return
        start = source.row + 1
        free = MOST_AHEAD - self._ahead[access.credential.own]
        for row in access.claim_rows(range(start, start + min(AHEAD, free))):
            self._ask_ahead(source_of(row))

    def _ask_ahead(self, source: ObjectSource) -> None:
        with self._lock:
            if source.key in self._questions or self._ahead[source.access.credential.own] >= MOST_AHEAD:
                return
            question = self._new_question(source, ahead=True)
        self._fetcher.ahead(question.job, source.share)

    # -- on a fetch thread, or one of a warmup --

    def _answer(self, question: _Question) -> None:
        """Asks the store and answers the waiters, whatever happens."""
        failure: HayloftError | None = InternalFailure(f"{question.source.version.key}: the store was not asked")
        try:
            if self._needs_answer(question):
                self._ask_store(question.source, question.file)
            failure = None
        except HayloftError as error:
            failure = error
        except BaseException as error:
            failure = unexpected(error)
            raise
        finally:
            with self._lock:
                # None joins after this. A question that was dropped is not in the table, and has no waiters.
                if self._questions.get(question.source.key) is question:
                    self._end(question)
            answer_each(question.waiting, lambda answer: answer(failure))
            if question.file is not None:
                question.file.release()

    def _needs_answer(self, question: _Question) -> bool:
        """Finds the file of an object that is asked ahead. False, and the question has ended, if there is none: the
        fetch of the object will be the proof."""
        if not question.ahead:
            return True
        found = self._find(question.source)
        with self._lock:
            # One that joined meanwhile has brought a file of its own.
            surplus = found if question.file is not None else None
            question.file = question.file or found
            cached = question.file is not None or bool(question.waiting)
            if not cached:
                self._end(question)
        if surplus is not None:
            surplus.release()
        return cached

    def _end(self, question: _Question) -> None:
        """The caller holds the lock."""
        del self._questions[question.source.key]
        own = question.source.access.credential.own
        self._ahead[own] -= question.ahead
        if not self._ahead[own]:
            del self._ahead[own]

    def _ask_store(self, source: ObjectSource, file: ObjectFile | None) -> None:
        """Raises what the store answers. No answer is none only for a credential that it has never let read."""
        access = source.access
        before_s = 0 if file is None else file.proven_at_s(access.credential.proven_as)
        if access.is_young(before_s):
            access.remember(source.row, before_s)
        if access.is_proven(source.row):
            return
        place = source.version.endpoint, access.credential.own
        try:
            self._count_request()
            self._pins.require(source, without_retries(source.store) if before_s else source.store, file)
        except _NO_ANSWER:
            if not before_s:
                raise
            self._unreachable_until_s[place] = self._clock() + UNREACHABLE_S
            return
        except _DENIED:
            self._unreachable_until_s.pop(place, None)
            if before_s and file is not None:  # it must not stand the next time that the store gives no answer
                file.record_proof(AccessProof(access.credential.proven_as, 0))
            raise
        self._unreachable_until_s.pop(place, None)
        proof = self.fetched(source)
        if file is not None:
            file.record_proof(proof)

    def _is_unreachable(self, source: ObjectSource) -> bool:
        """True while the store gives no answer. From time to time it is asked again in the background: no open waits
        for its time-out."""
        place = source.version.endpoint, source.access.credential.own
        until_s = self._unreachable_until_s.get(place)
        if until_s is None:
            return False
        now_s = self._clock()
        if now_s >= until_s:
            self._unreachable_until_s[place] = now_s + UNREACHABLE_S
            self._ask_ahead(source)
        return True

    def _find(self, source: ObjectSource) -> ObjectFile | None:
        try:
            return self._chunk_store.find(source.version, source.dataset)
        except CacheError:
            return None
