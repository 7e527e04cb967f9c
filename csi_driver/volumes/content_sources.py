"""A volume that is made of another one, or of a snapshot: it shows the same objects, and the same versions of them."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.model.errors import InvalidParameter, SnapshotNotFound, VolumeNotFound
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import SnapshotRecord, VolumeRecord
from csi_driver.volumes.registry import Registry


def source_of(registry: Registry, kind: str, source_id: str) -> VolumeRecord | SnapshotRecord:
    """``kind`` is ``snapshot`` or ``volume``. Raises SnapshotNotFound, VolumeNotFound, RegistryUnavailable."""
    if kind == "snapshot":
        snapshot = registry.snapshots.get(source_id)
        if snapshot is None:
            raise SnapshotNotFound(f"volume_content_source.snapshot.snapshot_id: there is no snapshot {source_id!r}")
        return snapshot
    volume = registry.get(source_id)
    if volume is None:
        raise VolumeNotFound(f"volume_content_source.volume.volume_id: there is no volume {source_id!r}")
    return volume


def inherited(given: Mapping[str, str], source: VolumeRecord | SnapshotRecord) -> dict[str, str]:
    """The parameters of the new volume: those of its source, and over them those of its StorageClass."""
    return {**source.parameters, **{name: text for name, text in given.items() if text.strip()}}


def require_same_dataset(parameters: VolumeParameters, source: VolumeRecord | SnapshotRecord) -> None:
    """Raises InvalidParameter, which names what the StorageClass says in another way than the source."""
    recorded = source.parsed()
    if parameters.shows_same_as(recorded):
        return
    ours, theirs = parameters.to_context(), recorded.to_context()
    for name in ("url", "include", "exclude", "endpoint", "region", "manifest", "inventory"):
        if ours.get(name) != theirs.get(name):
            remedy = (
                "A volume made of a snapshot or of another volume shows the dataset of that; use a StorageClass with "
                "the same parameters, or with none"
            )
            raise InvalidParameter(
                name, ours.get(name, ""), f"{theirs.get(name, 'nothing')!r}, as of the source", remedy
            )
