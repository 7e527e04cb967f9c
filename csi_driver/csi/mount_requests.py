"""Requests of kubelet as requests to the data plane: attributes without what Kubernetes adds, the author of the volume,
the group of the pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from csi_driver.csi.capabilities import check_capability, mount_group
from csi_driver.csi.service_account_tokens import secrets_for_daemon
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import MountRequest

EPHEMERAL = "csi.storage.k8s.io/ephemeral"
POD_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
_KUBERNETES_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Keys that Kubernetes adds to a volume context: facts about the pod, and service account tokens. They are not passed
to the daemon."""


def checked_capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> csi_pb2.VolumeCapability:
    """Raises as ``check_capability``."""
    capability = request.volume_capability if request.HasField("volume_capability") else None
    check_capability(capability)
    return request.volume_capability


def volume_attributes(volume_context: Mapping[str, str], capability: csi_pb2.VolumeCapability) -> dict[str, str]:
    """The volume's own attributes. The mount flags of the capability are appended to ``mountOptions``."""
    attributes = {key: value for key, value in volume_context.items() if not key.startswith(_KUBERNETES_PREFIXES)}
    flags = list(capability.mount.mount_flags)
    if flags:
        present = attributes.get("mountOptions", "")
        attributes["mountOptions"] = ",".join([present, *flags] if present else flags)
    return attributes


def mount_request(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
    staging: Path,
    attributes: dict[str, str],
    *,
    republished: bool = False,
) -> MountRequest:
    return MountRequest(
        request.volume_id,
        os.fspath(staging),
        attributes,
        secrets_for_daemon(request.secrets, request.volume_context, attributes),
        _tenant(request.volume_context),
        republished,
        mount_group(request.volume_capability),
    )


def _tenant(volume_context: Mapping[str, str]) -> Tenant:
    """Kubelet writes both facts of an inline volume over attributes of the same name, so a pod can neither forge nor
    omit them; a call with the first alone is not kubelet's, but of another client with access to this socket, which is
    the administrator's. The namespace of a claim is in the record of its volume, which the daemon reads."""
    namespace = volume_context.get(POD_NAMESPACE, "")
    inline = volume_context.get(EPHEMERAL) == "true"
    return Tenant(namespace, inline=True) if inline and namespace else ADMINISTRATOR
