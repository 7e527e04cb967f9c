"""The metrics of the processes, read at each scrape."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csi_driver.daemon.measurements import Measurements
from csi_driver.model.read_counts import ReadNumbers
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.volumes.data_plane import DaemonReport, DataPlane, WarmupState
from csi_driver.wiring.control_group import ControlGroupMemory
from csi_driver.wiring.exposition import Value, metrics_page
from csi_driver.wiring.page_server import HttpPage, PageServer

if TYPE_CHECKING:
    from csi_driver.objects.tier.replica_set import Tier
    from csi_driver.objects.tier.tier_counts import TierReport


@contextmanager
def serving_metrics(
    listener: socket.socket,
    data_plane: DataPlane,
    earlier_ends: Mapping[str, int] | None = None,
    measure: Callable[[], Measurements] = Measurements,
    calls: CallCounts | None = None,
    tier: Tier | None = None,
) -> Iterator[None]:
    """Serves /metrics of a daemon on a thread during the body, and closes the listener. ``earlier_ends``: counts by
    cause."""

    ends, calls = earlier_ends or {}, calls or CallCounts()
    page = metrics_page(lambda: daemon_values(data_plane, ends, measure, calls, tier))
    server = PageServer(listener, {"/metrics": lambda _: page()}, name="metrics")
    server.start()
    try:
        yield
    finally:
        server.close()


def daemon_values(
    data_plane: DataPlane,
    earlier_ends: Mapping[str, int],
    measure: Callable[[], Measurements],
    calls: CallCounts,
    tier: Tier | None = None,
) -> Iterator[Value]:
    """Of this moment."""
    yield from _restarts(earlier_ends)
    yield from _of_report(data_plane.report())
    yield from _of_measurements(measure())
    yield from _memory()
    yield from _calls("hayloft_daemon", calls)
    if tier is not None:
        yield from _of_tier(tier.report())


def csi_metrics_page(calls: CallCounts) -> HttpPage:
    """/metrics of the node plugin and the controller."""
    return metrics_page(lambda: _calls("hayloft_csi", calls))()


def _of_tier(report: TierReport) -> Iterator[Value]:
    counts = {"hit": report.hits, "miss": report.misses, "failure": report.failures, "bypass": report.bypassed}
    for result, count in counts.items():
        yield Value("hayloft_tier_requests_total", count, (result,))
    yield Value("hayloft_tier_bytes_total", report.received_bytes)
    yield Value("hayloft_tier_replicas", report.replicas)
    yield Value("hayloft_tier_replicas_left_alone", report.left_alone)


def _restarts(earlier_ends: Mapping[str, int]) -> Iterator[Value]:
    for cause, count in sorted(earlier_ends.items()):
        yield Value("hayloft_daemon_restarts_total", count, (cause,))


def _of_report(report: DaemonReport) -> Iterator[Value]:
    yield Value("hayloft_mounts", report.mounts)
    yield Value("hayloft_cache_used_bytes", report.cache_used_bytes)
    yield Value("hayloft_cache_limit_bytes", report.cache_limit_bytes)
    yield Value("hayloft_cache_evicted_objects_total", report.cache_evicted_objects)
    yield Value("hayloft_cache_free_bytes", report.cache_free_bytes)
    yield Value("hayloft_cache_free_floor_bytes", report.cache_free_floor_bytes)
    if report.cache_inodes:
        yield Value("hayloft_cache_inodes", report.cache_inodes)
        yield Value("hayloft_cache_free_inodes", report.cache_free_inodes)
        yield Value("hayloft_cache_free_floor_inodes", report.cache_free_floor_inodes)
    yield Value("hayloft_resident_bytes", report.resident_bytes)
    yield Value("hayloft_warmups", report.warmups)
    yield Value("hayloft_warmup_bytes_total", report.warmup_bytes)
    yield Value("hayloft_warmup_memory_read_bytes_total", report.warmup_memory_read_bytes)
    yield Value("hayloft_warmup_hot_bytes", report.warmup_hot_bytes)
    yield Value("hayloft_cache_disk_in_use", int(report.cache_disk_in_use))
    yield Value("hayloft_cache_disk_failures_total", report.cache_disk_failures)
    yield Value("hayloft_cache_bad_chunks_total", report.cache_bad_chunks)
    yield Value("hayloft_scrubbed_bytes_total", report.scrubbed_bytes)
    yield Value("hayloft_checksum_mismatches_total", report.checksum_mismatches)
    for name, count in sorted(report.read_errors.items()):
        yield Value("hayloft_read_errors_total", count, (name,))
    yield Value("hayloft_origin_bytes_total", report.origin_bytes)
    yield Value("hayloft_origin_requests_total", report.origin_requests)


def _of_measurements(measured: Measurements) -> Iterator[Value]:
    yield Value("hayloft_lost_mounts", measured.lost_mounts)
    yield Value("hayloft_keeper_reachable", int(measured.keeper_reachable))
    yield from _reads(measured.reads)
    for result, count in sorted(measured.requests.results.items()):
        yield Value("hayloft_origin_results_total", count, (result,))
    yield Value("hayloft_origin_retries_total", measured.requests.retries)
    yield Value("hayloft_origin_response_seconds", measured.requests.waits)
    for place, numbers in measured.mirrors.items():
        yield Value("hayloft_mirror_reads_total", numbers.reads, (place,))
        yield Value("hayloft_mirror_bytes_total", numbers.received_bytes, (place,))
        yield Value("hayloft_mirror_failovers_total", numbers.failovers, (place,))
        yield Value("hayloft_mirror_refused_objects_total", numbers.refused, (place,))
    yield Value("hayloft_cache_written_bytes_total", measured.written_bytes)
    yield Value("hayloft_cache_skipped_bytes_total", measured.not_cached_bytes)
    yield Value("hayloft_cache_evicted_bytes_total", measured.evicted_bytes)
    for queue, count in measured.queued.items():
        yield Value("hayloft_queued_jobs", count, (queue,))
    yield Value("hayloft_write_queue_bytes", measured.write_queue_bytes)
    yield Value("hayloft_read_held_bytes", measured.held_bytes)
    yield Value("hayloft_adopted_mounts", measured.adopted_mounts, ("adopted",))
    yield Value("hayloft_adopted_mounts", measured.lost_adoptions, ("lost",))
    yield Value("hayloft_adoption_seconds", measured.adoption_s)
    for volume, reads in measured.volume_reads.items():
        yield from _volume_reads(volume, reads)
    yield from _volumes(measured)


def _reads(reads: ReadNumbers) -> Iterator[Value]:
    for path, count, count_bytes in (
        ("memory", reads.memory_reads, reads.memory_bytes),
        ("disk", reads.disk_reads, reads.disk_bytes),
        ("store", reads.store_reads, reads.store_bytes),
    ):
        yield Value("hayloft_reads_total", count, (path,))
        yield Value("hayloft_read_bytes_total", count_bytes, (path,))
    yield Value("hayloft_opens_total", reads.passthrough_opens, ("passthrough",))
    yield Value("hayloft_opens_total", reads.served_opens, ("served",))
    yield Value("hayloft_passthrough_bytes_total", reads.passthrough_bytes)
    yield Value("hayloft_wait_seconds", reads.disk_waits, ("disk",))
    yield Value("hayloft_wait_seconds", reads.store_waits, ("store",))
    yield Value("hayloft_wait_seconds", reads.open_waits, ("open",))
    yield Value("hayloft_saved_bytes", reads.read_bytes - reads.fetched_bytes)


def _volume_reads(volume: str, reads: ReadNumbers) -> Iterator[Value]:
    yield Value("hayloft_volume_read_bytes_total", reads.memory_bytes, (volume, "memory"))
    yield Value("hayloft_volume_read_bytes_total", reads.disk_bytes, (volume, "disk"))
    yield Value("hayloft_volume_read_bytes_total", reads.store_bytes, (volume, "store"))
    yield Value("hayloft_volume_passthrough_bytes_total", reads.passthrough_bytes, (volume,))
    yield Value("hayloft_volume_origin_bytes_total", reads.fetched_bytes, (volume,))
    yield Value("hayloft_volume_stall_seconds_total", reads.stall_s, (volume,))


def _volumes(measured: Measurements) -> Iterator[Value]:
    for volume in measured.volumes:
        name, warmup = volume.volume_id, volume.warmup
        yield Value("hayloft_volume_info", 1, (name, volume.dataset, volume.namespace))
        yield Value("hayloft_volume_bytes", volume.total_bytes, (name,))
        yield Value("hayloft_volume_cached_bytes", volume.cached_bytes, (name,))
        if warmup.state is not WarmupState.NONE:
            yield Value("hayloft_volume_warmup_bytes", warmup.total_bytes, (name, "total"))
            yield Value("hayloft_volume_warmup_bytes", warmup.done_bytes, (name, "done"))
            yield Value("hayloft_volume_warmup_state", 1, (name, str(warmup.state)))


def _memory() -> Iterator[Value]:
    """Of the daemon's control group, which its container's limit holds for."""
    memory = ControlGroupMemory.of_this_process()
    if memory is None:
        return
    yield Value("hayloft_container_memory_bytes", memory.process_bytes, ("process",))
    yield Value("hayloft_container_memory_bytes", memory.active_file_bytes, ("page_cache_active",))
    yield Value("hayloft_container_memory_bytes", memory.inactive_file_bytes, ("page_cache_inactive",))
    yield Value("hayloft_container_memory_bytes", memory.other_bytes, ("other",))
    if memory.limit_bytes is not None:
        yield Value("hayloft_container_memory_limit_bytes", memory.limit_bytes)


def _calls(prefix: str, calls: CallCounts) -> Iterator[Value]:
    numbers = calls.numbers()
    for labels, count in sorted(numbers.calls.items()):
        yield Value(f"{prefix}_calls_total", count, labels)
    for method, durations in sorted(numbers.durations.items()):
        yield Value(f"{prefix}_call_seconds", durations, (method,))
