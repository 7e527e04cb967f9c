"""The index: a row for each object file, in SQLite, written in batches by one thread and never while a read waits.

A change is visible to ``find`` at once and durable after the next batch. A killed daemon loses the changes of the last
batch interval; what follows from that is in ``reconciliation.py``.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c

from csi_driver.cache.eviction import DatasetUse, EvictionRow
from csi_driver.cache.private_files import close_to_others
from csi_driver.model.errors import CacheDirectoryUnusable, CacheDiskFailed
from csi_driver.model.tracebacks import summary

logger = logging.getLogger(__name__)

BATCH_INTERVAL_S = 0.25
"""How long a change may wait. At 2,000 small objects a second a batch is 500 rows, a few milliseconds of writing."""

TOUCH_INTERVAL_S = 60.0
"""How long a time of last use may wait: it only ranks objects for eviction, and a warm epoch touches every one."""

MOST_TOUCHES = 50_000
"""Uses that are pending in memory at the most, 150 bytes each."""

SAME_PASS_BYTES = 64 << 20
"""Uses of an object within so many bytes opened are one: several readers of an epoch, not a new epoch."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    digest BLOB PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    present_bytes INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    chunk_map BLOB NOT NULL,
    generation INTEGER NOT NULL,
    dataset INTEGER NOT NULL,
    first_use INTEGER NOT NULL,
    last_use INTEGER NOT NULL,
    gap INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
"""STRICT: ``quick_check`` then looks at the types too, so that a flipped bit makes no text of a number."""


_COLUMNS = "digest, size_bytes, present_bytes, complete, chunk_map, generation, dataset, first_use, last_use, gap"

_UPSERT = f"""
INSERT INTO objects ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET
size_bytes = excluded.size_bytes, present_bytes = excluded.present_bytes, complete = excluded.complete,
chunk_map = excluded.chunk_map, generation = excluded.generation, last_use = excluded.last_use
"""  # noqa: S608  no text from outside

_TOUCH = f"""
UPDATE objects SET gap = CASE WHEN ?1 - last_use > {SAME_PASS_BYTES} THEN ?1 - last_use ELSE gap END, last_use = ?1,
dataset = ?2 WHERE digest = ?3
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One object file. ``generation`` counts crashes of the machine: after that one its bytes were known to be good.
    The fields after it are for eviction, see ``eviction.EvictionRow``."""

    digest: str
    size_bytes: int
    present_bytes: int
    complete: bool
    chunk_map: bytes
    generation: int
    dataset: int = 0
    first_use: int = 0
    last_use: int = 0
    gap: int = 0


class Index:
    """The table of object files. Methods may be called from any thread; ``record`` and ``forget`` do not block.

    ``_lock`` guards ``_pending`` and ``_writing``, and nothing is written or read under it. ``_changes`` needs none:
    append and popleft are atomic, and only the holder of the lock takes changes out. ``_database_lock`` guards
    the connection and is held across the disk. Neither is taken while the other is held. ``_flushing`` is held by the
    thread that writes a batch: an older batch must not be written after a newer one.
    """

    def __init__(self, path: Path, *, interval_s: float = BATCH_INTERVAL_S) -> None:
        """Opens or creates the index. A file that is damaged, or no SQLite database, is renamed to ``.damaged``;
        partial objects are then fetched again. Raises CacheDirectoryUnusable."""
        self._database, self.was_replaced = _open_database(path)
        self._database_lock = threading.Lock()
        self._flushing = threading.Lock()
        self._lock = threading.Lock()
        self._changes: deque[tuple[str, IndexRow | None]] = deque()
        """Not in ``_pending`` yet, the oldest first. None: the row is deleted."""
        self._pending: dict[str, IndexRow | None] = {}
        self._writing: dict[str, IndexRow | None] = {}
        self._touched: dict[str, tuple[int, int]] = {}
        self._touches_due = time.monotonic() + TOUCH_INTERVAL_S
        self._wake = threading.Event()
        self._closing = False
        self._interval_s = interval_s
        self.failures = 0
        self._thread = threading.Thread(target=self._write_batches, name="index", daemon=True)
        self._thread.start()

    def record(self, row: IndexRow) -> None:
        """Inserts a row, or updates it: dataset, first use and gap then stay."""
        self._changes.append((row.digest, row))
        if not self._wake.is_set():
            self._wake.set()

    def forget(self, digest: str) -> None:
        self._changes.append((digest, None))
        self._wake.set()

    def forget_now(self, digest: str) -> None:
        """Deletes a row, durably when this returns: for a new file in the place of another: the chunk map of that one
        must not come back after a kill. Blocks on the disk only if there is a row. Raises CacheDiskFailed."""
        with self._lock:
            self._gather()
            known = digest in self._pending or digest in self._writing
            self._pending[digest] = None
        if known or self._all("SELECT 1 FROM objects WHERE digest = ?", bytes.fromhex(digest)):
            self.flush()

    def touch(self, digest: str, now: int, dataset: int) -> None:
        """Records a use by a dataset, by the clock that counts bytes opened. Cheap: one dictionary entry."""
        # One store, so no lock: at worst a use is lost while ``_touches_to_write`` replaces the dictionary.
        self._touched[digest] = (now, dataset)
        if len(self._touched) > MOST_TOUCHES:
            self._wake.set()

    def find(self, digest: str) -> IndexRow | None:
        """The row as last recorded. Reads the database: tens of microseconds."""
        # Newest first. A batch stays in _writing until it is committed, so that no moment is without it.
        with self._lock:
            self._gather()
            for changes in (self._pending, self._writing):
                if digest in changes:
                    return changes[digest]
        try:
            with self._database_lock:
                found = self._database.execute("SELECT * FROM objects WHERE digest = ?", (bytes.fromhex(digest),))
                row = found.fetchone()
        except sqlite3.Error:
            # A damaged page: the objects that it described are fetched again.
            self.failures += 1
            return None
        return None if row is None else self._verified(row)

    def _gather(self) -> None:
        """The caller holds ``_lock``."""
        while self._changes:
            digest, row = self._changes.popleft()
            self._pending[digest] = row

    def rows(self) -> Iterator[IndexRow]:
        """All rows as of the last batch, in pages, so that no other thread waits long for the database."""
        last = b""
        while True:
            page = self._all("SELECT * FROM objects WHERE digest > ? ORDER BY digest LIMIT 1000", last)
            if not page:
                return
            last = page[-1][0]
            yield from self._all_verified(page)

    def rows_of(self, folder: str) -> list[IndexRow]:
        """The rows of digests that begin with these two hexadecimal digits, as of the last batch."""
        first = bytes.fromhex(folder)
        beyond = bytes([first[0] + 1]) if first[0] < 255 else b"\xff" * 21
        return self._all_verified(self._all("SELECT * FROM objects WHERE digest >= ? AND digest < ?", first, beyond))

    def _verified(self, values: Any) -> IndexRow | None:
        """None for a row that does not match its CRC: it counts as missing."""
        row = _row(values)
        if row is None:
            self.failures += 1
        return row

    def _all_verified(self, rows: list[Any]) -> list[IndexRow]:
        return [row for row in map(self._verified, rows) if row is not None]

    def total_present_bytes(self) -> int:
        """Bytes of all objects as of the last batch."""
        with self._database_lock:
            total = self._database.execute("SELECT coalesce(sum(present_bytes), 0) FROM objects").fetchone()
        return int(total[0])

    def fact(self, name: str) -> str | None:
        """A stored fact, such as the boot id."""
        with self._database_lock:
            row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str, *, durable: bool = True) -> None:
        """Stores a fact, durably when this returns unless told otherwise: the next boot decides by it which files to
        trust."""
        with self._database_lock:
            if durable:
                self._database.execute("PRAGMA synchronous = FULL")
            with self._database:
                self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
            if durable:
                self._database.execute("PRAGMA synchronous = NORMAL")

    def newest_generation(self) -> int:
        """0 without rows."""
        with self._database_lock:
            return int(self._database.execute("SELECT coalesce(max(generation), 0) FROM objects").fetchone()[0])

    def oldest_generation(self) -> int | None:
        """None without rows."""
        with self._database_lock:
            found = self._database.execute("SELECT min(generation) FROM objects").fetchone()[0]
        return None if found is None else int(found)

    def eviction_rows(self) -> Iterator[EvictionRow]:
        """What the policy needs of every row, as of the last batch, in pages, so that memory stays bounded and no
        other thread waits long for the database. Raises CacheDiskFailed."""
        last = b""
        while True:
            page = self._all(
                "SELECT digest, present_bytes, dataset, first_use, last_use, gap FROM objects WHERE digest > ? "
                "ORDER BY digest LIMIT 5000",
                last,
            )
            if not page:
                return
            last = page[-1][0]
            for values in page:
                yield EvictionRow(values[0].hex(), *values[1:])

    def dataset_uses(self) -> dict[int, DatasetUse]:
        """``eviction.uses_of`` all rows, as of the last batch. Raises CacheDiskFailed."""
        found = self._all("SELECT dataset, sum(present_bytes), max(last_use), max(gap) FROM objects GROUP BY dataset")
        return {dataset: DatasetUse(*values) for dataset, *values in found}

    def _all(self, query: str, *values: object) -> list[Any]:
        try:
            with self._database_lock:
                return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self.failures += 1
            raise CacheDiskFailed(f"index.read: {summary(error)}; nothing can be evicted") from error

    def latest_use(self) -> int:
        """The greatest last use of any row: where the clock resumes after a start."""
        with self._database_lock:
            return int(self._database.execute("SELECT coalesce(max(last_use), 0) FROM objects").fetchone()[0])

    def flush(self, *, with_touches: bool = False) -> None:
        """Writes pending changes. Raises CacheDiskFailed; they are then written with the next flush."""
        with self._flushing:
            self._flush(with_touches)

    def _flush(self, with_touches: bool) -> None:
        with self._lock:
            # ``find`` looks into both, so that a change is visible at any moment until it is committed. What a failed
            # flush left in _writing is older than what is pending.
            self._gather()
            self._writing = {**self._writing, **self._pending}
            self._pending = {}
            batch = self._writing
        touched = self._touches_to_write(with_touches)
        if not batch and not touched:
            return
        gone = [(bytes.fromhex(digest),) for digest, row in batch.items() if row is None]
        kept = [_values(row) for row in batch.values() if row is not None]
        try:
            with self._database_lock, self._database:
                self._database.executemany("DELETE FROM objects WHERE digest = ?", gone)
                self._database.executemany(_UPSERT, kept)
                self._database.executemany(_TOUCH, touched)
        except sqlite3.Error as error:
            self.failures += 1
            raise CacheDiskFailed(f"index.commit: {summary(error)}; it is retried with the next change") from error
        with self._lock:
            self._writing = {}

    def _touches_to_write(self, now: bool) -> list[tuple[int, int, bytes]]:
        due = now or self._closing or len(self._touched) > MOST_TOUCHES or time.monotonic() >= self._touches_due
        if not due:
            return []
        self._touches_due = time.monotonic() + TOUCH_INTERVAL_S
        touched, self._touched = self._touched, {}
        return [(last_use, dataset, bytes.fromhex(digest)) for digest, (last_use, dataset) in touched.items()]

    def close(self) -> None:
        """Writes pending changes and ends the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._database.close()

    def _write_batches(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            # Changes gather meanwhile. Never interrupted: ``close`` waits for it and then flushes the rest.
            time.sleep(self._interval_s)
            try:
                self.flush()
            except CacheDiskFailed:
                # They stay in _writing and are retried with the next change.
                continue
            except BaseException:  # whatever it is, the thread must not die
                logger.exception("unexpected error in a batch of the index; it is retried with the next change")


_SUFFIXES = ("", "-wal", "-shm")
"""Of the names of the database's files."""


def _open_database(path: Path) -> tuple[sqlite3.Connection, bool]:
    """The connection, and whether a damaged index was renamed. Its files are for their owner alone; SQLite gives the
    journals the mode of the database."""
    for suffix in _SUFFIXES:
        close_to_others(path.with_name(path.name + suffix))
    try:
        return _connect(path), False
    except sqlite3.DatabaseError:
        _rename_damaged(path)
    try:
        return _connect(path), True
    except sqlite3.DatabaseError as error:
        raise CacheDirectoryUnusable(f"{path}: cannot be opened as the cache's index: {summary(error)}") from error


def _connect(path: Path) -> sqlite3.Connection:
    with suppress(OSError):  # SQLite reports it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # No temporary files: without a descriptor for one a query would fail as on a broken disk.
        database.execute("PRAGMA temp_store = MEMORY")
        # NORMAL: a crash of the machine may lose a commit, never tear it. Lost rows are found by reconciliation.
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("damaged")
        database.executescript(_SCHEMA)
        database.execute(f"SELECT {_COLUMNS} FROM objects LIMIT 1").fetchone()  # noqa: S608
    except sqlite3.DatabaseError:
        database.close()
        raise
    except UnicodeDecodeError as error:
        # The message of an error about a damaged schema contains the schema's text, which may be no UTF-8 any more.
        database.close()
        raise sqlite3.DatabaseError("damaged") from error
    return database


def _rename_damaged(path: Path) -> None:
    for suffix in _SUFFIXES:
        broken = path.with_name(path.name + suffix)
        if broken.exists():
            broken.replace(broken.with_name(broken.name + ".damaged"))


def _values(row: IndexRow) -> tuple[object, ...]:
    return (
        *(bytes.fromhex(row.digest), row.size_bytes, row.present_bytes, int(row.complete), _sealed(row)),
        *(row.generation, row.dataset, row.first_use, row.last_use, row.gap),
    )


def _row(values: Any) -> IndexRow | None:
    digest, size_bytes, present_bytes, complete, sealed, *rest = values
    row = IndexRow(digest.hex(), size_bytes, present_bytes, bool(complete), sealed[: -_SEAL.size], *rest)
    return row if _sealed(row) == sealed else None


_SEAL = struct.Struct("<I")


def _sealed(row: IndexRow) -> bytes:
    """The chunk map and a CRC32C over it and the columns that must match it. SQLite has no checksums: a flipped bit
    could make a missing chunk present, or bytes from before a crash trusted."""
    facts = f"{row.digest} {row.size_bytes} {row.complete} {row.generation} ".encode()
    return row.chunk_map + _SEAL.pack(crc32c.crc32c(row.chunk_map, crc32c.crc32c(facts)))
