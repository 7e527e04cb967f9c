"""The health of a node's volumes, as the daemon reported it a moment ago.

Kubelet asks for all volumes one after the other, and for the statistics of each as well: one report of the daemon
answers all of them. A daemon that is dead or hangs costs one short wait, not one for each volume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from csi_driver.csi.own_mounts import is_served
from csi_driver.model.conditions import CACHE_DAEMON_UNAVAILABLE, MOUNT_DEAD, Condition
from csi_driver.model.errors import DaemonUnavailable, VolumeNotFound
from csi_driver.mounts.materialised_views import is_view_of
from csi_driver.mounts.mount_table import MountEntry
from csi_driver.rpc import deadlines
from csi_driver.volumes.data_plane import DataPlane, HealthReport, MountHealth

FRESH_S = 0.5
"""How long a report of the daemon is the answer: once a minute kubelet asks for all volumes within a moment."""

SILENT_S = 3.0
"""How long the daemon is not asked again after it has not answered."""

ASK_S = 1.0
"""Time-out of the question; the daemon answers from memory, within milliseconds."""


@dataclass(frozen=True, slots=True)
class VolumeState:
    """What is known of a volume that is mounted at a path."""

    conditions: tuple[Condition, ...]
    mount: MountHealth | None = None
    """None: the daemon does not know the mount, or does not answer."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A report, or why there is none."""

    asked_s: float
    said: HealthReport | DaemonUnavailable

    def holds(self, now: float, since_s: float | None) -> bool:
        if isinstance(self.said, DaemonUnavailable):
            return now - self.asked_s < SILENT_S
        return now - self.asked_s < FRESH_S and (since_s is None or self.asked_s > since_s)


class NodeHealth:
    """May be used from any thread without a lock: ``_last`` is replaced as a whole."""

    def __init__(self, data_plane: DataPlane, clock: Callable[[], float] = time.monotonic) -> None:
        self._data_plane = data_plane
        self._clock = clock
        self._last: _Answer | None = None

    def require_daemon(self) -> None:
        """Raises DaemonUnavailable. Asks the daemon each time, unless it has not answered a moment ago: a caller that
        learns that it is there makes a call next."""
        self._report(self._clock())

    def of_node(self) -> tuple[Condition, ...]:
        """What is wrong with the storage of the node."""
        try:
            return self._report().node
        except DaemonUnavailable:
            return (CACHE_DAEMON_UNAVAILABLE,)

    def of_volume(self, volume_id: str, shown: MountEntry) -> VolumeState:
        """Of the volume that a mount of this driver shows. Never accesses the mount itself, so one whose daemon is dead
        or stopped cannot block the call. Raises VolumeNotFound if it shows another volume."""
        began_s = self._clock()
        is_view = is_view_of(shown, volume_id)
        try:
            report = self._report()
            state = _state(report, volume_id, shown)
            if state is None:  # the report may be older than the mount: nothing is concluded from its absence
                report = self._report(began_s)
                state = _state(report, volume_id, shown)
        except DaemonUnavailable:
            # A view is plain files, which need no daemon.
            return VolumeState(() if is_view else (CACHE_DAEMON_UNAVAILABLE,))
        if state is not None:
            return state
        if is_view:  # its FUSE mount was lost with a daemon that had no keeper; the hard links need neither
            return VolumeState(())
        if is_served(shown) and all(mount.device != shown.device for mount in report.mounts):
            return VolumeState((MOUNT_DEAD,))
        raise VolumeNotFound(f"{shown.mount_point}: shows another volume than {volume_id!r}")

    def of_any_mount(self, volume_id: str) -> VolumeState:
        """Of the newest mount of the volume on this node. Raises VolumeNotFound if there is none."""
        began_s = self._clock()
        try:
            state = _newest(self._report(), volume_id) or _newest(self._report(began_s), volume_id)
        except DaemonUnavailable:
            return VolumeState((CACHE_DAEMON_UNAVAILABLE,))
        if state is None:
            raise VolumeNotFound(f"volume_id: {volume_id!r} is not mounted on this node")
        return state

    def _report(self, since_s: float | None = None) -> HealthReport:
        """The last report if it is fresh, and not from before ``since_s``. Raises DaemonUnavailable, also without
        asking, if the daemon has not answered a moment ago."""
        last, now = self._last, self._clock()
        if last is None or not last.holds(now, since_s):
            last = self._last = self._ask(now)
        if isinstance(last.said, DaemonUnavailable):
            raise last.said
        return last.said

    def _ask(self, now: float) -> _Answer:
        try:
            with deadlines.within(ASK_S):
                return _Answer(now, self._data_plane.health())
        except DaemonUnavailable as error:
            return _Answer(self._clock(), error)


def _state(report: HealthReport, volume_id: str, shown: MountEntry) -> VolumeState | None:
    return _newest(report, volume_id, None if is_view_of(shown, volume_id) else shown.device)


def _newest(report: HealthReport, volume_id: str, device: str | None = None) -> VolumeState | None:
    """Of the volume's newest mount; that of the ``device``, if one is given."""
    for mount in reversed(report.mounts):
        if mount.volume_id == volume_id and device in (None, mount.device):
            return VolumeState(mount.conditions, mount)
    return None
