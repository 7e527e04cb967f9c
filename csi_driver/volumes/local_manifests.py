"""Manifests on this machine, one file per snapshot, which readers map. A file gets its final name when it is complete
and checked, and is never written again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver.cache.disk import state_errors
from csi_driver.catalog.arrow_alone import import_arrow
from csi_driver.model.errors import ManifestInvalid
from csi_driver.settings import MIB
from csi_driver.volumes.registry import Registry

_CONTENT = "manifests"

_UNUSED_S = 24 * 3600
"""Time since its last use after which a file is removed. A mount, which needs it for longer, has a link of its own. An
unfinished file of that age was left by a process that was killed: no listing takes a day."""

_IN_USE_S = 600
"""Time since its last use in which a file stays, whatever the limit: the caller of ``ensure`` may not have linked it
yet."""

_JOURNAL_S = 3600.0
"""As ``listing_journal.RESUMED_WITHIN_S``: a journal without a new page for so long is not continued."""

_JOURNALS_BYTES = 2048 * MIB
"""Of all journals together, which takes 50 bytes an object: those of listings that were killed."""

_JUST_MADE_S = 60.0
"""So long after it was made a file that did not change since is not read before it is given out, once."""

_MOST_MADE = 64
"""Files that were made and not asked for yet."""

LIMIT_BYTES = 512 * MIB
"""Of all files that no mount links: the lists of about four million objects, for the next mounts of their volumes."""


class LocalManifests:
    """A directory of manifests, of those that were used last. Several threads and processes may share it: files appear
    by atomic renames only."""

    def __init__(self, directory: Path) -> None:
        self._finished = directory / "manifests"
        self._unfinished = directory / "unfinished"
        self._journals = directory / "listings"
        self._made: dict[str, tuple[float, tuple[int, int, int]]] = {}
        """By snapshot, of files that ``finish`` has named and ``ensure`` has not returned: when, and ``_state``. Single
        steps of a dictionary, so without a lock."""
        with state_errors(directory, _CONTENT):
            for path in (directory, self._finished, self._unfinished, self._journals):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_unused()
            self._remove_journals()

    @contextmanager
    def journal(self, identity: str) -> Iterator[Path | None]:
        """The path for the journal of a listing (``catalog/listing_journal.py``), the same for the same identity, which
        may hold secrets: the name is a digest with a key of this directory. None for an empty identity. A journal that
        the body leaves is removed after ``_JOURNAL_S``, here or by a later process."""
        if not identity:
            yield None
            return
        with state_errors(self._journals, _CONTENT):
            path = self._journals / hashlib.blake2b(identity.encode(), key=self._key(), digest_size=20).hexdigest()
            self._remove_journals()
        try:
            yield path
        finally:
            if path.exists():
                timer = threading.Timer(_JOURNAL_S + 1.0, self._remove_journals)
                timer.daemon = True
                timer.start()

    def _key(self) -> bytes:
        """Made once. A file with a name that is complete: another process may make it at the same time."""
        path = self._journals / "key"
        if not path.exists():
            descriptor, temporary = tempfile.mkstemp(dir=self._journals)
            with open(descriptor, "wb") as file:
                file.write(os.urandom(32))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            os.unlink(temporary)
        return path.read_bytes()

    def _remove_journals(self) -> None:
        """Those that no listing has added to for ``_JOURNAL_S``; and of others that are not in use the oldest, until
        the rest is under ``_JOURNALS_BYTES``."""
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for path in self._journals.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if path.name != "key":
                        found.append((time.time() - status.st_mtime, status.st_size, path))
        total_bytes = sum(size_bytes for _, size_bytes, _ in found)
        for age_s, size_bytes, path in sorted(found, reverse=True):
            over = total_bytes > _JOURNALS_BYTES and age_s > _IN_USE_S
            if age_s > _JOURNAL_S or over:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                total_bytes -= size_bytes

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A path for an unfinished file, which is removed afterwards unless ``finish`` renamed it; so are files whose
        name contains its name: a process that was killed cannot remove those of its own."""
        name = uuid.uuid4().hex
        path = self._unfinished / f"{name}.arrow"
        try:
            with state_errors(path, _CONTENT):
                yield path
        finally:
            for left in self._unfinished.iterdir():
                if name in left.name:
                    left.unlink(missing_ok=True)

    def finish(self, unfinished: Path, snapshot_id: str) -> Path:
        """Gives a file made in ``building`` its final name. Two files for one snapshot have the same content."""
        target = self._path(snapshot_id)
        with state_errors(target, _CONTENT):
            # In this order: after a crash the name must not exist with content that was not written.
            _sync(unfinished)
            os.utime(unfinished)
            made = time.monotonic(), _state(unfinished)
            os.replace(unfinished, target)
            _sync(self._finished)
            if len(self._made) >= _MOST_MADE:
                self._made.clear()
            self._made[snapshot_id] = made
            self._remove_unused()
        return target

    def finish_own(self, unfinished: Path) -> Path:
        """Gives a file made in ``building`` a final name that no other caller gets. It is not used again, so the caller
        removes it; one that is killed leaves it for a day, or until the limit is reached."""
        target = self._path(f"own-{uuid.uuid4().hex}")
        with state_errors(target, _CONTENT):
            os.utime(unfinished)
            os.replace(unfinished, target)
            self._remove_unused()
        return target

    def ensure(self, snapshot_id: str, registry: Registry) -> Path:
        """The file of a snapshot, fetched from the registry unless a valid one exists locally. Raises ManifestInvalid,
        RegistryUnavailable, CacheDiskFailed."""
        target = self._path(snapshot_id)
        if self._is_valid(target, snapshot_id):
            return target
        with self.building() as path:
            registry.fetch_manifest(snapshot_id, path)
            _open(path, snapshot_id)
            finished = self.finish(path, snapshot_id)
            self._made.pop(snapshot_id, None)
            return finished

    def _is_valid(self, path: Path, snapshot_id: str) -> bool:
        with state_errors(path, _CONTENT):
            try:
                state = _state(path)
                os.utime(path)  # before it is opened: from now on ``_remove_unused`` leaves it alone
                # What this process has made a moment ago is not read again, and a controller does without Arrow.
                made_s, made = self._made.pop(snapshot_id, (0.0, None))
                if made != state or time.monotonic() - made_s > _JUST_MADE_S:
                    _open(path, snapshot_id)
            except (FileNotFoundError, ManifestInvalid):
                return False
        return True

    def _path(self, snapshot_id: str) -> Path:
        if not snapshot_id or "/" in snapshot_id or snapshot_id.startswith("."):
            raise ManifestInvalid(f"{snapshot_id!r} is not the id of a snapshot")
        return self._finished / f"{snapshot_id}.arrow"

    def _remove_unused(self) -> None:
        """Those that were not used for ``_UNUSED_S``, and others, the oldest first, until the rest is under the limit.
        The mtime is the last use. Files that a mount or the registry links take no space of their own."""
        found: list[tuple[float, int, Path]] = []
        for path in (*self._finished.iterdir(), *self._unfinished.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                own_bytes = status.st_size if status.st_nlink == 1 else 0
                found.append((time.time() - status.st_mtime, own_bytes, path))
        total_bytes = sum(own_bytes for _, own_bytes, _ in found)
        for age_s, own_bytes, path in sorted(found, reverse=True):
            over = total_bytes > LIMIT_BYTES and own_bytes > 0
            if age_s > _UNUSED_S or (over and age_s > _IN_USE_S):
                path.unlink(missing_ok=True)
                total_bytes -= own_bytes


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _state(path: Path) -> tuple[int, int, int]:
    """Inode, size and mtime."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _open(path: Path, snapshot_id: str) -> None:
    """Verifies the file. Raises ManifestInvalid, FileNotFoundError."""
    import_arrow()  # a process without a volume does without Arrow
    from csi_driver.catalog.manifest import Manifest

    Manifest.open(path, snapshot_id=snapshot_id)
