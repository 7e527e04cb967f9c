"""How fast which processes read which volumes, between two looks: for ``hayloft top`` and the web page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_driver.volumes.node_operations import NodeActivity, VolumeActivity
from csi_driver.wiring.node_readers import Reader, readers

NOTE = (
    "PASSED/s and SERVED/s are how far the offsets of open files have moved, of files that the kernel reads by itself "
    "and of those that the daemon serves: pread, mmap, and files that were opened and closed between two looks are "
    "not in them. The kernel counts passed-through reads for no volume. READ/s is all that a process has read, of any "
    "file."
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The node at one moment."""

    time_s: float
    activity: NodeActivity
    readers: Mapping[int, Reader]

    @classmethod
    def of(cls, activity: NodeActivity) -> Sample:
        """With the processes that read now."""
        return cls(time.monotonic(), activity, readers({volume.device for volume in activity.volumes}))


@dataclass(frozen=True, slots=True)
class Use:
    """What one process has open of one volume, and how fast it reads. Rates in bytes a second."""

    volume_id: str
    process_id: int
    command: str
    pod: str
    open_files: int
    passed_through: int
    """Open files that the kernel reads by itself."""
    mapped: int
    passed_per_s: float
    served_per_s: float | None
    """None: the kernel opens files without the daemon, and what of a read is served is not known."""
    process_reads_per_s: float | None
    """Of any file; None: not visible."""


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """Of one volume, by all processes."""

    volume_id: str
    passed_through: int
    """Open files, as the daemon knows them."""
    served: int
    without_opens: bool
    cached_per_s: float
    """How fast the number of its cached bytes grows."""
    store_wait_s: float


@dataclass(frozen=True, slots=True)
class NodeUse:
    """Between two samples."""

    span_s: float
    fetched_per_s: float
    requests_per_s: float
    volumes: tuple[VolumeUse, ...]
    uses: tuple[Use, ...]


def use_between(before: Sample, after: Sample) -> NodeUse:
    """What was read between two samples. A daemon that was replaced in between has counted nothing."""
    span_s = max(1e-9, after.time_s - before.time_s)
    first, last = before.activity.report, after.activity.report
    same = first.process_id == last.process_id
    cached_before = {volume.volume_id: volume.cached_bytes for volume in before.activity.volumes}
    volumes = tuple(
        VolumeUse(
            volume.volume_id,
            len(volume.passed_through),
            len(volume.served),
            volume.without_opens,
            max(0, volume.cached_bytes - cached_before.get(volume.volume_id, volume.cached_bytes)) / span_s,
            volume.store_wait_s,
        )
        for volume in after.activity.volumes
    )
    uses = [
        _use(volume, reader, before.readers.get(reader.process_id), span_s)
        for volume in after.activity.volumes
        for reader in after.readers.values()
        if volume.device in reader.devices
    ]
    uses.sort(key=lambda use: (-(use.process_reads_per_s or 0), use.process_id, use.volume_id))
    return NodeUse(
        span_s,
        (last.origin_bytes - first.origin_bytes) / span_s if same else 0.0,
        (last.origin_requests - first.origin_requests) / span_s if same else 0.0,
        volumes,
        tuple(uses),
    )


def _use(volume: VolumeActivity, reader: Reader, earlier: Reader | None, span_s: float) -> Use:
    passed_nodes = frozenset(volume.passed_through)
    open_files = passed = passed_bytes = served_bytes = 0
    for descriptor, file in reader.files.items():
        if file.device != volume.device:
            continue
        known = earlier.files.get(descriptor) if earlier is not None else None
        moved = file.offset if known is None or known.inode != file.inode else file.offset - known.offset
        open_files += 1
        if file.inode in passed_nodes:
            passed, passed_bytes = passed + 1, passed_bytes + max(0, moved)
        else:
            served_bytes += max(0, moved)
    read_per_s = None
    if reader.read_bytes is not None and earlier is not None and earlier.read_bytes is not None:
        read_per_s = max(0, reader.read_bytes - earlier.read_bytes) / span_s
    return Use(
        volume.volume_id,
        reader.process_id,
        reader.command,
        reader.pod,
        open_files,
        passed,
        sum(device == volume.device for device, _ in reader.mapped),
        passed_bytes / span_s,
        None if volume.without_opens else served_bytes / span_s,
        read_per_s,
    )


def top_document(use: NodeUse) -> dict[str, Any]:
    """Of ``hayloft top --json``."""
    return {
        "span_s": use.span_s,
        "fetched_bytes_per_s": use.fetched_per_s,
        "requests_per_s": use.requests_per_s,
        "volumes": [
            {
                "volume_id": volume.volume_id,
                "open_passed_through": None if volume.without_opens else volume.passed_through,
                "open_served": None if volume.without_opens else volume.served,
                "without_opens": volume.without_opens,
                "cached_bytes_per_s": volume.cached_per_s,
                "store_wait_s": volume.store_wait_s,
            }
            for volume in use.volumes
        ],
        "processes": [
            {
                "volume_id": one.volume_id,
                "process_id": one.process_id,
                "command": one.command,
                "pod": one.pod,
                "open_files": one.open_files,
                "open_passed_through": one.passed_through,
                "mapped": one.mapped,
                "passed_through_bytes_per_s": one.passed_per_s,
                "served_bytes_per_s": one.served_per_s,
                "process_read_bytes_per_s": one.process_reads_per_s,
            }
            for one in use.uses
        ],
        "note": NOTE,
    }
