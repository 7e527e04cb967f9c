"""The daemon's metrics for Prometheus, read from its report at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi_driver.volumes.data_plane import DaemonReport, DataPlane


class DaemonCollector(Collector):
    """Translates a DaemonReport into metrics."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane

    def collect(self) -> Iterator[Metric]:
        report = self._data_plane.report()
        yield GaugeMetricFamily("hayloft_mounts", "FUSE mounts that the daemon serves", report.mounts)
        yield GaugeMetricFamily("hayloft_cache_used_bytes", "Bytes of objects in the cache", report.cache_used_bytes)
        yield GaugeMetricFamily("hayloft_cache_limit_bytes", "Limit of the cache in bytes", report.cache_limit_bytes)
        yield GaugeMetricFamily("hayloft_resident_bytes", "Resident memory of the daemon", report.resident_bytes)
        yield GaugeMetricFamily("hayloft_warmups", "Running warmups", report.warmups)
        yield CounterMetricFamily("hayloft_warmup_bytes", "Bytes that warmups fetched", report.warmup_bytes)
        yield from _integrity(report)
        yield CounterMetricFamily("hayloft_origin_bytes", "Bytes received from object stores", report.origin_bytes)
        yield CounterMetricFamily("hayloft_origin_requests", "Requests sent to object stores", report.origin_requests)


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


def serve_metrics(port: int, data_plane: DataPlane) -> None:
    """Serves /metrics on a thread until the process ends."""
    registry = CollectorRegistry()
    registry.register(DaemonCollector(data_plane))
    start_http_server(port, registry=registry)
