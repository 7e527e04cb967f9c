"""Trees of hard links to complete object files: what a materialised view shows.

    <cache directory>/views/<name>            a finished view; the rename is the commit
    <cache directory>/views/.building-<name>  one that is being built
    <cache directory>/views/.gone-<name>-<n>  one that is being removed

Names come from keys and reach the kernel relative to descriptors, part by part checked by the catalog; nobody but the
daemon can write below the directory (0700).
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

logger = logging.getLogger(__name__)

VIEWS = "views"
"""The directory that views lie in, below that of the cache. Part of what mounts of views are known by."""

_BUILDING = ".building-"
_GONE = ".gone-"

_MOST_THREADS = 4
"""Links in different directories go on side by side: 200,000 files in 200 directories were linked at 63,000 a second
by one thread, 98,000 by two and 92,000 by four (on two cores)."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ViewFile(NamedTuple):
    """One file of a view. ``digest`` names the object file; an empty object has none and needs none."""

    name: bytes
    digest: str
    size_bytes: int
    mtime_ns: int


class ViewPart(NamedTuple):
    """Some files of one directory, given by its path below the view (empty for its root). A directory may come in
    several parts, or in one without files; it comes after the directory that holds it. ``files`` is read by the thread
    that links them."""

    directory: bytes
    files: Iterator[ViewFile]


class Views:
    """The views below one directory. Methods may be called from any thread, for one name by one at a time."""

    def __init__(self, directory: Path, objects: Path, guard: LinkGuard, allows: Callable[[str], bool]) -> None:
        """``allows`` tells whether an object file may be shown without a check of its CRCs."""
        self.directory = directory
        self._objects = objects
        self._guard = guard
        self._allows = allows
        self._numbers = itertools.count()
        directory.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a finished view is."""
        return self.directory / name

    def exists(self, name: str) -> bool:
        """True if the view is finished."""
        return self.path(name).is_dir()

    def names(self) -> list[str]:
        """Finished views."""
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
        """Links every file. False: some object is not complete in the cache, and nothing is left of the view but what
        ``clear`` removes. Blocks on the disk: 10 to 28 microseconds a file.

        Raises ViewUnavailable when the file system cannot hold it: too many links of one file, no room, no such call.
        """
        building = self.directory / f"{_BUILDING}{name}"
        if building.exists():
            self._set_aside(building.name)
        try:
            building.mkdir(mode=0o700)
            work = _Build(building, self._objects, self._guard, self._allows, parts)
            try:
                complete = work.run(threads or min(_MOST_THREADS, os.cpu_count() or 1))
                if complete:
                    work.finish_directories(directory_mode, directory_mtime_ns)
                    os.rename(building, self.path(name))
            finally:
                work.close()
        except OSError as error:
            self._set_aside(building.name)
            raise ViewUnavailable(f"no materialised view can be built: {_reason(error)}") from error
        except BaseException:
            self._set_aside(building.name)
            raise
        if not complete:
            self._set_aside(building.name)
        return complete

    def remove(self, name: str) -> None:
        """The view is gone at once for everybody who looks for it; ``clear`` frees what it holds. One that is not
        there is success."""
        self._set_aside(name)

    def set_aside_unfinished(self) -> None:
        """For a daemon that starts: what an earlier one was building."""
        for entry in os.listdir(self.directory):
            if entry.startswith(_BUILDING):
                self._set_aside(entry)

    def clear(self) -> None:
        """Removes what was set aside: about 8 microseconds a file. What cannot be removed stays for the next time."""
        for entry in os.listdir(self.directory):
            if entry.startswith(_GONE):
                shutil.rmtree(self.directory / entry, onerror=_say)

    def _set_aside(self, entry: str) -> None:
        plain = entry.removeprefix(_BUILDING)
        while True:
            target = self.directory / f"{_GONE}{plain}-{next(self._numbers)}"
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
    """The threads that fill one tree. ``_taking`` guards the iterator of parts and the directories made."""

    def __init__(
        self,
        root: Path,
        objects: Path,
        guard: LinkGuard,
        allows: Callable[[str], bool],
        parts: Iterable[ViewPart],
    ) -> None:
        self._guard = guard
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
        """Links everything; False if an object was missing. Raises OSError."""
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
        """Modes and times, the inner directories first: making an entry changes the time of what holds it."""
        for directory in (*reversed(self._directories), b"."):
            descriptor = os.open(directory, _DIRECTORY, dir_fd=self._root)
            try:
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Closes what was opened."""
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
                    part = self._take()
                if part is None:
                    return
                self._link_part(part)
        except BaseException as error:  # noqa: BLE001  # raised again by run, on the thread of the caller
            self._failures.append(error)
            self._stopped = True

    def _take(self) -> ViewPart | None:
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
                elif not self._link(file, target):
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
            with self._guard.of(digest):
                os.link(digest, file.name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        # Asked first, because every view but the first finds it right: 18 s instead of 28 s for a million files.
        if os.stat(file.name, dir_fd=target, follow_symlinks=False).st_mtime_ns != file.mtime_ns:
            os.utime(file.name, ns=(file.mtime_ns, file.mtime_ns), dir_fd=target, follow_symlinks=False)
        return True


def _make_empty(file: ViewFile, target: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file.name, flags, OBJECT_FILE_MODE, dir_fd=target)
    try:
        os.fchmod(descriptor, OBJECT_FILE_MODE)
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno == errno.EMLINK:
        return "an object is linked as often as this file system allows (65,000 times on ext4)"
    return f"{error.strerror or error}"


def _say(_function: object, path: str, failure: object) -> None:
    error = failure[1] if isinstance(failure, tuple) else failure
    logger.warning("%s of a view that is gone cannot be removed yet: %s", path, error)
