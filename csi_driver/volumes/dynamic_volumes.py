"""The life of dynamic volumes, as the controller needs it: list, record, delete, with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import Registry, VolumeRecord
from csi_driver.volumes.snapshots import Listed, SnapshotService


class DynamicVolumes:
    """Both the records and the snapshots of ``csi/controller_service.py``. All methods block."""

    def __init__(self, registry: Registry, snapshots: SnapshotService) -> None:
        self._registry = registry
        self._snapshots = snapshots

    def get(self, volume_id: str) -> VolumeRecord | None:
        """Raises RegistryUnavailable."""
        return self._registry.get(volume_id)

    def ensure(self, volume_id: str, parameters: VolumeParameters, secrets: Mapping[str, str]) -> Listed:
        """Lists the dataset for a volume that has no record yet. Nothing is in the registry before ``create``."""
        return self._snapshots.take(parameters, secrets)

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Records the volume, or returns the record of an equal one. Raises VolumeConflict, RegistryUnavailable."""
        return self._snapshots.create(record)

    def delete(self, volume_id: str) -> None:
        """Ensures that neither the volume nor a manifest of its own is left. Raises RegistryUnavailable."""
        self._snapshots.forget(volume_id)
