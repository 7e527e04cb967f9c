"""Two volumes of one id: PersistentVolumes with the same ``volumeHandle`` and other attributes.

For Kubernetes they are one volume. Kubelet stages it once, and publishes to every pod what was staged for the first.
"""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.model.errors import VolumeConflict
from csi_driver.volumes.parameters import MUTABLE_PARAMETERS

_MOST_SHOWN = 100
"""Characters of a value: a CA bundle has thousands."""


def require_equal(volume_id: str, mounted: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises VolumeConflict unless both name the same volume. Both are as ``VolumeParameters.to_context`` returns them:
    what has its default value is not in them. Parameters that can be changed do not count: a PersistentVolume names
    those of the day on which it was made."""
    keys = {*mounted, *wanted}.difference(MUTABLE_PARAMETERS)
    differing = [key for key in sorted(keys) if mounted.get(key) != wanted.get(key)]
    if not differing:
        return
    differences = "; ".join(f"{key}: {_shown(mounted, key)} there, {_shown(wanted, key)} here" for key in differing)
    raise VolumeConflict(
        f"volume {volume_id}: is mounted on this node with other attributes ({differences}). Give each "
        "PersistentVolume a volumeHandle of its own; edited attributes take effect once no pod of the node uses the "
        "volume"
    )


def _shown(attributes: Mapping[str, str], key: str) -> str:
    value = attributes.get(key)
    if value is None:
        return "its default"
    return repr(value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}…")
