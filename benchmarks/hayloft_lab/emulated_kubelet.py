"""Calls a CSI driver over its socket as kubelet and the provisioner do: for benchmarks and tests.

The paths are those of a real node: a volume is staged below ``plugins/kubernetes.io/csi`` and published below
``pods/<uid>/volumes``. As on a node, the caller makes the staging directory and the parent of the target path, and the
driver makes the target.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from csi_driver.model.errors import DaemonUnavailable
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc

CALL_TIMEOUT_S = 120.0
"""kubelet's own timeout of a call."""

_USAGE_BYTES = csi_pb2.VolumeUsage.BYTES
_USAGE_INODES = csi_pb2.VolumeUsage.INODES


class CallRefused(Exception):
    """The driver answered a call with an error. Not a HayloftError: it is raised on the client's side."""

    def __init__(self, call: str, code: str, details: str) -> None:
        super().__init__(f"{call}: {code}: {details}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as CreateVolume returned it, and its paths on this node."""

    volume_id: str
    context: Mapping[str, str]
    staging_path: Path
    target_path: Path
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """The answer of NodeGetVolumeStats."""

    total_bytes: int
    files: int


class EmulatedKubelet:
    """A connection to one driver. Every call blocks and raises CallRefused."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        """``directory`` stands for ``/var/lib/kubelet``."""
        self._directory = directory
        self._channel = grpc.insecure_channel(endpoint)
        self._identity = csi_pb2_grpc.IdentityStub(self._channel)
        self._controller = csi_pb2_grpc.ControllerStub(self._channel)
        self._node = csi_pb2_grpc.NodeStub(self._channel)

    def close(self) -> None:
        """Closes the connection; volumes stay as they are."""
        self._channel.close()

    def wait_until_ready(self, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Blocks until the driver answers Probe with ready. Raises DaemonUnavailable after the timeout, or as soon as
        ``alive`` returns False."""
        ready = grpc.channel_ready_future(self._channel)
        step_s = 0.1
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not alive():
                ready.cancel()
                raise DaemonUnavailable("the driver has ended")
            with suppress(grpc.FutureTimeoutError):
                ready.result(timeout=step_s)
                answer = self._call("Probe", self._identity.Probe, csi_pb2.ProbeRequest())
                if not answer.HasField("ready") or answer.ready.value:
                    return
                time.sleep(step_s)  # it answers, and waits for its daemon
        ready.cancel()
        raise DaemonUnavailable(f"the driver does not answer within {timeout_s:.0f} s")

    def register(self) -> tuple[str, str, str]:
        """The calls of a node to a new driver: plugin info, capabilities, node info. Returns name, version and node
        id."""
        info = self._call("GetPluginInfo", self._identity.GetPluginInfo, csi_pb2.GetPluginInfoRequest())
        capabilities = csi_pb2.GetPluginCapabilitiesRequest()
        self._call("GetPluginCapabilities", self._identity.GetPluginCapabilities, capabilities)
        self._call("NodeGetCapabilities", self._node.NodeGetCapabilities, csi_pb2.NodeGetCapabilitiesRequest())
        node = self._call("NodeGetInfo", self._node.NodeGetInfo, csi_pb2.NodeGetInfoRequest())
        return info.name, info.vendor_version, node.node_id

    def create(self, name: str, parameters: Mapping[str, str], secrets: Mapping[str, str]) -> Volume:
        """CreateVolume; the same name and parameters give the same volume."""
        request = csi_pb2.CreateVolumeRequest(
            name=name, parameters=parameters, secrets=secrets, volume_capabilities=[_capability()]
        )
        volume = self._call("CreateVolume", self._controller.CreateVolume, request).volume
        handle = hashlib.sha256(volume.volume_id.encode()).hexdigest()
        driver = "kubernetes.io/csi/csi.hayloft.dev"
        pod = uuid.uuid5(uuid.NAMESPACE_URL, volume.volume_id)
        return Volume(
            volume_id=volume.volume_id,
            context=dict(volume.volume_context),
            staging_path=self._directory / "plugins" / driver / handle / "globalmount",
            target_path=self._directory / "pods" / str(pod) / "volumes" / "kubernetes.io~csi" / name / "mount",
            secrets=secrets,
        )

    def stage(self, volume: Volume) -> None:
        volume.staging_path.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(volume.staging_path),
            volume_capability=_capability(),
            secrets=volume.secrets,
            volume_context=volume.context,
        )
        self._call("NodeStageVolume", self._node.NodeStageVolume, request)

    def inline(
        self,
        namespace: str,
        attributes: Mapping[str, str],
        secrets: Mapping[str, str],
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Volume:
        """A new volume in the specification of a pod of that namespace, published; ``unpublish`` is its end."""
        pod = str(uuid.uuid4())
        facts = {"ephemeral": "true", "pod.namespace": namespace, "pod.name": f"pod-{pod[:8]}", "pod.uid": pod}
        volume = Volume(
            volume_id=f"csi-{hashlib.sha256(pod.encode()).hexdigest()}",
            context={**attributes, **{f"csi.storage.k8s.io/{key}": value for key, value in facts.items()}},
            staging_path=Path(),
            target_path=self._directory / "pods" / pod / "volumes" / "kubernetes.io~csi" / "data" / "mount",
            secrets=secrets,
        )
        volume.target_path.parent.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            target_path=str(volume.target_path),
            volume_capability=_capability(),
            readonly=True,
            secrets=secrets,
            volume_context=volume.context,
        )
        self._call("NodePublishVolume", self._node.NodePublishVolume, request, timeout_s)
        return volume

    def publish(self, volume: Volume) -> Path:
        """Returns the directory that a container would see."""
        volume.target_path.parent.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(volume.staging_path),
            target_path=str(volume.target_path),
            volume_capability=_capability(),
            readonly=True,
            secrets=volume.secrets,
            volume_context=volume.context,
        )
        self._call("NodePublishVolume", self._node.NodePublishVolume, request)
        return volume.target_path

    def usage(self, volume: Volume) -> Usage:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(volume.target_path))
        answer = self._call("NodeGetVolumeStats", self._node.NodeGetVolumeStats, request)
        totals = {usage.unit: usage.total for usage in answer.usage}
        return Usage(totals.get(_USAGE_BYTES, 0), totals.get(_USAGE_INODES, 0))

    def unpublish(self, volume: Volume, timeout_s: float = CALL_TIMEOUT_S) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume.volume_id, target_path=str(volume.target_path))
        self._call("NodeUnpublishVolume", self._node.NodeUnpublishVolume, request, timeout_s)

    def unstage(self, volume: Volume) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=volume.volume_id, staging_target_path=str(volume.staging_path)
        )
        self._call("NodeUnstageVolume", self._node.NodeUnstageVolume, request)

    def delete(self, volume: Volume) -> None:
        """Deletes the volume; the objects of the dataset stay."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id, secrets=volume.secrets)
        self._call("DeleteVolume", self._controller.DeleteVolume, request)

    def _call(self, name: str, method: Any, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise CallRefused(name, error.code().name, error.details() or "") from None


def _capability() -> csi_pb2.VolumeCapability:
    access = csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY)
    return csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(), access_mode=access)
