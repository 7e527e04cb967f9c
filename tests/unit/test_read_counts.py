"""Counts of reads, requests and calls: values, without any server or mount."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from csi_driver.daemon.measurements import Measurements, VolumeMeasurements
from csi_driver.daemon.volume_read_counts import OTHERS, VolumeReadCounts
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectNotFound, TransientStoreError
from csi_driver.model.read_counts import ReadCounts, WaitsFor
from csi_driver.objects.concurrency_limit import Limited
from csi_driver.objects.mirrors.mirror_counts import PlaceNumbers
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.objects.retrying import Retrying, RetryPolicy
from csi_driver.objects.tier.tier_counts import TierCounts
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.volumes.data_plane import WarmupReport, WarmupState
from csi_driver.wiring.exposition import metrics_page
from csi_driver.wiring.metric_table import ALL, OF_DAEMON
from csi_driver.wiring.metrics import csi_metrics_page, daemon_values
from tests.support.data_planes import InMemoryDataPlane
from tests.support.scripted_store import ScriptedStore


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.promise("S602")
def test_stalls_are_counted_while_a_reader_still_waits() -> None:
    clock = Clock()
    counts = ReadCounts(clock)
    wait = counts.begin_wait(WaitsFor.STORE)
    clock.now_s += 7
    assert counts.numbers().stall_s == 7
    assert counts.numbers().store_reads == 0
    wait.end(1000)
    wait.end(1000)  # by a second thread that answers the same read
    clock.now_s += 5
    numbers = counts.numbers()
    assert (numbers.stall_s, numbers.store_reads, numbers.store_bytes) == (7, 1, 1000)
    assert sum(numbers.store_waits.counts) == 1


@pytest.mark.promise("S602")
def test_a_read_from_the_disk_is_no_stall_and_a_failed_one_no_read() -> None:
    clock = Clock()
    counts = ReadCounts(clock)
    of_disk, failed = counts.begin_wait(WaitsFor.DISK), counts.begin_wait(WaitsFor.STORE)
    clock.now_s += 2
    of_disk.end(10)
    failed.end()
    numbers = counts.numbers()
    assert (numbers.disk_reads, numbers.disk_bytes, numbers.store_reads) == (1, 10, 0)
    assert numbers.stall_s == 2, "that of the read that failed"


@pytest.mark.promise("S601")
def test_the_number_of_volumes_is_bounded_and_totals_hold_all() -> None:
    counts = VolumeReadCounts(most_volumes=2)
    for number in range(5):
        counts.begin(f"m{number}", f"pvc-{number}").answered_at_once(10**number)
    total, volumes = counts.numbers()
    assert {name: each.memory_bytes for name, each in volumes.items()} == {"pvc-0": 1, "pvc-1": 10, OTHERS: 11100}
    assert total.memory_bytes == 11111
    counts.end("m0")
    counts.end("m0")
    counts.end("m3")
    total, volumes = counts.numbers()
    assert sorted(volumes) == [OTHERS, "pvc-1"]
    assert total.memory_bytes == 11111, "what has ended stays in the total"
    counts.begin("m5", "pvc-5").answered_at_once(1)
    assert "pvc-5" in counts.numbers()[1], "its place is free again"


@pytest.mark.promise("S601")
def test_two_mounts_of_a_volume_are_one_volume() -> None:
    counts = VolumeReadCounts()
    first, second = counts.begin("m1", "pvc"), counts.begin("m2", "pvc")
    assert first is second
    counts.end("m1")
    second.answered_at_once(3)
    assert counts.numbers()[1]["pvc"].memory_bytes == 3


@pytest.mark.promise("S601")
def test_no_volume_is_named_where_the_operator_wants_none() -> None:
    counts = VolumeReadCounts(most_volumes=0)
    counts.begin("m1", "pvc").answered_at_once(3)
    assert list(counts.numbers()[1]) == [OTHERS]
    assert counts.name_of("m1") is None


def test_counts_of_many_threads_are_exact() -> None:
    counts = ReadCounts()

    def read() -> None:
        for _ in range(2000):
            counts.answered_at_once(3)
            counts.begin_wait(WaitsFor.STORE).end(5)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = counts.numbers()
    assert (numbers.memory_reads, numbers.memory_bytes) == (16_000, 48_000)
    assert (numbers.store_reads, numbers.store_bytes) == (16_000, 80_000)


def test_requests_are_counted_by_result_and_retries_apart() -> None:
    store, counts = ScriptedStore({"key": bytes(100)}), RequestCounts()
    policy = RetryPolicy(30, sleep=lambda _: None, retried=counts.retried)
    limited = Retrying(Limited(store, 2, counts), 30, policy)
    store.failures = [TransientStoreError("busy"), TransientStoreError("busy")]
    assert b"".join(limited.read_range("key", ByteRange(0, 100), if_match=None)) == bytes(100)
    with pytest.raises(ObjectNotFound):
        limited.stat("other")
    cut = limited.read_range("key", ByteRange(0, 100), if_match=None)
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    numbers = counts.numbers()
    assert numbers.results == {"TransientStoreError": 2, "ok": 1, "ObjectNotFound": 1, "abandoned": 1}
    assert numbers.retries == 2
    assert sum(numbers.waits.counts) == 2, "those that had an answer"


def test_calls_are_on_the_page_of_the_csi_processes() -> None:
    calls = CallCounts()
    calls.add("NodeStageVolume", "OK", 0.2)
    calls.add("NodeStageVolume", "UNAVAILABLE", 0.004)
    page = csi_metrics_page(calls).body.decode()
    assert 'hayloft_csi_calls_total{code="OK",method="NodeStageVolume"} 1.0' in page
    assert 'hayloft_csi_call_seconds_bucket{le="0.005",method="NodeStageVolume"} 1.0' in page
    assert 'hayloft_csi_call_seconds_bucket{le="+Inf",method="NodeStageVolume"} 2.0' in page
    assert "process_open_fds " in page


@pytest.mark.promise("S603")
def test_the_daemon_exports_what_the_table_says_and_nothing_else() -> None:
    counts, requests, calls = VolumeReadCounts(), RequestCounts(), CallCounts()
    counts.begin("m1", "pvc").answered_at_once(1)
    requests.add_result("ok")
    calls.add("Mount", "OK", 1.0)
    reads, volume_reads = counts.numbers()
    warmup = WarmupReport("pvc", WarmupState.RUNNING)
    measured = Measurements(
        reads=reads,
        volume_reads=volume_reads,
        volumes=(VolumeMeasurements("pvc", "s3://b/p/", "team", 10, 5, warmup),),
        requests=requests.numbers(),
        mirrors={"url": PlaceNumbers(1, 2, 3, 4)},
        queued={"fetch": 1},
    )
    plane = InMemoryDataPlane()
    plane.read_errors = {"EIO": 1}
    tier = SimpleNamespace(report=lambda: TierCounts().report(3, 1))
    page = metrics_page(
        lambda: daemon_values(plane, {"SIGKILL": 1}, lambda: measured, calls, tier)  # type: ignore[arg-type]
    )().body.decode()
    exported = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE hayloft_")}
    # prometheus_client names a counter without its ending in the line of its type.
    of_table = {spec.name for spec in OF_DAEMON if spec.name.startswith("hayloft_")}
    assert exported | {"hayloft_container_memory_bytes", "hayloft_container_memory_limit_bytes"} == of_table
    for spec in OF_DAEMON:
        for label in spec.labels if "memory" not in spec.name else ():
            assert f'{label}="' in page


def test_names_keep_the_conventions_of_prometheus() -> None:
    for spec in ALL:
        assert (spec.kind == "counter") == spec.name.endswith("_total"), spec.name
        assert spec.kind != "histogram" or spec.name.endswith("_seconds"), spec.name
        assert spec.help.endswith("."), spec.name
    assert len({spec.name for spec in ALL}) == len(ALL)
