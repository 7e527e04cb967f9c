"""The state of a node as JSON: what the commands print with ``--json``, and the web page shows. Fields are added, and
never renamed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from csi_driver.model.conditions import Condition
from csi_driver.volumes.node_operations import Entry, NodeStatus, VolumeStatus


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a span of time, in units a second."""

    span_s: float
    fetched_bytes: float
    requests: float
    opened_bytes: float

    @classmethod
    def between(cls, before: NodeStatus, after: NodeStatus, span_s: float) -> Rates:
        """Zeros if the daemon was replaced in between: its counters began anew."""
        if before.report.process_id != after.report.process_id or span_s <= 0:
            return cls(span_s, 0.0, 0.0, 0.0)
        return cls(
            span_s,
            (after.report.origin_bytes - before.report.origin_bytes) / span_s,
            (after.report.origin_requests - before.report.origin_requests) / span_s,
            (after.opened_bytes - before.opened_bytes) / span_s,
        )


def all_conditions(status: NodeStatus) -> list[tuple[str, Condition]]:
    """With the volume of each; empty for the node. One of the node is not repeated for its volumes."""
    found = [("", condition) for condition in status.conditions]
    for one in status.volumes:
        own = (condition for condition in one.volume.conditions if condition not in status.conditions)
        found.extend((one.volume.volume_id, condition) for condition in own)
    return found


def status_document(status: NodeStatus, rates: Rates | None) -> dict[str, Any]:
    """Of ``hayloft status --json``. Sizes are bytes, times seconds, rates a second."""
    report = asdict(status.report)
    return {
        "healthy": not all_conditions(status),
        "daemon": {
            "version": report.pop("version"),
            "process_id": report.pop("process_id"),
            "uptime_s": status.uptime_s,
            "passthrough_allowed": status.passthrough_allowed,
        },
        "cache": {
            "directory": status.cache_directory,
            "file_system": status.cache_file_system,
            "shared_with": status.cache_shared_with,
            "unverified_files": status.unverified_files,
        },
        "reads": {
            "opened_bytes": status.opened_bytes,
            "fetched_for_readers_bytes": status.fetched_for_readers_bytes,
            "hit_ratio": status.hit_ratio,
        },
        "rates": None if rates is None else asdict(rates),
        "counters": report,
        "conditions": [condition_document(condition) for condition in status.conditions],
        "volumes": [volume_document(one) for one in status.volumes],
    }


def volume_document(one: VolumeStatus) -> dict[str, Any]:
    """Of one volume."""
    volume = one.volume
    return {
        "volume_id": volume.volume_id,
        "namespace": one.namespace,
        "inline": one.inline,
        "url": one.url,
        "endpoint": one.endpoint,
        "mount_point": volume.mount_point,
        "device": one.device,
        "snapshot_id": volume.snapshot_id,
        "files": volume.file_count,
        "total_bytes": volume.total_bytes,
        "cached_bytes": volume.cached_bytes if one.counted else None,
        "reserved_bytes": volume.reserved_bytes,
        "pinned": one.pinned,
        "passthrough": one.passthrough,
        "store_wait_s": one.store_wait_s,
        "warmup": asdict(one.warmup),
        "conditions": [condition_document(condition) for condition in volume.conditions],
        "notes": list(volume.notes),
    }


def condition_document(condition: Condition) -> dict[str, str]:
    """Of a row of the table of conditions."""
    return {
        "reason": condition.reason,
        "severity": str(condition.severity),
        "sentence": condition.sentence,
        "remedy": condition.remedy,
    }


def directory_document(volume_id: str, path: str, entries: list[tuple[Entry, int]]) -> dict[str, Any]:
    """Of ``hayloft ls --json``. Names have bytes that are not UTF-8 as surrogate escapes."""
    return {
        "volume_id": volume_id,
        "path": path.strip("/"),
        "total_bytes": sum(entry.size_bytes for entry, _ in entries),
        "cached_bytes": sum(cached_bytes for _, cached_bytes in entries),
        "files": sum(entry.rows.stop - entry.rows.start for entry, _ in entries),
        "entries": [entry_document(entry, cached_bytes) for entry, cached_bytes in entries],
    }


def entry_document(entry: Entry, cached_bytes: int | None) -> dict[str, Any]:
    """Of a name in a directory."""
    return {
        "name": os.fsdecode(entry.name),
        "type": "directory" if entry.is_directory else "file",
        "files": entry.rows.stop - entry.rows.start,
        "total_bytes": entry.size_bytes,
        "cached_bytes": cached_bytes,
    }
