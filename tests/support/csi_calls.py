"""A CSI client for tests, requests as kubelet and external-provisioner send them, and volumes in memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.csi.controller_service import ControllerService
from csi_driver.csi.group_controller_service import GroupControllerService
from csi_driver.csi.health_check_service import HealthCheckService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.csi.parameter_templates import Annotations
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc, health_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer
from csi_driver.rpc.statuses import ERROR_METADATA
from csi_driver.settings import CacheCapacity, PolicySettings
from csi_driver.volumes.data_plane import DataPlane
from csi_driver.volumes.dataset_snapshots import ListedSnapshot, SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import VolumeRecord
from csi_driver.volumes.registry import BlobRegistry
from csi_driver.volumes.volume_changes import VolumeChanges
from csi_driver.volumes.volume_snapshots import VolumeSnapshots
from csi_driver.wiring.controller_process import ControllerServices
from hayloft_lab.memory_store import MemoryStore
from tests.support.listers import LocalLister
from tests.support.memory_blobs import MemoryBlobs

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


class VolumesInMemory(DynamicVolumes):
    """Volumes, snapshots and groups in memory, of a store in memory. Counts listings, and fails on demand."""

    def __init__(self) -> None:
        self.listings: list[tuple[VolumeParameters, dict[str, str]]] = []
        self.failure: Exception | None = None
        self.blobs = MemoryBlobs()
        self.registry = BlobRegistry(self.blobs, "memory://registry")
        work = Path(tempfile.mkdtemp(prefix="hayloft-manifests-"))
        weakref.finalize(self, shutil.rmtree, work, ignore_errors=True)
        self.snapshot_service = SnapshotService(self.registry, LocalLister(_ten_objects), work)
        super().__init__(self.registry, self.snapshot_service)
        self.lost_manifests = False

    @property
    def records(self) -> dict[str, VolumeRecord]:
        """All volumes, by id."""
        return {record.volume_id: record for record in self.registry.volumes.all()}

    def manifests(self) -> Collection[str]:
        return [] if self.lost_manifests else super().manifests()

    def ensure(
        self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant, volume_id: str = ""
    ) -> ListedSnapshot:
        if self.failure is not None:
            raise self.failure
        self.listings.append((parameters, dict(secrets)))
        return super().ensure(parameters, secrets, tenant, volume_id)

    def services(
        self, policy: PolicySettings, *capacities: CacheCapacity, annotations: Annotations | None = None
    ) -> ControllerServices:
        """The controller's services for them."""
        snapshots = VolumeSnapshots(self.registry, self.snapshot_service, policy)
        changes = VolumeChanges(self.registry, self.snapshot_service, policy)
        return ControllerServices(
            ControllerService(self, snapshots, changes, policy, capacities, annotations),
            GroupControllerService(snapshots),
        )


def _ten_objects(parameters: VolumeParameters, secrets: Mapping[str, str]) -> MemoryStore:
    """A store with a dataset, whatever its URL is."""
    return MemoryStore({f"{parameters.url.prefix}{number}": bytes(DATASET_BYTES // 10) for number in range(10)})


class CsiClient:
    """All services on one connection."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=(("grpc.use_local_subchannel_pool", 1),))
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.controller = csi_pb2_grpc.ControllerStub(self._channel)
        self.groups = csi_pb2_grpc.GroupControllerStub(self._channel)
        self.node = csi_pb2_grpc.NodeStub(self._channel)
        self.checks = health_pb2_grpc.HealthStub(self._channel)

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

    def health(self, volume_id: str, path: Path | str) -> dict[str, csi_pb2.VolumeHealth.VolumeHealthEntry]:
        """By reason. Fails the test if a reason is there twice."""
        request = csi_pb2.NodeGetVolumeHealthRequest(volume_id=volume_id, volume_publish_path=str(path))
        answer = self.node.NodeGetVolumeHealth(request, timeout=CALL_S).volume_health
        assert answer.volume_id == volume_id
        found = {entry.reason: entry for entry in answer.health_statuses}
        assert len(found) == len(answer.health_statuses)
        return found

    def storage(self) -> dict[str, int]:
        """The statuses of the node's storage, by reason."""
        answer = self.node.NodeGetStorageHealth(csi_pb2.NodeGetStorageHealthRequest(), timeout=CALL_S)
        return {entry.reason: entry.status for entry in answer.backend_health}

    def expand(self, volume_id: str, path: Path | str, **more: Any) -> int:
        request = csi_pb2.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=str(path), **more)
        return self.node.NodeExpandVolume(request, timeout=CALL_S).capacity_bytes


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
    annotations: Annotations | None = None,
) -> Iterator[CsiClient]:
    """A driver with all services on a socket, and a client of it."""
    inline = (kubelet_directory or socket.parent) / "inline"
    node = NodeService(NodeConfiguration("node-1", inline, kubelet_directory), data_plane)
    controller = (volumes or VolumesInMemory()).services(policy or PolicySettings(), annotations=annotations)
    identity = IdentityService("0.0-test", ready=data_plane.report)
    health = HealthCheckService(identity.require_ready)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        controller.add_to(server)
        csi_pb2_grpc.add_NodeServicer_to_server(node, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)

    server = SocketServer(socket, (register,))
    server.start()
    client = CsiClient(socket)
    try:
        yield client
    finally:
        client.close()
        server.stop(1.0)
