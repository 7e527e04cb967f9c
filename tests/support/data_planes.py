"""In-memory implementations of DataPlane. One mounts nothing; the other makes real FUSE mounts without a daemon: enough
for code that reads only the mount table, while any access to the files hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from csi_driver.fuse import mounting
from csi_driver.model.conditions import Condition, distinct
from csi_driver.model.errors import VolumeConflict, VolumeNotFound
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.data_plane import (
    DaemonReport,
    HealthReport,
    KnownMount,
    MountHealth,
    MountRequest,
    TraceReport,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
    WarmupState,
)
from csi_driver.volumes.parameter_text import size
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
    cache_evicted_objects=3,
    cache_free_bytes=9000,
    cache_free_floor_bytes=1000,
    cache_inodes=200,
    cache_free_inodes=60,
    cache_free_floor_inodes=20,
)


def report_of(request: MountRequest) -> VolumeReport:
    return VolumeReport(
        volume_id=request.volume_id,
        mount_point=request.mount_point,
        snapshot_id="snapshot-1",
        total_bytes=3_000_000_000,
        cached_bytes=1_000,
        file_count=42,
        notes=("all well",),
        reserved_bytes=size("cacheReservation", request.attributes.get("cacheReservation", "0")),
        mount_group=request.mount_group,
    )


class InMemoryDataPlane:
    """Mounts nothing, records the requests. Every call runs ``before`` at its start, and raises ``failure`` if set."""

    def __init__(self) -> None:
        self.requests: list[MountRequest] = []
        self.conditions: tuple[Condition, ...] = ()
        """Of all volumes, and of the node."""
        self.read_errors: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        """By volume: what was reserved by calls."""
        self.reports_attributes = False
        self.asked = 0
        """How often for the health."""
        self.warmups: dict[str, WarmupReport] = {}
        """By volume; tests set the reports that they need."""
        self.trace = b"a trace"
        self.failure: Exception | None = None
        self.before: Callable[[], object] = lambda: None

    def mount(self, request: MountRequest) -> VolumeReport:
        self._begin()
        self.requests.append(request)
        return report_of(request)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        self._begin()
        self.requests = [request for request in self.requests if request.mount_point != mount_point]

    def publish(self, volume_id: str, target: str) -> bool:
        self.volume(volume_id)
        return False

    def unpublish(self, volume_id: str, target: str) -> None:
        self._begin()

    def volume(self, volume_id: str) -> VolumeReport:
        self._begin()
        for request in self.requests:
            if request.volume_id == volume_id:
                report = report_of(request)
                return replace(
                    report,
                    reserved_bytes=max(report.reserved_bytes, self.reserved.get(volume_id, 0)),
                    attributes=dict(request.attributes) if self.reports_attributes else {},
                )
        raise VolumeNotFound(f"{volume_id}: is not mounted")

    def mounts(self) -> tuple[KnownMount, ...]:
        self._begin()
        return tuple(KnownMount(one.volume_id, one.mount_point, "0:0") for one in self.requests)

    def report(self) -> DaemonReport:
        self._begin()
        return replace(REPORT, read_errors=self.read_errors)

    def health(self) -> HealthReport:
        self.asked += 1
        reports = {one.volume_id: report_of(one) for one in self.requests}
        return HealthReport(
            distinct(self.conditions),
            tuple(
                MountHealth(
                    known.volume_id,
                    known.device,
                    reports[known.volume_id].total_bytes,
                    reports[known.volume_id].file_count,
                    distinct(self.conditions),
                    reports[known.volume_id].notes,
                )
                for known in self.mounts()
            ),
        )

    def reserve(self, volume_id: str, count_bytes: int) -> VolumeReport:
        if self.volume(volume_id).reserved_bytes:
            self.reserved[volume_id] = count_bytes
        return self.volume(volume_id)

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        self.volume(request.volume_id)
        self.warmups[request.volume_id] = WarmupReport(request.volume_id, WarmupState.RUNNING, request.include)
        return self.warmups[request.volume_id]

    def warmup(self, volume_id: str) -> WarmupReport:
        self.volume(volume_id)
        return self.warmups.get(volume_id, WarmupReport(volume_id))

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        self.warmups[volume_id] = replace(self.warmup(volume_id), state=WarmupState.CANCELLED)
        return self.warmups[volume_id]

    def start_trace(self, volume_id: str, seconds: float) -> None:
        self.volume(volume_id)

    def stop_trace(self, volume_id: str) -> TraceReport:
        self.volume(volume_id)
        return TraceReport(volume_id, len(self.trace), 1, 1, 1)

    def read_trace(self, volume_id: str, offset: int) -> bytes:
        return self.trace[offset : offset + 4]

    def _begin(self) -> None:
        self.before()
        if self.failure is not None:
            raise self.failure


class MountingDataPlane(InMemoryDataPlane):
    """Makes FUSE mounts that no daemon serves. ``kill`` has the effect of a daemon's death on them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def mount(self, request: MountRequest) -> VolumeReport:
        self._begin()
        VolumeParameters.parse(request.attributes)
        with self._lock:
            present = MountTable.read().at(request.mount_point)
            for known in self.requests:
                if known.mount_point == request.mount_point and present is not None:
                    if (known.volume_id, known.attributes) != (request.volume_id, request.attributes):
                        raise VolumeConflict(f"{request.mount_point}: mounted with other attributes")
                    return report_of(request)
            bind_mounts.unmount(Path(request.mount_point), lazy=True)  # a dead one, as the daemon does
            self._descriptors[request.mount_point] = mounting.mount(Path(request.mount_point), "test://volume")
            self.requests.append(request)
        return report_of(request)

    def mounts(self) -> tuple[KnownMount, ...]:
        self._begin()
        found = ((one, MountTable.read().at(one.mount_point)) for one in self.requests)
        return tuple(KnownMount(one.volume_id, one.mount_point, entry.device if entry else "") for one, entry in found)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        self._begin()
        with self._lock:
            bind_mounts.unmount(Path(mount_point))
            self._forget(mount_point)

    def _forget(self, mount_point: str) -> None:
        self.requests = [request for request in self.requests if request.mount_point != mount_point]
        descriptor = self._descriptors.pop(mount_point, None)
        if descriptor is not None:
            os.close(descriptor)

    def kill(self) -> None:
        """Mounts stay in the table, and every access fails with ENOTCONN."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            self.requests.clear()

    def close(self, below: Path) -> None:
        """Unmounts everything below a directory."""
        for entry in sorted(MountTable.read().below(below), key=lambda entry: -len(entry.mount_point)):
            with suppress(Exception):
                bind_mounts.unmount(Path(entry.mount_point), lazy=True)
        self.kill()
