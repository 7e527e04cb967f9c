"""The registry: the state of volumes that all nodes share. Records are small JSON documents, manifests are files.

Layout, in a directory or under a prefix of an object store::

    volumes/<name made from the volume id>.json
    volumes/snapshot=<name made from the snapshot id>.json
    groups/<name made from the id of a group of snapshots>.json
    manifests/<snapshot id>.arrow

Records change only by conditional puts, so of two concurrent writers one always fails. Records contain no secrets:
``VolumeParameters`` accepts none.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Protocol

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import ManifestInvalid, VolumeConflict
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.settings import RegistrySettings
from csi_driver.volumes.record_files import RecordFiles
from csi_driver.volumes.records import GroupRecord, ManifestReference, SnapshotRecord, VolumeRecord

_VOLUMES = "volumes/"
_SNAPSHOTS = f"{_VOLUMES}snapshot="
_GROUPS = "groups/"
_MANIFESTS = "manifests/"
_ENDING = ".arrow"
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,127}\Z")


class Registry(Protocol):
    """All methods block and may be called from any thread. All raise RegistryUnavailable."""

    def check(self) -> None:
        """Raises InvalidParameter for a store that cannot hold a registry."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """None if there is no record."""

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Writes the record unless one exists. Returns the stored record: an earlier one if that ``serves`` the
        request. Raises VolumeConflict if it does not."""

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        """Replaces ``old`` by ``new``. False: the stored record is no longer ``old``."""

    def delete(self, volume_id: str) -> None:
        """Ensures that there is no record."""

    @property
    def volumes(self) -> RecordFiles[VolumeRecord]:
        """All records of volumes."""

    @property
    def snapshots(self) -> RecordFiles[SnapshotRecord]: ...
    @property
    def groups(self) -> RecordFiles[GroupRecord]: ...

    def references(self) -> set[str]:
        """The ids of all manifests that a record names, of whatever kind and version."""

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        """Ensures that the manifest is stored. The caller owns the file and must not write to it afterwards: the
        registry may have a hard link to it."""

    def has_manifest(self, snapshot_id: str) -> bool: ...

    def manifests(self) -> list[str]:
        """The ids of all stored manifests."""

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        """Makes the manifest a local file, which must not exist yet: a hard link where the registry is a directory of
        the same file system, so that it is stored and mapped once. Raises ManifestInvalid if it is not stored."""

    def delete_manifest(self, snapshot_id: str) -> None:
        """Ensures that the manifest is not stored. Local files of nodes that have fetched it stay."""


def open_registry(settings: RegistrySettings) -> Registry:
    """The registry in a directory, which is created, or below a URL, with the ambient identity of this process.

    Sends no request to an object store yet. Raises UnsupportedUrl, InvalidParameter, CredentialsRejected,
    RegistryUnavailable.
    """
    blobs = open_blobs(settings.location, StoreOptions(endpoint=settings.endpoint), Credentials())
    return BlobRegistry(blobs, settings.location, _directory_of(settings.location))


def _directory_of(location: str) -> Path | None:
    if "://" not in location:
        return Path(location)
    url = DatasetUrl.parse(location)
    return Path("/" + url.prefix) if url.scheme == "file" else None


class BlobRegistry:
    """A registry in a BlobStore."""

    def __init__(self, blobs: BlobStore, location: str, directory: Path | None = None) -> None:
        """``location`` names the registry in messages. ``directory``: where the blobs are files, or None."""
        self._blobs = blobs
        self._location = location
        self._directory = directory
        self.volumes = RecordFiles(blobs, location, _VOLUMES, VolumeRecord)
        self.snapshots = RecordFiles(blobs, location, _SNAPSHOTS, SnapshotRecord)
        self._references = RecordFiles(blobs, location, _VOLUMES, ManifestReference)
        self.groups = RecordFiles(blobs, location, _GROUPS, GroupRecord)

    def check(self) -> None:
        self._blobs.check()

    def get(self, volume_id: str) -> VolumeRecord | None:
        return self.volumes.get(volume_id)

    def create(self, record: VolumeRecord) -> VolumeRecord:
        stored = self.volumes.put(record)
        if stored is not record and not stored.serves(record):
            raise VolumeConflict(
                f"volume {record.volume_id!r} (name {record.name!r}) exists with other parameters, another size or "
                "another source; use another name, or delete the volume first"
            )
        return stored

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        return self.volumes.replace(old, new)

    def delete(self, volume_id: str) -> None:
        self.volumes.delete(volume_id)

    def references(self) -> set[str]:
        return {record.snapshot_id for record in self._references.all()}

    def manifests(self) -> list[str]:
        names = (key.removeprefix(_MANIFESTS) for key in self._blobs.list(_MANIFESTS))
        return [name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)]

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        if not self.has_manifest(snapshot_id):
            self._blobs.put_file(_manifest_key(snapshot_id), path)

    def has_manifest(self, snapshot_id: str) -> bool:
        key = _manifest_key(snapshot_id)
        return key in self._blobs.list(key)

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        key = _manifest_key(snapshot_id)
        if self._directory is not None:
            with contextlib.suppress(OSError):  # another file system, or one without hard links: fallback path below
                os.link(self._directory / key, target)
                return
        if not self._blobs.fetch_to_file(key, target):
            raise ManifestInvalid(f"registry {self._location}: {key} is missing")

    def delete_manifest(self, snapshot_id: str) -> None:
        self._blobs.delete(_manifest_key(snapshot_id))


def _manifest_key(snapshot_id: str) -> str:
    """Raises ManifestInvalid for an id that is unsafe in a path: a foreign record may contain any text."""
    if not _SNAPSHOT_ID.match(snapshot_id):
        raise ManifestInvalid(f"{snapshot_id!r} is not the id of a snapshot")
    return f"{_MANIFESTS}{snapshot_id}{_ENDING}"
