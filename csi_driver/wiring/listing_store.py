"""Opens the object store of a volume for a listing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.settings import ListingSettings
from csi_driver.volumes.parameters import VolumeParameters

LISTING_DEADLINE_S = 8.0
"""Time without progress after which a listing times out. Shorter than the time-outs of the callers, 10 s
(external-provisioner) and 2 min (kubelet), which would report a wrong endpoint as a bare DEADLINE_EXCEEDED."""

_LIMITS = ListingSettings()


def open_listing_store(
    parameters: VolumeParameters, secrets: Mapping[str, str], limits: ListingSettings = _LIMITS
) -> ObjectStore:
    """``secrets`` are those of the CSI request; without any, the identity of this process is used. The caller closes
    the store. Raises as ``open_store`` and ``parse_secret``."""
    options = dataclasses.replace(parameters.store_options, page_bytes=limits.page_bytes)
    deadline_s = min(LISTING_DEADLINE_S, options.deadline_s)
    return open_store(parameters.url, options, parse_secret(secrets), deadline_s=deadline_s)
