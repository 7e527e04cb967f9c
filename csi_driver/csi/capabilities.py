"""Which volume capabilities a read-only volume has. ``docs/decisions/0003-single-node-writer.md`` says why
SINGLE_NODE_WRITER is among them."""

from __future__ import annotations

from collections.abc import Sequence

from csi_driver.model.errors import InvalidParameter, MissingParameter, ReadOnlyVolume, RequestError
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.parameter_text import MountOptions, owner

_Mode = csi_pb2.VolumeCapability.AccessMode

ACCEPTED_MODES = frozenset(
    {
        _Mode.SINGLE_NODE_READER_ONLY,
        _Mode.MULTI_NODE_READER_ONLY,
        _Mode.SINGLE_NODE_WRITER,
        _Mode.SINGLE_NODE_SINGLE_WRITER,
        _Mode.SINGLE_NODE_MULTI_WRITER,
    }
)
"""Every ReadWriteOnce(Pod) claim requests one of the three modes that name a writer of one node; such volumes are
mounted read-only too, and a write gets EROFS. What the modes say of pods holds: there is one for ReadWriteOncePod."""

_ALLOWED = "ReadOnlyMany, or ReadWriteOnce and ReadWriteOncePod, which are mounted read-only as well"

_SHOWN = 64
"""Characters of a value in a message."""

_IGNORED_FS_TYPES = frozenset({"", "ext4", "fuse", "fuse.hayloft", "hayloft"})
"""external-provisioner puts ext4 into every volume without a type of its own."""


def check_capability(capability: csi_pb2.VolumeCapability | None, field: str = "volume_capability") -> None:
    """Raises MissingParameter, InvalidParameter, ReadOnlyVolume."""
    if capability is None:
        raise MissingParameter(field)
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise MissingParameter(f"{field}.access_type", "Ask for a mounted file system")
    if kind == "block":
        remedy = "Use volumeMode: Filesystem; a dataset is a directory"
        raise InvalidParameter(f"{field}.access_type", "block", "mount", remedy)
    mode = capability.access_mode.mode
    if mode == _Mode.UNKNOWN:
        raise MissingParameter(f"{field}.access_mode", f"Allowed: {_ALLOWED}")
    if mode not in ACCEPTED_MODES:
        name = _Mode.Mode.Name(mode) if mode in _Mode.Mode.values() else str(mode)
        raise ReadOnlyVolume(
            f"{field}.access_mode: {name} is for volumes that are written, and Hayloft volumes are read-only; "
            f"allowed access modes: {_ALLOWED}"
        )
    fs_type = capability.mount.fs_type
    if fs_type not in _IGNORED_FS_TYPES:
        remedy = "Leave csi.storage.k8s.io/fstype out: a dataset has no file system of its own"
        raise InvalidParameter(f"{field}.mount.fs_type", _short(fs_type), "none", remedy)
    MountOptions.parse(capability.mount.mount_flags, f"{field}.mount.mount_flags")
    mount_group(capability, field)


def mount_group(capability: csi_pb2.VolumeCapability, field: str = "volume_capability") -> int:
    """The ``fsGroup`` of the pod, which kubelet passes to a driver with VOLUME_MOUNT_GROUP; 0: none. Raises
    InvalidParameter."""
    text = capability.mount.volume_mount_group
    return owner(f"{field}.mount.volume_mount_group", _short(text)) if text else 0


def _short(text: str) -> str:
    """For a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def check_capabilities(capabilities: Sequence[csi_pb2.VolumeCapability]) -> None:
    """Raises as ``check_capability`` does; MissingParameter for an empty list."""
    if not capabilities:
        raise MissingParameter("volume_capabilities")
    for capability in capabilities:
        check_capability(capability, "volume_capabilities")


def refusal(capabilities: Sequence[csi_pb2.VolumeCapability]) -> str | None:
    """The reason why a volume does not have all of them; None if it does. Raises MissingParameter for an empty list."""
    try:
        check_capabilities(capabilities)
    except MissingParameter:
        raise
    except RequestError as error:
        return str(error)
    return None
