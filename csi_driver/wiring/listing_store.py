"""Opens the object store of a volume to list it."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.factory import open_store
from csi_driver.objects.store import ObjectStore
from csi_driver.volumes.parameters import VolumeParameters

LISTING_DEADLINE_S = 8.0
"""Time without progress after which a listing is given up. Shorter than the 10 s (external-provisioner) and 2 min
(kubelet) after which the callers hang up, or a wrong endpoint would reach the user as a bare DEADLINE_EXCEEDED."""


def open_volume_store(parameters: VolumeParameters, secrets: Mapping[str, str]) -> ObjectStore:
    """With the secrets as CSI gave them; none: the identity of this process. The caller closes it. Raises as
    ``open_store`` and ``parse_secret``."""
    options = parameters.store_options
    deadline_s = min(LISTING_DEADLINE_S, options.deadline_s)
    return open_store(parameters.url, options, parse_secret(secrets), deadline_s=deadline_s)
