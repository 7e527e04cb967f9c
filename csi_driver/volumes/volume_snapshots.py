"""Snapshots of volumes, and groups of them. A snapshot is a manifest that names the version of each object, and a
record of it; it outlives the volume that it was made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import get_args

from csi_driver import telemetry
from csi_driver.model.errors import (
    InvalidParameter,
    MissingParameter,
    SnapshotConflict,
    SnapshotNotFound,
    VolumeNotFound,
)
from csi_driver.model.tenant import Tenant
from csi_driver.settings import PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.dataset_lister import ListingRequest, PinMode
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.pages import RecordPage, page_of
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import GroupRecord, SnapshotRecord
from csi_driver.volumes.registry import Registry
from csi_driver.volumes.volume_ids import group_id_of, member_id, snapshot_id_of

logger = logging.getLogger(__name__)

_VERSIONS = "versions"
_FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "snapshot.storage.kubernetes.io/", "hayloft.dev/")
"""Keys that Kubernetes and external-snapshotter add."""


def pin_mode(parameters: Mapping[str, str]) -> PinMode:
    """From the parameters of a VolumeSnapshotClass. Raises InvalidParameter."""
    for name in parameters:
        if name != _VERSIONS and not name.startswith(_FOREIGN_PREFIXES):
            raise InvalidParameter("parameters", name, "the parameter versions", "Others belong to the StorageClass")
    text = parameters.get(_VERSIONS, "").strip() or "auto"
    for mode in get_args(PinMode):
        if text == mode:
            found: PinMode = mode
            return found
    raise InvalidParameter(_VERSIONS, text, ", ".join(get_args(PinMode)))


def _require_members(group: GroupRecord, snapshot_ids: tuple[str, ...]) -> None:
    """Asked of a group that exists only: a caller that lost its ids may repeat the deletion of one that is gone."""
    if not snapshot_ids:
        raise MissingParameter("snapshot_ids")
    if set(snapshot_ids) != set(group.snapshot_ids):
        allowed = f"the snapshots of {group.group_id}: {', '.join(group.snapshot_ids)}"
        raise InvalidParameter("snapshot_ids", ", ".join(snapshot_ids), allowed)


def _now() -> datetime:
    return datetime.now(UTC)


class VolumeSnapshots:
    """All methods block, and may be called from any thread; all raise RegistryUnavailable. Of two calls for one
    snapshot at a time both may do the work, and one record remains."""

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotService,
        policy: PolicySettings,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._registry, self._snapshots, self._policy, self._now = registry, snapshots, policy, now

    def create(self, name: str, volume_id: str, mode: PinMode, secrets: Mapping[str, str]) -> SnapshotRecord:
        """The snapshot of that name, which is made if there is none. May list all versions of the dataset, which may
        take minutes.

        Raises VolumeNotFound, SnapshotConflict, and as ``SnapshotService.pin`` and ``admit``.
        """
        snapshot_id = snapshot_id_of(name)
        existing = self._registry.snapshots.get(snapshot_id)
        if existing is None:
            made = self._made(snapshot_id, name, volume_id, mode, secrets, "")
            return self._snapshots.create_snapshot(made)
        if (existing.source_volume_id, existing.mode) != (volume_id, mode):
            raise SnapshotConflict(
                f"name: a snapshot {name!r} exists, of volume {existing.source_volume_id!r} with versions: "
                f"{existing.mode}; choose another name"
            )
        return existing

    def get(self, snapshot_id: str) -> SnapshotRecord | None:
        """None if there is no such snapshot."""
        return self._registry.snapshots.get(snapshot_id)

    def page(self, *, most: int, token: str, volume_id: str = "") -> RecordPage[SnapshotRecord]:
        """A page of all snapshots, or of those of a volume. Raises as ``page_of``."""
        records = self._registry.snapshots
        return page_of(
            records.names(),
            records.named,
            lambda record: not volume_id or record.source_volume_id == volume_id,
            most=most,
            token=token,
        )

    def delete(self, snapshot_id: str) -> None:
        """Ensures that there is no such snapshot, and no manifest that it alone uses; volumes that were made of it
        stay. Raises InvalidParameter for one that is part of a group."""
        record = self._registry.snapshots.get(snapshot_id)
        if record is not None and record.group_id and self._registry.groups.get(record.group_id) is not None:
            remedy = f"Delete the group {record.group_id} instead (VolumeGroupSnapshot)"
            raise InvalidParameter("snapshot_id", snapshot_id, "a snapshot that is part of no group", remedy)
        self._snapshots.delete_snapshot(snapshot_id)

    # -- groups -------------------------------------------------------------------------------------------------------

    def create_group(
        self, name: str, volume_ids: tuple[str, ...], mode: PinMode, secrets: Mapping[str, str]
    ) -> tuple[GroupRecord, list[SnapshotRecord]]:
        """The group of that name, which is made if there is none. The volumes do not change, so their snapshots are of
        one moment whenever they are made. Raises as ``create``; then no snapshot is left that was made here."""
        group_id, ids = group_id_of(name), tuple(sorted(set(volume_ids)))
        existing = self._registry.groups.get(group_id)
        if existing is None:
            return self._create_group(group_id, name, ids, mode, secrets)
        if (existing.source_volume_ids, existing.mode) != (ids, mode):
            raise SnapshotConflict(
                f"name: a group of snapshots {name!r} exists, of the volumes {', '.join(existing.source_volume_ids)} "
                f"with versions: {existing.mode}; choose another name"
            )
        return existing, self.members(existing)

    def _create_group(
        self, group_id: str, name: str, volume_ids: tuple[str, ...], mode: PinMode, secrets: Mapping[str, str]
    ) -> tuple[GroupRecord, list[SnapshotRecord]]:
        """The record of the group is written last: a process that is killed leaves snapshots of no group, which the
        repeated call finds, or ``delete_group`` removes."""
        members: list[SnapshotRecord] = []
        try:
            for volume_id in volume_ids:
                snapshot_id = member_id(group_id, volume_id)
                found = self._registry.snapshots.get(snapshot_id)
                if found is None or found.mode != mode:
                    if found is not None:
                        self._snapshots.delete_snapshot(snapshot_id)
                    made = self._made(snapshot_id, f"{name}/{volume_id}", volume_id, mode, secrets, group_id)
                    found = self._snapshots.create_snapshot(made)
                members.append(found)
        except BaseException:
            for member in members:
                self._snapshots.delete_snapshot(member.id)
            raise
        record = GroupRecord(
            group_id=group_id,
            name=name,
            source_volume_ids=volume_ids,
            snapshot_ids=tuple(member.id for member in members),
            mode=mode,
            taken=max(member.taken for member in members),
        )
        return self._registry.groups.put(record), members

    def group(self, group_id: str, snapshot_ids: tuple[str, ...]) -> tuple[GroupRecord, list[SnapshotRecord]]:
        """The group with its snapshots, whose ids the caller knows. Raises SnapshotNotFound, InvalidParameter."""
        group = self._registry.groups.get(group_id)
        if group is None:
            raise SnapshotNotFound(f"group_snapshot_id: there is no group of snapshots {group_id!r}")
        _require_members(group, snapshot_ids)
        return group, self.members(group)

    def members(self, group: GroupRecord) -> list[SnapshotRecord]:
        """The snapshots of the group. Raises SnapshotNotFound if one is gone."""
        found = []
        for snapshot_id in group.snapshot_ids:
            record = self._registry.snapshots.get(snapshot_id)
            if record is None:
                raise SnapshotNotFound(f"{group.group_id}: its snapshot {snapshot_id} is gone; delete the group")
            found.append(record)
        return found

    def delete_group(self, group_id: str, snapshot_ids: tuple[str, ...]) -> None:
        """Ensures that there is no such group and none of its snapshots; ``snapshot_ids`` are those that the caller
        knows. Its record goes last, so that a repeated call knows them too. Raises InvalidParameter for other ids."""
        group = self._registry.groups.get(group_id)
        if group is not None:
            _require_members(group, snapshot_ids)
        known = snapshot_ids if group is None else group.snapshot_ids
        for snapshot_id in known:
            record = self._registry.snapshots.get(snapshot_id)
            if record is not None and record.group_id == group_id:
                self._snapshots.delete_snapshot(snapshot_id)
        self._registry.groups.delete(group_id)

    # -- making one ---------------------------------------------------------------------------------------------------

    def _made(
        self, snapshot_id: str, name: str, volume_id: str, mode: PinMode, secrets: Mapping[str, str], group_id: str
    ) -> SnapshotRecord:
        """The record of a new snapshot, and its manifest as a local file."""
        volume = self._registry.get(volume_id)
        if volume is None:
            raise VolumeNotFound(
                f"source_volume_id: there is no volume {volume_id!r} in the registry; a static volume is recorded when "
                "a pod mounts it first"
            )
        tenant = Tenant(volume.namespace)
        parameters = VolumeParameters.parse(volume.parameters, self._policy, tenant)
        if mode != "off":
            admit(parameters, secrets, self._policy, tenant)
        request = ListingRequest(parameters, dict(secrets), tenant)
        facts = self._snapshots.pin(request, volume.snapshot_id, mode)
        if facts.why:
            shown = telemetry.fields(snapshot=snapshot_id, pinned=facts.pinned_count, files=volume.file_count)
            logger.warning("new snapshot: not all objects are pinned by a version: %s", facts.why, extra=shown)
        return SnapshotRecord(
            volume_id=snapshot_id,
            name=name,
            dynamic=True,
            parameters=volume.parameters,
            snapshot_id=facts.snapshot_id,
            total_bytes=volume.total_bytes,
            file_count=volume.file_count,
            created=volume.created,
            namespace=volume.namespace,
            source_volume_id=volume_id,
            mode=mode,
            pinned_count=facts.pinned_count,
            why=facts.why,
            taken=self._now(),
            group_id=group_id,
        )
