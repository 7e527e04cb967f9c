"""Creates and deletes dynamic volumes: lists the dataset, writes the record, deletes both record and manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from csi_driver import telemetry
from csi_driver.model.tenant import Tenant
from csi_driver.volumes.dataset_snapshots import ListedSnapshot, SnapshotService
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import Registry, VolumeRecord

logger = logging.getLogger(__name__)


class DynamicVolumes:
    """The ``Volumes`` of ``csi/controller_service.py``. All methods block."""

    def __init__(self, registry: Registry, snapshots: SnapshotService) -> None:
        self._registry = registry
        self._snapshots = snapshots

    def get(self, volume_id: str) -> VolumeRecord | None:
        """Raises RegistryUnavailable."""
        return self._registry.get(volume_id)

    def ensure(self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant) -> ListedSnapshot:
        """Lists the dataset for a volume that has no record yet. Writes nothing to the registry: ``create`` does."""
        listed = self._snapshots.take(parameters, secrets, tenant)
        for note in listed.notes:
            logger.warning("new volume: %s", note, extra=telemetry.fields(url=str(parameters.url)))
        return listed

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Writes the record, or returns that of an equal volume. Raises VolumeConflict, RegistryUnavailable."""
        return self._snapshots.create(record)

    def delete(self, volume_id: str) -> None:
        """Ensures that the volume has no record, and no manifest that it alone uses. Raises RegistryUnavailable."""
        self._snapshots.delete(volume_id)
