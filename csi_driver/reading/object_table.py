"""The objects that are being opened, fetched, read or written, and who waits for them.

Of each object and credential the table knows three things, in any combination:

- *waiting*: opens that wait for its fetch, or for its file to be opened. There is one such fetch at a time.
- *staged*: its bytes, in memory until they are in the file. Only of small objects.
- *reader*: what all opens of an object that is not complete share.

Each method is one transition. It decides what is to be done, and returns it: nothing here uses the disk or a store, or
answers an open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from csi_driver.reading.arrivals import Arrivals

Key = tuple[str, bytes]
"""``ObjectSource.key``."""


class Waiter(Protocol):
    """An open, as far as the table has to know it; ``PendingOpen``."""

    @property
    def bytes_with_a_file(self) -> int:
        """What the open occupies in memory if it needs a file and has to do without; 0 if the bytes suffice."""

    @property
    def urgent(self) -> bool:
        """Whether a reader waits for the open."""


class SharedReader(Protocol):
    """An ``ObjectReader``. The table counts both under its lock; when both are 0 the reader closes its file."""

    opens: int
    fetches: int


W = TypeVar("W", bound=Waiter)
R = TypeVar("R", bound=SharedReader)


class Staged(NamedTuple):
    """The bytes of a small object that are not in its file yet."""

    parts: Sequence[memoryview]
    backlogged: bool
    """True if the disk is. If not, an open that needs a file waits for the write."""


class FromMemory(NamedTuple):
    """An open is answered with these bytes; ``reserved_bytes`` of the write-back are its own until it is closed."""

    parts: Sequence[memoryview]
    reserved_bytes: int


class Next(Enum):
    """What the caller of an open has to do."""

    FETCH = "fetch the object, and finish it in any case"
    WAIT = "nothing: it waits for a fetch in flight"
    LOOK_AGAIN = "look the object up again: it has arrived"


class _Entry(Generic[W, R]):
    __slots__ = ("reader", "staged", "waiting")

    def __init__(self) -> None:
        self.waiting: list[W] | None = None
        self.staged: Staged | None = None
        self.reader: R | None = None


class ObjectTable(Generic[W, R]):
    """``_lock`` guards the entries, ``_arrivals`` and the counts in the readers. It is not held across disk or network,
    and no lock but the write-back's is taken while it is held. ``serve`` takes no lock."""

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        """``reserve``: ``WriteBack.reserve``."""
        self._reserve = reserve
        self._lock = threading.Lock()
        # By object and credential: no credential waits for a fetch of another one, or gets its bytes or its error.
        self._entries: dict[Key, _Entry[W, R]] = {}
        self._arrivals = Arrivals()

    @property
    def is_empty(self) -> bool:
        """Whether no object is opened, fetched, read or written."""
        return not self._entries

    @property
    def arrivals(self) -> int:
        """How many objects have arrived. To be read before an object is looked up in the cache, which takes no lock:
        one that arrives between the look-up and ``ask`` would be fetched again otherwise."""
        return self._arrivals.count

    # -- opens --

    def ask(self, key: Key, waiter: W, since: int, *, needs_file: bool = True) -> FromMemory | R | Next:
        """For an open that has not found the object in the cache at ``since``. A reader is returned with the open
        counted. Without ``needs_file`` staged bytes suffice, whatever the waiter needs otherwise."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                if entry.staged is not None:
                    served = self._serve(waiter, entry.staged) if needs_file else FromMemory(entry.staged.parts, 0)
                    if served is not None:
                        return served
                if entry.reader is not None:
                    entry.reader.opens += 1
                    return entry.reader
                if entry.waiting is not None:
                    entry.waiting.append(waiter)
                    return Next.WAIT
            if self._arrivals.may_have(key[0], since):
                return Next.LOOK_AGAIN
            self._entry(key).waiting = [waiter]
            return Next.FETCH

    def start(self, key: Key, waiter: W) -> R | Next:
        """For an open that waits for no fetch of others: FETCH, or WAIT without waiting."""
        with self._lock:
            entry = self._entry(key)
            if entry.reader is not None:
                entry.reader.opens += 1
                return entry.reader
            if entry.waiting is not None:
                return Next.WAIT
            entry.waiting = [waiter]
            return Next.FETCH

    def join(self, key: Key, waiter: W) -> bool:
        """Waits for the fetch in flight; False: there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.waiting is None:
                return False
            entry.waiting.append(waiter)
            return True

    # -- fetches --

    def serve(self, key: Key, staged: Staged, *, stage: bool = False) -> tuple[list[tuple[W, FromMemory]], bool]:
        """The object was received: the opens to be answered from memory, and whether a reader still waits. With
        ``stage`` the bytes stay in memory, as by ``stage``. By the thread that has the fetch, which ``finish`` or
        ``fail`` ends."""
        # Without the lock: while the fetch is in flight the entry stays, and others only append to its waiters. One
        # that is appended meanwhile needs the file, or is answered with it: bytes are staged before the look.
        entry = self._entries[key]
        answers: list[tuple[W, FromMemory]] = []
        rest: list[W] = []
        if stage:
            entry.staged = staged
        waiting = entry.waiting
        if waiting is None:
            return answers, False
        seen = len(waiting)
        for waiter in waiting[:seen]:
            served = self._serve(waiter, staged)
            if served is None:
                rest.append(waiter)
            else:
                answers.append((waiter, served))
        if answers:
            waiting[:seen] = rest  # in one step
        return answers, any(waiter.urgent for waiter in rest)

    def finish(
        self, key: Key, make_reader: Callable[[W], R] | None, staged: Staged | None = None
    ) -> tuple[list[W], R | None]:
        """The fetch has ended, with its result in the cache as far as it will be: the opens to be answered, by a new
        reader if ``make_reader`` is given and any open waits. If it raises, the opens still wait. The bytes that it has
        ``staged`` are given up, as by ``unstage``."""
        with self._lock:
            entry, reader = self._entries[key], None
            waiting = entry.waiting or []
            self._arrivals.add(key[0])
            if make_reader is not None and waiting:
                reader = make_reader(waiting[0])
                reader.opens = len(waiting)
                entry.reader = reader
            if staged is not None and entry.staged is staged:
                entry.staged = None
            entry.waiting = None  # last: nothing that raises leaves them without an answer
            self._drop_if_empty(key, entry)
        return waiting, reader

    def fail(self, key: Key) -> list[W]:
        """The fetch was aborted: the opens that still wait, for its error."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.waiting is None:
                return []
            waiting, entry.waiting = entry.waiting, None
            self._drop_if_empty(key, entry)
        return waiting

    def is_urgent(self, key: Key) -> bool:
        """Whether a reader waits for the fetch in flight."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and any(waiter.urgent for waiter in entry.waiting or ())

    # -- bytes in memory --

    def stage(self, key: Key, staged: Staged) -> None:
        """The bytes are in memory until ``unstage``; they take the place of others."""
        with self._lock:
            self._entry(key).staged = staged

    def unstage(self, key: Key, staged: Staged | None = None, *, arrived: bool = False) -> None:
        """The bytes are written, or given up. With ``staged`` only these: another write may have taken them over."""
        with self._lock:
            if arrived:
                self._arrivals.add(key[0])
            entry = self._entries.get(key)
            if entry is not None and (staged is None or entry.staged is staged):
                entry.staged = None
                self._drop_if_empty(key, entry)

    # -- readers --

    def leave(self, key: Key, reader: R) -> bool:
        """Ends one open of the reader. True: it is not in use any more."""
        with self._lock:
            reader.opens -= 1
            return self._is_idle(key, reader)

    def retain(self, reader: R) -> None:
        """A fetch of the reader begins."""
        with self._lock:
            reader.fetches += 1

    def release(self, key: Key, reader: R) -> bool:
        """A fetch of the reader has ended. As ``leave``."""
        with self._lock:
            reader.fetches -= 1
            return self._is_idle(key, reader)

    def look(self, key: Key) -> tuple[R | None, bool]:
        """The reader of an object, and whether all its bytes are in memory. Changes nothing."""
        if not self._entries:
            return None, False
        with self._lock:
            entry = self._entries.get(key)
            return (None, False) if entry is None else (entry.reader, entry.staged is not None)

    # -- under the lock --

    def _serve(self, waiter: W, staged: Staged) -> FromMemory | None:
        """None: the open needs a file, and waits for it."""
        reserved_bytes = waiter.bytes_with_a_file
        if reserved_bytes and not (staged.backlogged and self._reserve(reserved_bytes)):
            return None
        return FromMemory(staged.parts, reserved_bytes)

    def _entry(self, key: Key) -> _Entry[W, R]:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
        return entry

    def _drop_if_empty(self, key: Key, entry: _Entry[W, R]) -> None:
        if entry.waiting is None and entry.staged is None and entry.reader is None:
            del self._entries[key]

    def _is_idle(self, key: Key, reader: R) -> bool:
        if reader.opens or reader.fetches:
            return False
        entry = self._entries.get(key)
        if entry is not None and entry.reader is reader:
            entry.reader = None
            self._drop_if_empty(key, entry)
        return True
