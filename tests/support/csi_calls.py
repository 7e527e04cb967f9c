"""A CSI client for tests, requests as kubelet and external-provisioner send them, and volumes in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.csi.controller_service import ControllerService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.model.errors import VolumeConflict
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer
from csi_driver.rpc.statuses import ERROR_METADATA
from csi_driver.settings import PolicySettings
from csi_driver.volumes.data_plane import DataPlane
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import VolumeRecord

Mode = csi_pb2.VolumeCapability.AccessMode
CALL_S = 30.0
URL = "s3://bucket/train/"
DATASET_BYTES = 1_000_000


def mount_capability(mode: int = Mode.SINGLE_NODE_WRITER, *flags: str, fs_type: str = "") -> csi_pb2.VolumeCapability:
    mount = csi_pb2.VolumeCapability.MountVolume(mount_flags=flags, fs_type=fs_type)
    return csi_pb2.VolumeCapability(mount=mount, access_mode=Mode(mode=mode))  # type: ignore[arg-type]


def block_capability() -> csi_pb2.VolumeCapability:
    block = csi_pb2.VolumeCapability.BlockVolume()
    return csi_pb2.VolumeCapability(block=block, access_mode=Mode(mode=Mode.SINGLE_NODE_READER_ONLY))


def count_parses(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """The texts that ``VolumeParameters.parse`` gets from now on, in all rooms of this process."""
    parsed: list[Mapping[str, str]] = []
    parse = VolumeParameters.parse

    def counting(
        mapping: Mapping[str, str], policy: PolicySettings | None = None, tenant: Tenant = ADMINISTRATOR
    ) -> VolumeParameters:
        parsed.append(mapping)
        return parse(mapping, policy, tenant)

    monkeypatch.setattr(VolumeParameters, "parse", counting)
    return parsed


@dataclass(frozen=True)
class Facts:
    snapshot_id: str
    total_bytes: int
    file_count: int
    created: datetime


class VolumesInMemory:
    """The in-memory implementation of ``Volumes`` (``csi/controller_service.py``)."""

    def __init__(self) -> None:
        self.records: dict[str, VolumeRecord] = {}
        self.listings: list[tuple[VolumeParameters, dict[str, str]]] = []
        self.failure: Exception | None = None

    def get(self, volume_id: str) -> VolumeRecord | None:
        return self.records.get(volume_id)

    def ensure(self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant) -> Facts:
        if self.failure is not None:
            raise self.failure
        self.listings.append((parameters, dict(secrets)))
        return Facts("snapshot-1", DATASET_BYTES, 7, datetime(2026, 1, 1, tzinfo=UTC))

    def create(self, record: VolumeRecord) -> VolumeRecord:
        stored = self.records.setdefault(record.volume_id, record)
        if not stored.serves(record):
            raise VolumeConflict(f"{record.name}: exists")
        return stored

    def delete(self, volume_id: str) -> None:
        self.records.pop(volume_id, None)


class CsiClient:
    """The three services on one connection."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=(("grpc.use_local_subchannel_pool", 1),))
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.controller = csi_pb2_grpc.ControllerStub(self._channel)
        self.node = csi_pb2_grpc.NodeStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def create(self, name: str, **more: Any) -> csi_pb2.Volume:
        request = create_request(name, **more)
        return self.controller.CreateVolume(request, timeout=CALL_S).volume

    def stage(self, volume: csi_pb2.Volume, staging: Path, **more: Any) -> None:
        self.node.NodeStageVolume(stage_request(volume, staging, **more), timeout=CALL_S)

    def publish(self, volume: csi_pb2.Volume, staging: Path | None, target: Path, **more: Any) -> None:
        self.node.NodePublishVolume(publish_request(volume, staging, target, **more), timeout=CALL_S)

    def unpublish(self, volume_id: str, target: Path) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.node.NodeUnpublishVolume(request, timeout=CALL_S)

    def unstage(self, volume_id: str, staging: Path) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(staging))
        self.node.NodeUnstageVolume(request, timeout=CALL_S)

    def stats(self, volume_id: str, path: Path | str) -> csi_pb2.NodeGetVolumeStatsResponse:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        return self.node.NodeGetVolumeStats(request, timeout=CALL_S)


def create_request(name: str, **more: Any) -> csi_pb2.CreateVolumeRequest:
    fields = {"name": name, "volume_capabilities": [mount_capability()], "parameters": {"url": URL}, **more}
    return csi_pb2.CreateVolumeRequest(**fields)


def stage_request(volume: csi_pb2.Volume, staging: Path, **more: Any) -> csi_pb2.NodeStageVolumeRequest:
    fields = {
        "volume_id": volume.volume_id,
        "staging_target_path": str(staging),
        "volume_capability": mount_capability(),
        "volume_context": dict(volume.volume_context),
        **more,
    }
    return csi_pb2.NodeStageVolumeRequest(**fields)


def publish_request(
    volume: csi_pb2.Volume, staging: Path | None, target: Path, **more: Any
) -> csi_pb2.NodePublishVolumeRequest:
    fields = {
        "volume_id": volume.volume_id,
        "staging_target_path": "" if staging is None else str(staging),
        "target_path": str(target),
        "volume_capability": mount_capability(),
        "volume_context": dict(volume.volume_context),
        "readonly": True,  # the pod's volume has readOnly: true
        **more,
    }
    return csi_pb2.NodePublishVolumeRequest(**fields)


@dataclass(frozen=True)
class Refusal:
    code: grpc.StatusCode
    message: str
    class_name: str | None


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[list[Refusal]]:
    """The body must fail with this status. Yields a list that contains the refusal afterwards."""
    found: list[Refusal] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield found
    error: Any = caught.value
    names = [value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA]
    found.append(Refusal(error.code(), error.details(), names[0] if names else None))
    assert error.code() is code, error.details()


@contextmanager
def serving(
    socket: Path,
    data_plane: DataPlane,
    volumes: VolumesInMemory | None = None,
    kubelet_directory: Path | None = None,
    policy: PolicySettings | None = None,
) -> Iterator[CsiClient]:
    """A driver with all services on a socket, and a client of it."""
    inline = (kubelet_directory or socket.parent) / "inline"
    node = NodeService(NodeConfiguration("node-1", inline, kubelet_directory), data_plane)
    controller = ControllerService(volumes or VolumesInMemory(), policy or PolicySettings())
    identity = IdentityService("0.0-test", ready=data_plane.report)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_ControllerServicer_to_server(controller, server)
        csi_pb2_grpc.add_NodeServicer_to_server(node, server)

    server = SocketServer(socket, (register,))
    server.start()
    client = CsiClient(socket)
    try:
        yield client
    finally:
        client.close()
        server.stop(1.0)
