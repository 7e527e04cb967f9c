"""Materialised views: trees of hard links to complete object files.

    <cache directory>/views/<name>            a finished view; the rename is the commit
    <cache directory>/views/.building-<name>  a view that is being built
    <cache directory>/views/.gone-<name>-<n>  a view that is being removed

Names come from keys, are checked part by part by the catalog, and are passed to the kernel relative to descriptors;
only the daemon can write below the directory (0700).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from csi_driver.cache.hard_links import LinkGuard
from csi_driver.model.chunk import OBJECT_FILE_MODE
from csi_driver.model.errors import ViewUnavailable
from csi_driver.model.tracebacks import summary

logger = logging.getLogger(__name__)

VIEWS = "views"
"""The directory of the views, below that of the cache. Mounts of views are recognised by it."""

_BUILDING = ".building-"
_GONE = ".gone-"

_MOST_THREADS = 4
"""Links in different directories run in parallel: 200,000 files in 200 directories were linked at 63,000 a second
by one thread, 98,000 by two and 92,000 by four (on two cores)."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LOCK_FILE_MODE = 0o666
"""LMDB opens the lock file of an environment for writing, also for a reader, and does without it if that gives EROFS.
On a read-only mount of a writable file system the kernel compares the mode first (EACCES), so the mode has to permit
what the mount then refuses."""

_LOCK_FILE_MOST_BYTES = 1 << 20
"""LMDB's lock file has 64 bytes for each reader: 8 KiB by default. A larger file of such a name is linked."""


class ViewFile(NamedTuple):
    """One file of a view. ``digest`` names the object file; an empty object has no file."""

    name: bytes
    digest: str
    size_bytes: int
    mtime_ns: int


class ViewPart(NamedTuple):
    """Some files of one directory, given by its path below the view (empty for its root). A directory may have several
    parts, or one without files; its parent precedes it. ``files`` is iterated by the thread that links them."""

    directory: bytes
    files: Iterator[ViewFile]


class Views:
    """The views below one directory. Methods may be called from any thread, but for one name only one at a time."""

    def __init__(self, directory: Path, objects: Path, link_guard: LinkGuard, allows: Callable[[str], bool]) -> None:
        """``allows`` returns whether an object file may be used without a check of its CRCs."""
        self.directory = directory
        self._objects = objects
        self._link_guard = link_guard
        self._allows = allows
        self._numbers = itertools.count()
        directory.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.directory / name

    def exists(self, name: str) -> bool:
        return self.path(name).is_dir()

    def names(self) -> list[str]:
        """Of finished views."""
        return [entry for entry in os.listdir(self.directory) if not entry.startswith(".")]

    def has_object(self, file: ViewFile) -> bool:
        """True if the file could be linked now."""
        if not file.size_bytes:
            return True
        if not self._allows(file.digest):
            return False
        return os.path.exists(self._objects / file.digest[:2] / file.digest)

    def build(
        self, name: str, parts: Iterable[ViewPart], *, directory_mode: int, directory_mtime_ns: int, threads: int = 0
    ) -> bool:
        """Links every file. False: some object is not complete in the cache; the view is then to be removed by
        ``clear``. Blocks on the disk: 10 to 28 microseconds a file.

        Raises ViewUnavailable when the file system cannot hold it: too many links of one file, no space, no such call.
        """
        building = self.directory / f"{_BUILDING}{name}"
        if building.exists():
            self._discard(building.name)
        try:
            building.mkdir(mode=0o700)
            work = _Build(building, self._objects, self._link_guard, self._allows, parts)
            try:
                complete = work.run(threads or min(_MOST_THREADS, os.cpu_count() or 1))
                if complete:
                    work.finish_directories(directory_mode, directory_mtime_ns)
                    os.rename(building, self.path(name))  # the commit
            finally:
                work.close()
        except OSError as error:
            self._discard(building.name)
            raise ViewUnavailable(f"no materialised view can be built: {_reason(error)}") from error
        except BaseException:
            self._discard(building.name)
            raise
        if not complete:
            self._discard(building.name)
        return complete

    def remove(self, name: str) -> None:
        """The view has no name from now on; ``clear`` removes its files. A missing view is success."""
        self._discard(name)

    def discard_unfinished(self) -> None:
        """Views that an earlier daemon was building are left to ``clear``. For the start of a daemon."""
        for entry in os.listdir(self.directory):
            if entry.startswith(_BUILDING):
                self._discard(entry)

    def clear(self) -> None:
        """Deletes removed and discarded views: about 8 microseconds a file. What cannot be deleted is retried at the
        next call."""
        try:
            entries = os.listdir(self.directory)
        except OSError as error:  # no descriptor left
            logger.warning("%s: removed views cannot be deleted, retried later: %s", self.directory, error.strerror)
            return
        for entry in entries:
            if entry.startswith(_GONE):
                shutil.rmtree(self.directory / entry, onerror=_log_failure)

    def _discard(self, entry: str) -> None:
        name = entry.removeprefix(_BUILDING)
        # A number may be in use by a view that an earlier daemon has renamed: then the next one.
        while True:
            target = self.directory / f"{_GONE}{name}-{next(self._numbers)}"
            try:
                os.rename(self.directory / entry, target)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return


class _Build:
    """The threads that link the files of one view.

    ``_taking`` guards the iterator of parts and the directories made: a directory is made by the thread that takes its
    first part, before any other thread can take the next. The other fields are flags and lists that only grow."""

    def __init__(
        self,
        root: Path,
        objects: Path,
        link_guard: LinkGuard,
        allows: Callable[[str], bool],
        parts: Iterable[ViewPart],
    ) -> None:
        self._link_guard = link_guard
        self._allows = allows
        self._parts = iter(parts)
        self._taking = threading.Lock()
        self._directories: list[bytes] = []
        self._stopped = False
        self._complete = True
        self._failures: list[BaseException] = []
        self._descriptors: list[int] = []
        try:
            self._root = self._open(root)
            self._sources = {f"{number:02x}": self._open(objects / f"{number:02x}") for number in range(256)}
        except BaseException:
            self.close()
            raise

    def run(self, thread_count: int) -> bool:
        """Links all files; False if an object was missing. Raises OSError."""
        threads = [threading.Thread(target=self._work, name=f"view-{number}") for number in range(thread_count - 1)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        return self._complete

    def finish_directories(self, mode: int, mtime_ns: int) -> None:
        """Modes and times, the inner directories first: a new entry changes the time of its directory."""
        for directory in (*reversed(self._directories), b"."):
            descriptor = os.open(directory, _DIRECTORY, dir_fd=self._root)
            try:
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(descriptor)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, _DIRECTORY)
        self._descriptors.append(descriptor)
        return descriptor

    def _work(self) -> None:
        try:
            while not self._stopped:
                with self._taking:
                    part = self._next_part()
                if part is None:
                    return
                self._link_part(part)
        except BaseException as error:  # noqa: BLE001  # raised again by run, on the thread of the caller
            self._failures.append(error)
            self._stopped = True

    def _next_part(self) -> ViewPart | None:
        part = next(self._parts, None)
        if part is not None and part.directory and (not self._directories or self._directories[-1] != part.directory):
            with suppress(FileExistsError):
                os.mkdir(part.directory, 0o700, dir_fd=self._root)
                self._directories.append(part.directory)
        return part

    def _link_part(self, part: ViewPart) -> None:
        target = os.open(part.directory or b".", _DIRECTORY, dir_fd=self._root)
        try:
            for file in part.files:
                if self._stopped:
                    return
                if not file.size_bytes:
                    _make_empty(file, target)
                elif not (self._copy(file, target) if _is_lock_file(file) else self._link(file, target)):
                    self._complete = False
                    self._stopped = True
        finally:
            os.close(target)

    def _link(self, file: ViewFile, target: int) -> bool:
        digest = file.digest
        if not self._allows(digest):
            return False
        source = self._sources[digest[:2]]
        try:
            # Eviction looks at the link count and unlinks under the same lock: the link is made before the look, or
            # finds no file.
            with self._link_guard.of(digest):
                os.link(digest, file.name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        # The stat first, because only the first view has to set the time: 18 s instead of 28 s for a million files.
        if os.stat(file.name, dir_fd=target, follow_symlinks=False).st_mtime_ns != file.mtime_ns:
            os.utime(file.name, ns=(file.mtime_ns, file.mtime_ns), dir_fd=target, follow_symlinks=False)
        return True

    def _copy(self, file: ViewFile, target: int) -> bool:
        """Of a small file that needs another mode than the object files have."""
        if not self._allows(file.digest):
            return False
        try:
            source = os.open(file.digest, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._sources[file.digest[:2]])
        except FileNotFoundError:
            return False
        try:  # eviction may unlink it now; the descriptor keeps its bytes
            _make_file(file, target, _LOCK_FILE_MODE, os.pread(source, file.size_bytes, 0))
        finally:
            os.close(source)
        return True


def _is_lock_file(file: ViewFile) -> bool:
    """``lock.mdb`` in the directory of an LMDB environment, ``X-lock`` beside one that is the file X."""
    return (file.name == b"lock.mdb" or file.name.endswith(b"-lock")) and file.size_bytes <= _LOCK_FILE_MOST_BYTES


def _make_empty(file: ViewFile, target: int) -> None:
    _make_file(file, target, _LOCK_FILE_MODE if _is_lock_file(file) else OBJECT_FILE_MODE, b"")


def _make_file(file: ViewFile, target: int, mode: int, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file.name, flags, mode, dir_fd=target)
    try:
        rest = memoryview(content)
        while rest:  # write(2) takes less where the disk is about to be full; the next one then raises
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno == errno.EMLINK:
        return "an object is linked as often as this file system allows (65,000 times on ext4)"
    return f"{error.strerror or summary(error)}"


def _log_failure(_function: object, path: str, failure: object) -> None:
    error = failure[1] if isinstance(failure, tuple) else failure
    logger.warning("%s of a removed view cannot be deleted, retried later: %s", path, error)
