"""Manifests on this machine, one file per snapshot, which readers map. A file gets its final name when it is complete
and checked, and is never written again."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver.catalog.manifest import Manifest
from csi_driver.model.errors import CacheDiskFailed, ManifestInvalid
from csi_driver.volumes.registry import Registry

_UNUSED_S = 24 * 3600
"""Time since its last use after which a file is removed. A mount, which needs it for longer, has a link of its own. An
unfinished file of that age was left by a process that was killed: no listing takes a day."""


class LocalManifests:
    """A directory of manifests. Several threads and processes may share it: files appear by atomic renames only."""

    def __init__(self, directory: Path) -> None:
        self._finished = directory / "manifests"
        self._unfinished = directory / "unfinished"
        with _disk_errors(directory):
            for path in (self._finished, self._unfinished):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_unused()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A path for an unfinished file, which is removed afterwards unless ``finish`` renamed it."""
        path = self._unfinished / f"{uuid.uuid4().hex}.arrow"
        try:
            with _disk_errors(path):
                yield path
        finally:
            path.unlink(missing_ok=True)

    def finish(self, unfinished: Path, snapshot_id: str) -> Path:
        """Gives a file made in ``building`` its final name. Two files for one snapshot have the same content."""
        target = self._path(snapshot_id)
        with _disk_errors(target):
            # In this order: after a crash the name must not exist with content that was not written.
            _sync(unfinished)
            os.replace(unfinished, target)
            _sync(self._finished)
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
            Manifest.open(path, snapshot_id=snapshot_id)
            return self.finish(path, snapshot_id)

    def _is_valid(self, path: Path, snapshot_id: str) -> bool:
        with _disk_errors(path):
            try:
                os.utime(path)  # before it is opened: from now on ``_remove_unused`` leaves it alone
                Manifest.open(path, snapshot_id=snapshot_id)
            except (FileNotFoundError, ManifestInvalid):
                return False
        return True

    def _path(self, snapshot_id: str) -> Path:
        if not snapshot_id or "/" in snapshot_id or snapshot_id.startswith("."):
            raise ManifestInvalid(f"{snapshot_id!r} is not the id of a snapshot")
        return self._finished / f"{snapshot_id}.arrow"

    def _remove_unused(self) -> None:
        """By the ctime, since a hard link to a manifest of the registry has an old mtime."""
        for path in (*self._finished.iterdir(), *self._unfinished.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_ctime > _UNUSED_S:
                    path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise CacheDiskFailed(
            f"{where}: {error.strerror or error}; manifests are stored there: is the disk full?"
        ) from error
