"""The open table: the opens that the kernel has of a mount, for a daemon that adopts it, in a memory-mapped file.

There is one slot for every open that was reported to the kernel. The file survives the daemon because the page cache
does; it need not survive the machine, because the mount does not either, so nothing is synced.

Order of stores (a process may be killed between any two of them):

* **claim**: the body of a slot whose commit word is 0; then the commit word. A slot with a wrong commit word is free.
* **clear**: the commit word becomes 0. The body stays, so that a backing id that was not closed yet can be found.
* **header**: the older of two copies is written, its checksum last; the newest copy with a right checksum counts.
* **growth**: zeros, which are free slots, are written behind the others; slots never move. They are written and not
  left as a hole: a store into a hole of a full disk ends the process (SIGBUS).

A handle is ``generation << 32 | slot``, bit 63 for passthrough. The generation of a slot grows with each claim, so that
a RELEASE which the kernel resends cannot end a later open in the same slot.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import MountFailed

_MAGIC = b"HLOPENS1"
_HEADER = struct.Struct("<8sIIQQ40s")
"""Magic, generation of the header, minor version of the protocol, flags, reserved, snapshot id."""
_CHECKSUM = struct.Struct("<I")
_HEADER_COPY_BYTES = 2048
HEADER_BYTES = 2 * _HEADER_COPY_BYTES

_BODY = struct.Struct("<QQQQ")
"""Node, handle of the file system, unique of the OPEN, backing id and generation."""
SLOT_BYTES = 64
_WORDS = SLOT_BYTES // 8
_COMMIT = 4
"""Position of the commit word in a slot, in words."""
FIRST_SLOTS = 960
"""With the header this is 64 KiB."""

PASSTHROUGH_BIT = 1 << 63
_SLOT_MASK = 0xFFFFFFFF
_GENERATION_MASK = 0x3FFFFFFF
_WORD_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The result of INIT; ``minor`` 0 means that INIT was not answered yet."""

    minor: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """One open. ``handle`` is the kernel's, ``file_handle`` the file system's; ``backing_id`` 0: cached mode."""

    handle: int
    node: int
    file_handle: int
    unique: int
    backing_id: int


def _commit_word(node: int, file_handle: int, unique: int, tail: int) -> int:
    """Never 0, and wrong for a body of which a part is missing."""
    mixed = node * 0x9E3779B97F4A7C15 ^ file_handle * 0xC2B2AE3D27D4EB4F ^ unique * 0x165667B19E3779F9 ^ tail
    return mixed & _WORD_MASK | 1


class OpenTable:
    """The open table of one mount. Methods may be called from any thread.

    ``_lock`` guards growth and the header. ``claim`` and ``clear`` need none: ``list.pop`` and ``list.append`` of
    ``_free`` are atomic, and a slot that was popped belongs to one thread until it is appended again."""

    def __init__(self, descriptor: int, snapshot_id: str) -> None:
        self._descriptor = descriptor
        self._snapshot = snapshot_id.encode()[:40]
        self._lock = threading.Lock()
        self._header_generation = 0
        self.state = ConnectionState()
        self._map()
        self._free = list(range(self._slots - 1, -1, -1))

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, snapshot_id: str) -> OpenTable:
        """An empty table; replaces an existing one. Raises OSError, with nothing left of it."""
        fresh = path.with_name(path.name + ".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_zeros(descriptor, 0, HEADER_BYTES + FIRST_SLOTS * SLOT_BYTES)
            table = cls(descriptor, snapshot_id)
        except BaseException:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        table.record_connection(ConnectionState())
        fresh.replace(path)
        return table

    @classmethod
    def load(cls, path: Path, snapshot_id: str) -> OpenTable:
        """The table of an earlier daemon.

        Raises MountFailed when it is missing, unreadable, or of another snapshot: the opens that the kernel has are
        then unknown, and the mount has to be made anew.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise MountFailed(f"{path}: the open table cannot be opened: {error.strerror}; mount anew") from error
        if os.fstat(descriptor).st_size < HEADER_BYTES:
            os.close(descriptor)
            raise MountFailed(f"{path}: the open table is too short; mount anew")
        # Holes of a table of an earlier version; without them nothing is done. On a full disk they stay.
        with suppress(OSError):
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
        table = cls(descriptor, snapshot_id)
        try:
            table._read_header(path)
        except MountFailed:
            table.close()
            raise
        live = {record.handle & _SLOT_MASK for record in table.records()}
        table._free = [slot for slot in range(table._slots - 1, -1, -1) if slot not in live]
        return table

    def close(self) -> None:
        """Unmaps the file and leaves it as it is."""
        self._words.release()
        self._memory.close()
        os.close(self._descriptor)

    # -- opens --------------------------------------------------------------------------------------------------------

    def claim(self, node: int, file_handle: int, unique: int, backing_id: int) -> int:
        """Records an open and returns the kernel's handle for it. To be called before OPEN is answered: an open that
        the kernel has and the table has not would be lost to the next daemon. Raises OSError if the table is full and
        the disk, too."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._grow()
        at = HEADER_BYTES + slot * SLOT_BYTES
        words = self._words
        word = at >> 3
        generation = ((words[word + 3] >> 32) + 1) & _GENERATION_MASK
        tail = generation << 32 | backing_id
        _BODY.pack_into(self._memory, at, node, file_handle, unique, tail)
        # Last: a kill before this store leaves the slot free, and the kernel without an answer.
        words[word + _COMMIT] = _commit_word(node, file_handle, unique, tail)
        return generation << 32 | slot | (PASSTHROUGH_BIT if backing_id else 0)

    def clear(self, handle: int) -> bool:
        """Removes an open; False if it is not in the table (any more). To be called before RELEASE is answered."""
        slot = handle & _SLOT_MASK
        if slot >= self._slots:
            return False
        word = (HEADER_BYTES >> 3) + slot * _WORDS
        words = self._words
        if not words[word + _COMMIT] or words[word + 3] >> 32 != handle >> 32 & _GENERATION_MASK:
            return False
        # The word before the list: once in the list, the slot may be claimed by another thread at once.
        words[word + _COMMIT] = 0
        self._free.append(slot)
        return True

    def records(self) -> Iterator[OpenRecord]:
        """All opens whose record is complete."""
        for slot in range(self._slots):
            record = self._record(slot)
            if record is not None:
                yield record

    def record(self, handle: int) -> OpenRecord | None:
        """The open with this handle, if there is one."""
        slot = handle & _SLOT_MASK
        record = self._record(slot) if slot < self._slots else None
        return record if record is not None and record.handle == handle else None

    def leftover_backing_ids(self) -> set[int]:
        """Backing ids in slots that are free: closed long ago, or not, if the daemon died in between."""
        found = set()
        for slot in range(self._slots):
            backing_id = self._words[(HEADER_BYTES >> 3) + slot * _WORDS + 3] & _SLOT_MASK
            if backing_id and self._record(slot) is None:
                found.add(backing_id)
        return found

    def _record(self, slot: int) -> OpenRecord | None:
        at = HEADER_BYTES + slot * SLOT_BYTES
        commit = self._words[(at >> 3) + _COMMIT]
        if not commit:
            return None
        node, file_handle, unique, tail = _BODY.unpack_from(self._memory, at)
        if commit != _commit_word(node, file_handle, unique, tail):
            return None
        backing_id = tail & _SLOT_MASK
        handle = (tail >> 32) << 32 | slot | (PASSTHROUGH_BIT if backing_id else 0)
        return OpenRecord(handle, node, file_handle, unique, backing_id)

    # -- header -------------------------------------------------------------------------------------------------------

    def record_connection(self, state: ConnectionState) -> None:
        """Records the result of INIT, before it is answered, or what became of it, before the kernel is told."""
        with self._lock:
            self._header_generation += 1
            header = _HEADER.pack(_MAGIC, self._header_generation, state.minor, state.flags, 0, self._snapshot)
            # The other copy stays valid while this one is written, and this one is valid with its checksum.
            at = self._header_generation % 2 * _HEADER_COPY_BYTES
            self._memory[at : at + len(header)] = header
            _CHECKSUM.pack_into(self._memory, at + len(header), zlib.crc32(header))
            self.state = state

    def _read_header(self, path: Path) -> None:
        copies = [copy for copy in map(self._header_copy, (0, _HEADER_COPY_BYTES)) if copy is not None]
        if not copies:
            raise MountFailed(f"{path}: is not an open table, or its header is damaged; mount anew")
        generation, minor, flags, snapshot = max(copies)
        if snapshot != self._snapshot.ljust(40, b"\0"):
            raise MountFailed(f"{path}: the open table is of another snapshot; mount anew")
        self._header_generation = generation
        self.state = ConnectionState(minor, flags)

    def _header_copy(self, at: int) -> tuple[int, int, int, bytes] | None:
        header = self._memory[at : at + _HEADER.size]
        magic, generation, minor, flags, _, snapshot = _HEADER.unpack(header)
        if magic != _MAGIC or _CHECKSUM.unpack_from(self._memory, at + _HEADER.size)[0] != zlib.crc32(header):
            return None
        return generation, minor, flags, snapshot

    # -- memory -------------------------------------------------------------------------------------------------------

    def _map(self) -> None:
        size_bytes = os.fstat(self._descriptor).st_size
        self._slots = (size_bytes - HEADER_BYTES) // SLOT_BYTES
        self._memory = mmap.mmap(self._descriptor, HEADER_BYTES + self._slots * SLOT_BYTES)
        self._words = memoryview(self._memory).cast("Q")

    def _grow(self) -> int:
        """Doubles the file and returns a new slot. A thread that still writes through the older mapping writes to the
        same pages; that mapping ends with its last reference."""
        with self._lock:
            try:
                return self._free.pop()  # another thread grew it meanwhile
            except IndexError:
                pass
            old = self._slots
            begin, end = (HEADER_BYTES + slots * SLOT_BYTES for slots in (old, 2 * max(old, 1)))
            try:
                _write_zeros(self._descriptor, begin, end)
            except OSError:
                os.ftruncate(self._descriptor, begin)
                raise
            # The new mapping before the new slots: a thread that pops one of them writes through ``_words``.
            self._map()
            self._free.extend(range(self._slots - 1, old, -1))
            return old


def _write_zeros(descriptor: int, begin: int, end: int) -> None:
    """Raises OSError, ENOSPC among others."""
    while begin < end:
        begin += os.pwrite(descriptor, bytes(min(end - begin, 1 << 20)), begin)
