"""The state of the daemon in numbers, for metrics and the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.volumes.data_plane import DaemonReport


def daemon_report(
    version: str,
    mounts: Iterable[ServedMount],
    chunk_store: ChunkStore,
    read_through_cache: ReadThroughCache,
    warmups: WarmupJobs,
    read_errors: Mapping[str, int],
) -> DaemonReport:
    """Of this moment."""
    sessions = [mount.session for mount in mounts]
    return DaemonReport(
        version=version,
        process_id=os.getpid(),
        mounts=len(sessions),
        passthrough=all(session.passthrough for session in sessions if session is not None),
        cache_limit_bytes=chunk_store.limit_bytes,
        cache_used_bytes=chunk_store.used_bytes,
        origin_bytes=read_through_cache.origin_bytes,
        origin_requests=read_through_cache.origin_requests,
        resident_bytes=_resident_bytes(),
        warmups=warmups.running(),
        warmup_bytes=warmups.fetched_bytes(),
        warmup_memory_read_bytes=warmups.memory_read_bytes(),
        warmup_hot_bytes=warmups.hot_bytes(),
        cache_bad_chunks=chunk_store.bad_chunks,
        cache_disk_failures=chunk_store.health.failures,
        cache_disk_in_use=chunk_store.health.in_use,
        scrubbed_bytes=chunk_store.scrubber.scrubbed_bytes,
        checksum_mismatches=read_through_cache.integrity.counts.mismatches,
        read_errors=read_errors,
        cache_evicted_objects=chunk_store.evicted_objects,
        cache_free_bytes=chunk_store.space.free_bytes,
        cache_free_floor_bytes=chunk_store.floor.count_bytes,
        cache_inodes=chunk_store.space.total_inodes,
        cache_free_inodes=chunk_store.space.free_inodes,
        cache_free_floor_inodes=chunk_store.floor.inodes(chunk_store.space),
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
