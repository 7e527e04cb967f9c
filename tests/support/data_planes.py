"""In-memory twins of the data plane. One mounts nothing; the other makes real FUSE mounts that nobody answers, which is
enough for everything that looks at the mount table alone, and hangs whoever touches the files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from csi_driver.fuse import mounting as device
from csi_driver.model.errors import VolumeConflict, VolumeNotFound
from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.data_plane import (
    DaemonReport,
    MountRequest,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
    WarmupState,
)
from csi_driver.volumes.parameters import VolumeParameters

REPORT = DaemonReport(
    version="1.2.3",
    process_id=77,
    mounts=1,
    passthrough=True,
    cache_limit_bytes=1 << 40,
    cache_used_bytes=5,
    origin_bytes=6,
    origin_requests=7,
    resident_bytes=8,
)


def report_of(wish: MountRequest) -> VolumeReport:
    return VolumeReport(
        volume_id=wish.volume_id,
        mount_point=wish.mount_point,
        snapshot_id="snapshot-1",
        total_bytes=3_000_000_000,
        cached_bytes=1_000,
        file_count=42,
        abnormal=False,
        message="all well",
    )


class RememberingDataPlane:
    """Mounts nothing; ``failure`` is raised by every call, ``before`` runs at its start."""

    def __init__(self) -> None:
        self.wishes: list[MountRequest] = []
        self.warmups: dict[str, WarmupReport] = {}
        """By volume; a test puts what it wants to be told."""
        self.failure: Exception | None = None
        self.before: Callable[[], object] = lambda: None

    def mount(self, wish: MountRequest) -> VolumeReport:
        self._begin()
        self.wishes.append(wish)
        return report_of(wish)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        self._begin()
        self.wishes = [wish for wish in self.wishes if wish.mount_point != mount_point]

    def publish(self, volume_id: str, target: str) -> bool:
        self.volume(volume_id)
        return False

    def unpublish(self, volume_id: str, target: str) -> None:
        self._begin()

    def volume(self, volume_id: str) -> VolumeReport:
        self._begin()
        for wish in self.wishes:
            if wish.volume_id == volume_id:
                return report_of(wish)
        raise VolumeNotFound(f"{volume_id}: is not mounted")

    def report(self) -> DaemonReport:
        self._begin()
        return REPORT

    def start_warmup(self, wish: WarmupRequest) -> WarmupReport:
        self.volume(wish.volume_id)
        self.warmups[wish.volume_id] = WarmupReport(wish.volume_id, WarmupState.RUNNING, wish.include)
        return self.warmups[wish.volume_id]

    def warmup(self, volume_id: str) -> WarmupReport:
        self.volume(volume_id)
        return self.warmups.get(volume_id, WarmupReport(volume_id))

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        self.warmups[volume_id] = replace(self.warmup(volume_id), state=WarmupState.CANCELLED)
        return self.warmups[volume_id]

    def _begin(self) -> None:
        self.before()
        if self.failure is not None:
            raise self.failure


class MountingDataPlane(RememberingDataPlane):
    """Makes FUSE mounts without a daemon behind them. ``kill`` is what its death does to them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def mount(self, wish: MountRequest) -> VolumeReport:
        self._begin()
        VolumeParameters.parse(wish.attributes)
        with self._lock:
            present = MountTable.read().at(wish.mount_point)
            for known in self.wishes:
                if known.mount_point == wish.mount_point and present is not None:
                    if (known.volume_id, known.attributes) != (wish.volume_id, wish.attributes):
                        raise VolumeConflict(f"{wish.mount_point}: mounted with other attributes")
                    return report_of(wish)
            bind.unmount(Path(wish.mount_point), lazy=True)  # a dead one, as the daemon does
            self._descriptors[wish.mount_point] = device.mount(Path(wish.mount_point), "test://volume")
            self.wishes.append(wish)
        return report_of(wish)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        self._begin()
        with self._lock:
            bind.unmount(Path(mount_point))
            self._forget(mount_point)

    def _forget(self, mount_point: str) -> None:
        self.wishes = [wish for wish in self.wishes if wish.mount_point != mount_point]
        descriptor = self._descriptors.pop(mount_point, None)
        if descriptor is not None:
            os.close(descriptor)

    def kill(self) -> None:
        """Mounts stay in the table, and every touch of them fails with ENOTCONN."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            self.wishes.clear()

    def close(self, below: Path) -> None:
        """Ends every mount below a directory, whatever the test has left."""
        for entry in sorted(MountTable.read().below(below), key=lambda entry: -len(entry.mount_point)):
            with suppress(Exception):
                bind.unmount(Path(entry.mount_point), lazy=True)
        self.kill()
