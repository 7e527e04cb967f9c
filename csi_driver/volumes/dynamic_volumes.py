"""Creates and deletes dynamic volumes: lists the dataset, writes the record, deletes both record and manifest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from csi_driver import telemetry
from csi_driver.model.tenant import Tenant
from csi_driver.volumes.content_sources import source_of
from csi_driver.volumes.dataset_snapshots import ListedSnapshot, SnapshotService
from csi_driver.volumes.pages import RecordPage, page_of
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import SnapshotRecord, VolumeRecord
from csi_driver.volumes.registry import Registry

logger = logging.getLogger(__name__)


class DynamicVolumes:
    """The ``Volumes`` of ``csi/controller_service.py``. All methods block."""

    def __init__(self, registry: Registry, snapshots: SnapshotService) -> None:
        self._registry = registry
        self._snapshots = snapshots

    def get(self, volume_id: str) -> VolumeRecord | None:
        """Raises RegistryUnavailable."""
        return self._registry.get(volume_id)

    def list(self, *, most: int, token: str) -> RecordPage[VolumeRecord]:
        """Of all volumes that the registry knows, static ones too. Raises as ``page_of``, RegistryUnavailable."""
        records = self._registry.volumes
        return page_of(records.names(), records.named, lambda _: True, most=most, token=token)

    def manifests(self) -> Collection[str]:
        """The ids of all snapshots whose manifest is stored. Raises RegistryUnavailable."""
        return self._registry.manifests()

    def ensure(
        self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant, volume_id: str = ""
    ) -> ListedSnapshot:
        """Lists the dataset for a volume that has no record yet. Writes nothing to the registry: ``create`` does."""
        listed = self._snapshots.take(parameters, secrets, tenant, volume_id)
        for note in listed.notes:
            logger.warning("new volume: %s", note, extra=telemetry.fields(url=str(parameters.url)))
        return listed

    def source(self, kind: str, source_id: str) -> VolumeRecord | SnapshotRecord:
        """Of what a volume is to be made; ``create`` can record one of it from now on, also if it is deleted meanwhile.
        Raises SnapshotNotFound, VolumeNotFound, ManifestInvalid, RegistryUnavailable, CacheDiskFailed."""
        found = source_of(self._registry, kind, source_id)
        self._snapshots.fetch(found.snapshot_id)
        return found

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Writes the record, or returns that of an equal volume. Raises VolumeConflict, RegistryUnavailable."""
        return self._snapshots.create(record)

    def delete(self, volume_id: str) -> None:
        """Ensures that the volume has no record, and no manifest that it alone uses. Raises RegistryUnavailable."""
        self._snapshots.delete(volume_id)
