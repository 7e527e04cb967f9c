"""The calls of the CSI Controller that report health: what the registry shows. They read neither stores nor nodes; what
the readers of a volume meet is reported by its nodes (``node_health.py``)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import grpc

from csi_driver.csi.health_messages import volume_health
from csi_driver.model.conditions import SNAPSHOT_MISSING
from csi_driver.model.errors import VolumeNotFound
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.volumes.pages import RecordPage
from csi_driver.volumes.records import VolumeRecord
from csi_driver.volumes.volume_ids import check_id

_Rpc = csi_pb2.ControllerServiceCapability.RPC
HEALTH_CAPABILITIES = (_Rpc.GET_VOLUME_HEALTH, _Rpc.LIST_VOLUME_HEALTH)


class RecordedVolumes(Protocol):
    """What the registry has; ``volumes/dynamic_volumes.py`` implements it. All methods block, and all may raise
    RegistryUnavailable."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """None if the registry has no record of the volume."""

    def list(self, *, most: int, token: str) -> RecordPage[VolumeRecord]:
        """At most so many volumes (0: any number). Raises InvalidParameter, PageTokenInvalid."""

    def manifests(self) -> Collection[str]:
        """The ids of all snapshots whose manifest is stored."""


class HealthCalls(csi_pb2_grpc.ControllerServicer):
    """A part of ``ControllerService``."""

    _recorded: RecordedVolumes

    def ControllerGetVolumeHealth(
        self, request: csi_pb2.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeHealthResponse:
        check_id("volume_id", request.volume_id)
        record = self._recorded.get(request.volume_id)
        if record is None:
            raise VolumeNotFound(f"volume_id: there is no volume {request.volume_id!r} in the registry")
        return csi_pb2.ControllerGetVolumeHealthResponse(volume_health=_health(record, self._recorded.manifests()))

    def ControllerListVolumeHealth(
        self, request: csi_pb2.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        page = self._recorded.list(most=request.max_entries, token=request.starting_token)
        manifests = frozenset(self._recorded.manifests()) if page.entries else frozenset()
        return csi_pb2.ControllerListVolumeHealthResponse(
            entries=[_health(record, manifests) for record in page.entries], next_token=page.next_token
        )


def _health(record: VolumeRecord, manifests: Collection[str]) -> csi_pb2.VolumeHealth:
    """A static volume without its manifest lists the dataset anew at the next mount; a dynamic one shows its snapshot
    for life."""
    is_missing = record.dynamic and record.snapshot_id not in manifests
    return volume_health(record.volume_id, [SNAPSHOT_MISSING] if is_missing else [])
