"""Stages volumes with the cache daemon, and unstages them, also when it is dead."""

from __future__ import annotations

import os
from pathlib import Path

from csi_driver.csi.own_mounts import is_served, not_mounted, require_ours_or_none
from csi_driver.model import spans
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc import deadlines
from csi_driver.volumes.data_plane import DataPlane, MountRequest, WarmupState
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.warmup_waiting import wait_until_warm

_WARMUP_WAIT_S = 110.0
"""Time-out of the wait for a warmup in a call without a deadline: a little less than kubelet's two minutes."""
_RESPONSE_S = 1.0
"""Reserved before the call's deadline for the response, which reports the progress of the warmup."""


class Staging:
    """Reads the host's mount table at every call. The caller has the claim on the volume."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane

    def stage(self, request: MountRequest) -> None:
        """Mounts through the daemon, which uses the secrets from then on, and waits for the warmup if the volume has
        ``warmup: wait`` or ``memory``, is not in use yet, and the warmup was not cancelled. Raises as ``parse``,
        ``mount`` and ``wait_until_warm``; after the last the volume stays mounted, and the caller's retry resumes
        the wait."""
        parameters = VolumeParameters.parse(request.attributes)  # once per call, before anything is mounted
        self._data_plane.mount(request)
        # Success with nothing mounted would let pods read and write the node's own disk.
        if not is_served(MountTable.read().at(request.mount_point)):
            raise not_mounted(request.mount_point)
        if parameters.warmup not in ("wait", "memory") or request.republished:
            return
        if self._data_plane.warmup(request.volume_id).state is not WarmupState.CANCELLED:
            timeout_s = deadlines.remaining_s(_WARMUP_WAIT_S) - _RESPONSE_S
            with spans.span("warmup wait"):
                wait_until_warm(self._data_plane, request.volume_id, timeout_s)

    def unstage(self, volume_id: str, staging: Path) -> None:
        """If the daemon is dead, so is its mount, which is then unmounted without the daemon."""
        present = require_ours_or_none(staging, views=False)
        try:
            self._data_plane.unmount(volume_id, os.fspath(staging))
        except DaemonUnavailable:
            if present is not None:
                bind_mounts.unmount(staging)
