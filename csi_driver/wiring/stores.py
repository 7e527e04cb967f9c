"""Opens the object store of a volume."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.opening import open_store
from csi_driver.objects.store import ObjectStore
from csi_driver.volumes.parameters import VolumeParameters


def open_volume_store(parameters: VolumeParameters, secrets: Mapping[str, str]) -> ObjectStore:
    """With the secrets as CSI gave them; none: the identity of this process. The caller closes it. Raises as
    ``open_store`` and ``parse_secret``."""
    return open_store(parameters.url, parameters.store_options, parse_secret(secrets))
