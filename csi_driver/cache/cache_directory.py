"""The cache directory: its lock, its layout, and how the last daemon left it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.file_system_sync import synced
from csi_driver.cache.index import Index
from csi_driver.cache.private_files import close_own_directory, close_to_others
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import CacheDirectoryInUse, CacheDirectoryMissing, CacheDirectoryUnusable

logger = logging.getLogger(__name__)

_FORMAT = {"format": 1, "chunk_bytes": CHUNK_BYTES}

UNSUITABLE = frozenset({"tmpfs", "ramfs", "FUSE", "NFS", "overlayfs"})
"""File systems that cannot back passthrough reads, do not outlive the machine, or are no local disk."""

_CONTENT = (
    *("format.", "lock", "credentials.", "index.sqlite", "objects", "partial", "views"),
    *("state", "inline", "lost+found"),
)
"""Names in a cache directory, or their beginnings; ``state`` and ``inline`` are made by `hayloft all-in-one`."""

_KEY_BYTES = 32

_ROOM_FROM_BYTES, _ROOM_FROM_INODES = 1 << 20, 8
"""Below this the daemon may not start: its index has three files, and a log of 32 KiB at the least."""

_ROOM_BYTES, _ROOM_INODES = 16 << 20, 64
"""What is then made free."""

_MOST_REMOVED = 4096
"""Files, where removing them frees nothing at once (snapshots of btrfs)."""

_NEXT = "lock.next"
"""Held by a process that waits for the lock. Its holder sees by it that it has a successor."""

_SYNCED, _FLUSHED, _IN_USE = "yes", "on this boot", "no"
"""How the last daemon left the index (the fact ``clean``). The second: complete, but not on the disk, as its successor
does not wait for that."""


@dataclass(frozen=True, slots=True)
class StartState:
    """How the last daemon left the cache. ``generation`` counts crashes of the machine; it is recorded with bytes that
    are written from now on. ``unclean``: index and object files may disagree."""

    generation: int
    unclean: bool
    strays_are_trusted: bool
    """Whether a complete file without a row has all its bytes: it has after a kill, but after a crash of the machine it
    may not, until all such files have been dropped once."""


@dataclass(frozen=True, slots=True)
class CacheDirectory:
    """A cache directory that this process has locked."""

    path: Path
    lock_descriptor: int

    @classmethod
    def acquire(cls, path: Path, *, standby: bool = False) -> CacheDirectory:
        """Checks and locks the directory and creates its layout. With ``standby``, blocks while another process has the
        lock; a signal without a handler still ends this one.

        Raises CacheDirectoryMissing, CacheDirectoryUnusable (read-only, full, tmpfs, of another format) and, without
        ``standby``, CacheDirectoryInUse; the lock is released then.
        """
        require_suitable(path)
        directory = cls(path, _lock(path, standby=standby))
        try:
            directory._lay_out()
        except OSError as error:
            directory.release()
            raise _unusable(path, error) from error
        except BaseException:
            directory.release()
            raise
        return directory

    @property
    def file_system(self) -> str:
        """The type of its file system, as in the mount table."""
        return file_system_of(self.path)

    @property
    def objects(self) -> Path:
        """Complete object files."""
        return self.path / "objects"

    @property
    def partial(self) -> Path:
        """Object files with chunks missing."""
        return self.path / "partial"

    @property
    def index(self) -> Path:
        return self.path / "index.sqlite"

    @property
    def _key(self) -> Path:
        return self.path / "credentials.key"

    def credential_key(self) -> bytes:
        """Random bytes, made once, under which credentials are named in the proofs of access (``proof_attribute.py``).
        With another key no proof is found, and stores are asked again."""
        return self._key.read_bytes()

    def free_full_disk(self) -> list[str]:
        """Removes some object files if the file system is full, and returns their digests: without an inode or a block
        the index cannot be opened, and nothing could be evicted. Which ones does not matter much; eviction follows.

        Partial files come first, because a complete one may be open in a mount that is adopted; files of views stay.
        Raises CacheDirectoryUnusable.
        """
        try:
            return self._free_full_disk()
        except OSError as error:
            raise CacheDirectoryUnusable(
                f"cache directory {self.path} cannot be used: {error.strerror}; look at the kernel's log"
            ) from error

    def _free_full_disk(self) -> list[str]:
        removed: list[str] = []
        space = DiskSpace.of(self.path)
        if _has_room(space, _ROOM_FROM_BYTES, _ROOM_FROM_INODES):
            return removed
        for folder in (parent / f"{number:02x}" for parent in (self.partial, self.objects) for number in range(256)):
            for path in list(folder.iterdir()):
                if len(removed) >= _MOST_REMOVED or _has_room(DiskSpace.of(self.path), _ROOM_BYTES, _ROOM_INODES):
                    break
                if path.stat().st_nlink == 1:
                    path.unlink()
                    removed.append(path.name)
        if removed:
            logger.warning(
                "the file system of the cache %s is full: %d object files were removed, so that the daemon can start",
                self.path,
                len(removed),
                extra=telemetry.fields(free_bytes=space.free_bytes, free_inodes=space.free_inodes),
            )
        return removed

    def begin(self, index: Index) -> StartState:
        """Records that the cache is in use on this boot.

        The generation grows when the machine crashed, that is, went down without ``end``: files that an older
        generation wrote may have lost bytes and are verified before they are used.
        """
        boot_id = _boot_id()
        generation = max(_number(index.fact("generation")), index.newest_generation(), 1)
        known_boot_id = index.fact("boot_id")
        # An index without facts is new, unless there are object files: then a crash has lost the index or its name.
        lost = known_boot_id is None and (index.oldest_generation() is not None or self._holds_files())
        clean = index.fact("clean")
        same_boot = known_boot_id == boot_id
        left_clean = clean == _SYNCED or (clean == _FLUSHED and same_boot)
        unclean = lost or (known_boot_id is not None and not left_clean)
        machine_crashed = unclean and not same_boot
        if machine_crashed:
            generation += 1
        # Each fact is durable before the next is written. The boot id is last but one: killed before it, the next start
        # still sees another boot than this one, and a crash.
        if str(generation) != index.fact("generation"):
            index.set_fact("generation", str(generation))
        if machine_crashed or index.was_replaced:
            index.set_fact("strays", "distrusted")
        # No write to the disk after a kill, or a handover to a successor: readers wait for this.
        if not same_boot:
            index.set_fact("boot_id", boot_id)
        if clean != _IN_USE:
            index.set_fact("clean", _IN_USE, durable=clean != _FLUSHED)
        trusted = index.fact("strays") in (None, "none")
        return StartState(generation, unclean or not trusted, trusted)

    def _holds_files(self) -> bool:
        folders = (parent / f"{number:02x}" for parent in (self.objects, self.partial) for number in range(256))
        return any(next(folder.iterdir(), None) is not None for folder in folders)

    @staticmethod
    def strays_are_gone(index: Index) -> None:
        """Records that every object file has a row now."""
        index.set_fact("strays", "none")

    def has_successor(self) -> bool:
        """Whether another process waits for the lock."""
        try:
            descriptor = os.open(self.path / _NEXT, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def end(self, index: Index) -> None:
        """Syncs the file system and records a clean stop, so that the next boot trusts the index. If the disk needs
        longer than ``SYNC_S`` the stop counts as unclean: a daemon of the same boot trusts the object files anyway, one
        after a reboot verifies them. Not synced for a successor, whose readers wait meanwhile."""
        index.flush()
        if self.has_successor():
            index.set_fact("clean", _FLUSHED, durable=False)
        elif synced(self.path):
            index.set_fact("clean", _SYNCED)

    def release(self) -> None:
        os.close(self.lock_descriptor)

    def _lay_out(self) -> None:
        note = self.path / "format.json"
        if note.exists():
            try:
                found = json.loads(note.read_text())
            except ValueError:
                found = None
            if found != _FORMAT:
                raise CacheDirectoryUnusable(
                    f"cache directory {self.path} is of another format ({found}); empty it or name another"
                )
        for parent in (self.objects, self.partial):
            if not parent.exists():
                parent.mkdir(mode=0o700)
                _spread(parent)
            for number in range(256):
                (parent / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        if not self._key.exists() or self._key.stat().st_size != _KEY_BYTES:
            _write_key(self._key)
        if not note.exists():
            temporary = note.with_suffix(".new")
            temporary.write_text(json.dumps(_FORMAT))
            temporary.rename(note)
        for path in (self.objects, self.partial, self.path / "views", note, self.path / "lock", self._key):
            close_to_others(path)
        close_own_directory(self.path, _CONTENT)


def _has_room(space: DiskSpace, count_bytes: int, inodes: int) -> bool:
    return space.free_bytes >= count_bytes and (space.free_inodes >= inodes or not space.total_inodes)


def require_suitable(path: Path) -> None:
    """Raises CacheDirectoryMissing or CacheDirectoryUnusable for a directory that is not on a local disk. Makes
    nothing: a program that has files of its own in there asks first."""
    if not path.is_dir():
        raise CacheDirectoryMissing(
            f"cache directory {path} does not exist; make it on a local disk or name another with --cache-dir"
        )
    kind = file_system_of(path)
    if kind in UNSUITABLE:
        raise CacheDirectoryUnusable(
            f"cache directory {path} is on {kind}; name one on a local disk (ext4, xfs) with --cache-dir"
        )


def is_in_use(path: Path) -> bool:
    """Whether another process has the lock of the directory at this moment. Only for a process in standby: for this
    moment the lock is shared."""
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(path: Path, *, standby: bool) -> int:
    descriptor = _open_lock(path, "lock")
    try:
        if not _locked_at_once(descriptor):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            if not standby:
                raise CacheDirectoryInUse(
                    f"cache directory {path} is in use by another daemon (process {holder}); "
                    "stop it or name another directory with --cache-dir"
                )
            _wait_for_lock(path, descriptor, holder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise _unusable(path, error) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked_at_once(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(path: Path, descriptor: int, holder: str) -> None:
    """Blocks until the holder has ended. One process waits for the lock, further ones for that one."""
    facts = telemetry.fields(cache_directory=os.fspath(path), holder_pid=holder)
    logger.info("another daemon uses the cache directory; this one takes over when that one has ended", extra=facts)
    next_descriptor = _open_lock(path, _NEXT)
    try:
        fcntl.flock(next_descriptor, fcntl.LOCK_EX)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(next_descriptor)
    logger.info("the other daemon has ended; this one takes over", extra=facts)


def _open_lock(path: Path, name: str) -> int:
    try:
        return os.open(path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> CacheDirectoryUnusable:
    return CacheDirectoryUnusable(
        f"cache directory {path} cannot be used: {error.strerror}; make it writable and free some space"
    )


def _write_key(path: Path) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
    temporary.rename(path)


def _spread(directory: Path) -> None:
    """Makes ext4 put each subdirectory, and with it its files, into a block group of its own (chattr +T).

    In one group, files are slow to create for minutes after many were deleted: ext4 skips inodes that were freed
    recently one by one. Measured with 2,500 files of 110 kB created, deleted and created again: 463 microseconds for a
    creation without the flag, 20 with it. Other file systems do not know the flag and do not need it."""
    with suppress(OSError):
        subprocess.run(  # noqa: S603
            ("chattr", "+T", os.fspath(directory)),  # noqa: S607
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def file_system_of(path: Path) -> str:
    """The type of the file system that holds the path, by the longest mount point in the mount table."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            kind = right.split()[0]
            return {"fuseblk": "FUSE", "nfs": "NFS", "nfs4": "NFS", "overlay": "overlayfs"}.get(
                kind, "FUSE" if kind.startswith("fuse.") else kind
            )
    return "unknown"
