"""Selects the snapshot that a volume shows, and provides its manifest as a local file.

A dynamic volume always shows the snapshot that CreateVolume recorded. A static volume is listed by the first node that
mounts it; others use its record until that is older than ``snapshotMaxAge``, when the next mount lists again. An inline
volume exists on one node for one pod, and no call reports its end: it is listed for its mount and never recorded. An
existing mount has a manifest of its own, and continues to show its snapshot even if the record has changed.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from csi_driver.model.errors import (
    HayloftError,
    ManifestInvalid,
    RegistryUnavailable,
    SnapshotConflict,
    VolumeConflict,
    VolumeNotFound,
)
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.volumes.dataset_lister import (
    DatasetLister,
    ListingRequest,
    PinFacts,
    PinMode,
    PinRequest,
    SelectionRequest,
)
from csi_driver.volumes.local_manifests import LocalManifests
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import SnapshotRecord, VolumeRecord
from csi_driver.volumes.registry import Registry
from csi_driver.volumes.single_flight import SingleFlight
from csi_driver.volumes.volume_ids import check_id, is_dynamic_volume_id, is_inline_volume_id

R = TypeVar("R", VolumeRecord, SnapshotRecord)

_ATTEMPTS = 5
"""Retries of ``ensure`` when the record changes concurrently. Each change means that another node succeeded."""


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """A snapshot that was just listed; its manifest is a local file only."""

    snapshot_id: str
    total_bytes: int
    file_count: int
    created: datetime
    manifest_path: Path
    notes: tuple[str, ...] = ()
    """See ``manifest_notes.py``."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The snapshot of a volume. The file at ``manifest_path`` is complete, checked and never changes. That of an inline
    volume is for one mount: ``SnapshotService.release`` removes it."""

    record: VolumeRecord
    manifest_path: Path

    @property
    def snapshot_id(self) -> str:
        return self.record.snapshot_id


def _now() -> datetime:
    return datetime.now(UTC)


class SnapshotService:
    """Blocks on the network and the disk; may be used from any thread. After an error no file and no record is left."""

    def __init__(
        self,
        registry: Registry,
        lister: DatasetLister,
        work_directory: Path,
        now: Callable[[], datetime] = _now,
    ) -> None:
        """``work_directory`` is created; it caches the manifests that were used recently."""
        self._registry = registry
        self._lister = lister
        self._now = now
        self._local = LocalManifests(work_directory)
        self._single_flight: SingleFlight[Snapshot] = SingleFlight()

    def ensure(
        self,
        volume_id: str,
        parameters: VolumeParameters,
        secrets: Mapping[str, str],
        tenant: Tenant = ADMINISTRATOR,
    ) -> Snapshot:
        """The snapshot for a new mount of the volume, to be released. May list the dataset, which may take minutes.

        Raises VolumeNotFound (a dynamic volume without a record), VolumeConflict (one made with other parameters),
        OperationPending, RegistryUnavailable, ManifestInvalid, CacheDiskFailed, and what ``list_into`` raises.
        """
        check_id("volume id", volume_id)
        request = ListingRequest(parameters, dict(secrets), tenant)
        return self._single_flight.run(volume_id, request, lambda: self._ensure(volume_id, request))

    def take(
        self,
        parameters: VolumeParameters,
        secrets: Mapping[str, str],
        tenant: Tenant = ADMINISTRATOR,
        purpose: str = "",
    ) -> ListedSnapshot:
        """Lists the dataset now, into a local manifest only. A long listing for the same ``purpose`` that was killed
        is continued; without one none is. Raises CacheDiskFailed and as ``list_into``."""
        return self._take(ListingRequest(parameters, dict(secrets), tenant), purpose)

    def release(self, snapshot: Snapshot) -> None:
        """To be called when the mount has a link to the manifest, or has failed. Removes that of an inline volume,
        which is not used again; others stay for the next mount."""
        if is_inline_volume_id(snapshot.record.volume_id):
            with contextlib.suppress(OSError):  # it is removed later
                snapshot.manifest_path.unlink(missing_ok=True)

    def select(self, request: SelectionRequest) -> array[int]:
        """Rows of the files of a manifest that match globs. Raises CacheDiskFailed and as ``select_into``."""
        selected = array("Q")
        with self._local.building() as path:
            self._lister.select_into(request, path)
            selected.frombytes(path.read_bytes())
        return selected

    def pin(self, request: ListingRequest, snapshot_id: str, mode: PinMode) -> PinFacts:
        """Makes the manifest of a snapshot, a local file only, from that of a volume. Raises ObjectChanged,
        VersionsNotPinned, ManifestInvalid, RegistryUnavailable, CacheDiskFailed, and as ``pin_into``."""
        source = self._local.ensure(snapshot_id, self._registry)
        with self._local.building() as path:
            facts = self._lister.pin_into(PinRequest(request, source, mode), path)
            self._local.finish(path, facts.snapshot_id)
        return facts

    def fetch(self, snapshot_id: str) -> None:
        """Makes the manifest a local file, for a volume that is made of what may be deleted meanwhile. Raises
        ManifestInvalid, RegistryUnavailable, CacheDiskFailed."""
        self._local.ensure(snapshot_id, self._registry)

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Stores the record of a volume, and its manifest, which is a local file. Returns the stored record: of two
        equal ones the first. Raises VolumeConflict, RegistryUnavailable, and then leaves nothing of its own."""
        return self._create(record, self._registry.create)

    def create_snapshot(self, record: SnapshotRecord) -> SnapshotRecord:
        """As ``create``, of a snapshot. Raises SnapshotConflict instead of VolumeConflict."""
        return self._create(record, self._put_snapshot)

    def _put_snapshot(self, record: SnapshotRecord) -> SnapshotRecord:
        stored = self._registry.snapshots.put(record)
        if not stored.serves(record):
            raise SnapshotConflict(f"name: a snapshot {record.name!r} exists, made in another way; choose another name")
        return stored

    def _create(self, record: R, put: Callable[[R], R]) -> R:
        self._store_manifest(record.snapshot_id)  # first: a record must never name a manifest that is not stored
        try:
            stored = put(record)
        except (VolumeConflict, SnapshotConflict):
            self._discard_manifest(record.snapshot_id)
            raise
        if stored.snapshot_id != record.snapshot_id:
            self._discard_manifest(record.snapshot_id)
        # Race: another volume that shared the manifest may have been deleted, and the manifest with it, before the
        # record existed. Now that it exists no deletion removes the manifest, so it is stored again.
        self._store_manifest(stored.snapshot_id)
        return stored

    def delete(self, volume_id: str) -> None:
        """Ensures that the volume has no record, and removes its manifest, if possible, unless another volume uses it.

        Raises RegistryUnavailable.
        """
        record = self._registry.get(volume_id)
        self._registry.delete(volume_id)
        self._discard_of(record)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """As ``delete``, of a snapshot, by its own id."""
        record = self._registry.snapshots.get(snapshot_id)
        self._registry.snapshots.delete(snapshot_id)
        self._discard_of(record)

    def _take(self, request: ListingRequest, purpose: str, *, own: bool = False) -> ListedSnapshot:
        created = self._now()
        with self._local.building() as path, self._local.journal(_identity(request, purpose)) as journal_path:
            request = replace(request, journal_path=journal_path)
            facts = self._lister.list_into(request, path)
            manifest_path = self._local.finish_own(path) if own else self._local.finish(path, facts.snapshot_id)
        return ListedSnapshot(
            facts.snapshot_id, facts.total_bytes, facts.file_count, created, manifest_path, facts.notes
        )

    def _ensure(self, volume_id: str, request: ListingRequest) -> Snapshot:
        parameters = request.parameters
        if is_inline_volume_id(volume_id):
            listed = self._take(request, volume_id, own=True)
            return Snapshot(_record_of(volume_id, parameters, listed), listed.manifest_path)
        for _ in range(_ATTEMPTS):
            record = self._registry.get(volume_id)
            if record is None and is_dynamic_volume_id(volume_id):
                raise VolumeNotFound(
                    f"{volume_id}: has no record in the registry; was it deleted, or is this another registry than "
                    "the controller's?"
                )
            if record is not None and self._is_current(record, parameters):
                try:
                    return Snapshot(record, self._local.ensure(record.snapshot_id, self._registry))
                except ManifestInvalid:
                    if record.dynamic:
                        raise
            snapshot = self._list_and_record(volume_id, request, record)
            if snapshot is not None:
                return snapshot
        raise RegistryUnavailable(f"the record of volume {volume_id!r} keeps changing; retry")

    def _is_current(self, record: VolumeRecord, parameters: VolumeParameters) -> bool:
        """Whether a new mount shows the snapshot of the record. Raises VolumeConflict."""
        same = record.parsed().shows_same_as(parameters)
        if record.dynamic:
            if not same:
                raise VolumeConflict(
                    f"{record.volume_id}: was created for another dataset or selection than its volume context names; "
                    "make a new volume instead of editing a PersistentVolume"
                )
            return True
        age_s = (self._now() - record.created).total_seconds()
        return same and age_s <= record.in_effect(parameters).snapshot_max_age_s

    def _list_and_record(self, volume_id: str, request: ListingRequest, old: VolumeRecord | None) -> Snapshot | None:
        """None: another node changed the record while this one listed; the other record takes precedence."""
        listed = self._take(request, volume_id)
        record = _record_of(volume_id, request.parameters, listed)
        if old is not None:  # what was changed of the volume stays
            record = record.model_copy(update={"modified": old.modified, "expanded_bytes": old.expanded_bytes})
        if old is None:
            try:
                stored = self.create(record) == record
            except VolumeConflict:
                stored = False
        else:
            stored = self.replace(old, record)
        return Snapshot(record, listed.manifest_path) if stored else None

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        """Replaces the record of a volume, and its manifest, which is a local file. False: it is no longer ``old``."""
        self._store_manifest(new.snapshot_id)
        replaced = self._registry.replace(old, new)
        unused = old if replaced else new
        if old.snapshot_id != new.snapshot_id:
            self._discard_manifest(unused.snapshot_id)
        if replaced:
            self._store_manifest(new.snapshot_id)  # again, as in ``create``
        return replaced

    def _store_manifest(self, snapshot_id: str) -> None:
        if not self._registry.has_manifest(snapshot_id):
            self._registry.put_manifest(snapshot_id, self._local.ensure(snapshot_id, self._registry))

    def _discard_manifest(self, snapshot_id: str) -> None:
        """Removes the manifest unless a record names it. It stays when a record cannot be read, which may name it."""
        with contextlib.suppress(HayloftError):
            if self._is_referenced(snapshot_id):
                return
            path = self._local.ensure(snapshot_id, self._registry)
            self._registry.delete_manifest(snapshot_id)
            # Race: a record that names it may have been written between the check and the deletion.
            if self._is_referenced(snapshot_id):
                self._registry.put_manifest(snapshot_id, path)

    def _discard_of(self, record: VolumeRecord | SnapshotRecord | None) -> None:
        """Removes the manifest of a deleted record. Without one the deletion is repeated: a process that was killed in
        the first one has perhaps left the manifest, so all that no record names are removed."""
        if record is not None:
            self._discard_manifest(record.snapshot_id)
            return
        with contextlib.suppress(HayloftError):
            for left in set(self._registry.manifests()) - self._registry.references():
                self._discard_manifest(left)

    def _is_referenced(self, snapshot_id: str) -> bool:
        return snapshot_id in self._registry.references()


def _identity(request: ListingRequest, purpose: str) -> str:
    """Of a listing that another one may continue: for the same volume, of the same dataset, with the same rights, so
    that no volume shows what was listed for another one, or before it was made. Empty: none may. Holds secrets."""
    if not purpose:
        return ""
    tenant = (request.tenant.namespace, request.tenant.inline)
    return json.dumps([purpose, request.parameters.to_context(), tenant, sorted(request.secrets.items())])


def _record_of(volume_id: str, parameters: VolumeParameters, listed: ListedSnapshot) -> VolumeRecord:
    return VolumeRecord(
        volume_id=volume_id,
        name=volume_id,
        dynamic=False,
        parameters=parameters.to_context(),
        snapshot_id=listed.snapshot_id,
        total_bytes=listed.total_bytes,
        file_count=listed.file_count,
        created=listed.created,
    )
