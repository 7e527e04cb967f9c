"""The daemon's metrics for Prometheus, read from its report at each scrape."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi_driver.volumes.data_plane import DaemonReport, DataPlane
from csi_driver.wiring.control_group import ControlGroupMemory
from csi_driver.wiring.page_server import HttpPage, PageServer

if TYPE_CHECKING:
    from csi_driver.objects.tier.replica_set import Tier


class DaemonCollector(Collector):
    """Translates a DaemonReport into metrics."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane

    def collect(self) -> Iterator[Metric]:
        report = self._data_plane.report()
        yield GaugeMetricFamily("hayloft_mounts", "FUSE mounts that the daemon serves", report.mounts)
        yield GaugeMetricFamily("hayloft_cache_used_bytes", "Bytes of objects in the cache", report.cache_used_bytes)
        yield GaugeMetricFamily("hayloft_cache_limit_bytes", "Limit of the cache in bytes", report.cache_limit_bytes)
        yield from _space(report)
        yield GaugeMetricFamily("hayloft_resident_bytes", "Resident memory of the daemon", report.resident_bytes)
        yield GaugeMetricFamily("hayloft_warmups", "Running warmups", report.warmups)
        yield CounterMetricFamily("hayloft_warmup_bytes", "Bytes that warmups fetched", report.warmup_bytes)
        yield from _integrity(report)
        yield _read_errors(report)
        yield CounterMetricFamily(
            "hayloft_origin_bytes", "Bytes received from object stores and the cluster's cache", report.origin_bytes
        )
        yield CounterMetricFamily("hayloft_origin_requests", "Requests sent to object stores", report.origin_requests)


class ControlGroupCollector(Collector):
    """The memory of the daemon's control group, which its container's limit holds for."""

    def collect(self) -> Iterator[Metric]:
        memory = ControlGroupMemory.of_this_process()
        if memory is None:
            return
        charged = GaugeMetricFamily(
            "hayloft_container_memory_bytes", "Memory charged to the daemon's control group", labels=["kind"]
        )
        charged.add_metric(["process"], memory.process_bytes)
        charged.add_metric(["page_cache_active"], memory.active_file_bytes)
        charged.add_metric(["page_cache_inactive"], memory.inactive_file_bytes)
        charged.add_metric(["other"], memory.other_bytes)
        yield charged
        if memory.limit_bytes is not None:
            yield GaugeMetricFamily(
                "hayloft_container_memory_limit_bytes", "Limit of the daemon's control group", memory.limit_bytes
            )


class EarlierEndsCollector(Collector):
    """Why earlier daemons of this one's supervisor ended."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "hayloft_daemon_restarts", "Restarts of the daemon by its supervisor", labels=["cause"]
        )
        for cause, count in sorted(self._counts.items()):
            family.add_metric([cause], count)
        yield family


class TierCollector(Collector):
    """What the cluster's cache has done for this daemon."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def collect(self) -> Iterator[Metric]:
        report = self._tier.report()
        requests = CounterMetricFamily(
            "hayloft_tier_requests", "Requests for which the cluster's cache was considered", labels=["result"]
        )
        counts = {"hit": report.hits, "miss": report.misses, "failure": report.failures, "bypass": report.bypassed}
        for result, count in counts.items():
            requests.add_metric([result], count)
        yield requests
        yield CounterMetricFamily(
            "hayloft_tier_bytes", "Bytes received from the cluster's cache", report.received_bytes
        )
        yield GaugeMetricFamily("hayloft_tier_replicas", "Replicas that this node may ask", report.replicas)
        yield GaugeMetricFamily(
            "hayloft_tier_replicas_left_alone", "Of these, replicas that have failed a moment ago", report.left_alone
        )


def _space(report: DaemonReport) -> Iterator[Metric]:
    yield CounterMetricFamily("hayloft_cache_evicted_objects", "Objects evicted", report.cache_evicted_objects)
    of_disk = "the file system of the cache"
    yield GaugeMetricFamily("hayloft_cache_free_bytes", f"Free bytes of {of_disk}", report.cache_free_bytes)
    yield GaugeMetricFamily(
        "hayloft_cache_free_floor_bytes", f"Bytes of {of_disk} that stay free", report.cache_free_floor_bytes
    )
    if report.cache_inodes:
        yield GaugeMetricFamily("hayloft_cache_inodes", f"Inodes of {of_disk}", report.cache_inodes)
        yield GaugeMetricFamily("hayloft_cache_free_inodes", f"Free inodes of {of_disk}", report.cache_free_inodes)
        yield GaugeMetricFamily(
            "hayloft_cache_free_floor_inodes", f"Inodes of {of_disk} that stay free", report.cache_free_floor_inodes
        )


def _integrity(report: DaemonReport) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "hayloft_cache_disk_in_use", "0 while the cache disk keeps failing", int(report.cache_disk_in_use)
    )
    yield CounterMetricFamily(
        "hayloft_cache_disk_failures", "Failed reads, writes and checks of object files", report.cache_disk_failures
    )
    yield CounterMetricFamily(
        "hayloft_cache_bad_chunks", "Chunks on the cache disk with a wrong checksum", report.cache_bad_chunks
    )
    yield CounterMetricFamily("hayloft_scrubbed_bytes", "Bytes that the scrubber has read", report.scrubbed_bytes)
    yield CounterMetricFamily(
        "hayloft_checksum_mismatches", "Objects received with a wrong checksum", report.checksum_mismatches
    )


def _read_errors(report: DaemonReport) -> Metric:
    family = CounterMetricFamily("hayloft_read_errors", "Opens and reads of files that failed", labels=["errno"])
    for name, count in sorted(report.read_errors.items()):
        family.add_metric([name], count)
    return family


@contextmanager
def serving_metrics(
    listener: socket.socket,
    data_plane: DataPlane,
    earlier_ends: Mapping[str, int] | None = None,
    tier: Tier | None = None,
) -> Iterator[None]:
    """Serves /metrics on a thread during the body, and closes the listener. ``earlier_ends``: counts by cause."""
    registry = CollectorRegistry()
    registry.register(EarlierEndsCollector(earlier_ends or {}))
    registry.register(DaemonCollector(data_plane))
    registry.register(ControlGroupCollector())
    if tier is not None:
        registry.register(TierCollector(tier))
    page = partial(HttpPage, content_type=CONTENT_TYPE_LATEST)
    server = PageServer(listener, {"/metrics": lambda: page(generate_latest(registry))}, name="metrics")
    server.start()
    try:
        yield
    finally:
        server.close()
