"""The metrics of a daemon agree with what its readers did: a real store, a real mount, and exact numbers."""

from __future__ import annotations

import mmap
import os
import random
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

MIB = 1 << 20
LARGE_BYTES = 6 * MIB
SMALL_BYTES = 100_000
FLAGS = (
    *("--no-passthrough", "--no-openless", "--fetch-chunks=1", "--readahead-fetches=0", "--free-floor=0"),
    "--metrics-address=127.0.0.1",
)
"""A read of one chunk is then one request to the store, and every read reaches the daemon."""

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class Metrics:
    """One scrape."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        self._values = {
            (name, frozenset(filter(None, labels.replace('"', "").split(",")))): float(value)
            for name, labels, value in _LINE.findall(text)
        }

    def __getitem__(self, name: str) -> float:
        """Such as ``reads_total path=disk``."""
        family, *labels = name.split()
        return self._values["hayloft_" + family, frozenset(labels)]

    def names_of_volumes(self) -> set[str]:
        labels = {label for _, labels in self._values for label in labels}
        return {label.removeprefix("volume=") for label in labels if label.startswith("volume=")}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bench(tmp_path: Path, port: int) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, flags=(*FLAGS, f"--metrics-port={port}"), keep=False)
    bench.start()
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    draw = random.Random(20)
    seaweed.create_bucket("exact-metrics")
    bucket = Bucket(seaweed, "exact-metrics", {})
    bucket.fill({"large": draw.randbytes(LARGE_BYTES), "small": draw.randbytes(SMALL_BYTES)})
    return bucket


def read_past_the_page_cache(path: Path) -> bytes:
    """Each preadv is one READ of the kernel."""
    pieces = []
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            for offset in range(0, LARGE_BYTES, MIB):
                assert os.preadv(file, [buffer], offset) == MIB
                pieces.append(bytes(buffer))
    finally:
        os.close(file)
    return b"".join(pieces)


def cached_reads(metrics: Metrics) -> tuple[float, float]:
    """Reads and bytes, from memory or from the disk: which of the two, the machine decides."""
    paths = ("path=memory", "path=disk")
    return sum(metrics[f"reads_total {path}"] for path in paths), sum(
        metrics[f"read_bytes_total {path}"] for path in paths
    )


@pytest.mark.promise("S600")
def test_bytes_hits_and_requests_are_exact(bench: DaemonBench, bucket: Bucket, port: int) -> None:
    mount_point = bench.mount(bucket, "pvc-1", verifyChecksums="off")
    before = Metrics(port)
    assert before["origin_requests_total"] == 0
    assert before["daemon_calls_total code=OK method=Mount"] == 1

    # Cold: six chunks, each a read that waits for one request.
    assert read_past_the_page_cache(mount_point / "large") == bucket.objects["large"]
    # A reader may have its bytes a moment before its request has ended.
    wait_until(lambda: Metrics(port)["origin_results_total result=ok"] == 6)
    cold = Metrics(port)
    assert cold["reads_total path=store"] == 6
    assert cold["read_bytes_total path=store"] == LARGE_BYTES
    assert cached_reads(cold) == (0, 0)
    assert cold["origin_requests_total"] == 6
    assert cold["origin_retries_total"] == 0
    assert cold["origin_bytes_total"] == LARGE_BYTES
    assert cold["origin_response_seconds_count"] == 6
    assert cold["wait_seconds_count reason=store"] == 6
    assert cold["saved_bytes"] == 0
    assert cold["volume_stall_seconds_total volume=pvc-1"] > 0
    wait_until(lambda: Metrics(port)["cache_written_bytes_total"] == LARGE_BYTES)
    assert Metrics(port)["cache_skipped_bytes_total"] == 0

    # Warm: six reads, no request.
    assert read_past_the_page_cache(mount_point / "large") == bucket.objects["large"]
    warm = Metrics(port)
    assert cached_reads(warm) == (6, LARGE_BYTES)
    assert warm["reads_total path=store"] == 6
    assert warm["origin_requests_total"] == 6
    assert warm["saved_bytes"] == LARGE_BYTES

    # A small object is fetched with one request when it is opened.
    assert (mount_point / "small").read_bytes() == bucket.objects["small"]
    small = Metrics(port)
    assert small["origin_requests_total"] == 7
    assert small["origin_bytes_total"] == LARGE_BYTES + SMALL_BYTES
    assert small["volume_origin_bytes_total volume=pvc-1"] == LARGE_BYTES + SMALL_BYTES
    assert cached_reads(small)[1] == LARGE_BYTES + SMALL_BYTES
    assert small["opens_total mode=served"] == 3
    assert small["opens_total mode=passthrough"] == 0
    assert small["saved_bytes"] == LARGE_BYTES

    # What a volume did stays in the totals when it is gone.
    bench.unmount(mount_point, "pvc-1")
    after = Metrics(port)
    assert after.names_of_volumes() == set()
    assert after["read_bytes_total path=store"] == LARGE_BYTES
    assert after["saved_bytes"] == LARGE_BYTES


@pytest.mark.promise("S600")
def test_two_volumes_of_one_dataset_are_told_apart(bench: DaemonBench, bucket: Bucket, port: int) -> None:
    first, second = (
        bench.mount(bucket, "pvc-1", verifyChecksums="off"),
        bench.mount(bucket, "pvc-2", verifyChecksums="off"),
    )
    read_past_the_page_cache(first / "large")
    read_past_the_page_cache(second / "large")
    metrics = Metrics(port)
    assert metrics["volume_origin_bytes_total volume=pvc-1"] == LARGE_BYTES
    assert metrics["volume_origin_bytes_total volume=pvc-2"] == 0, "each byte is fetched once"
    assert metrics["volume_read_bytes_total path=store volume=pvc-2"] == 0
    assert metrics["origin_bytes_total"] == LARGE_BYTES
    assert metrics["volume_bytes volume=pvc-1"] == LARGE_BYTES + SMALL_BYTES
    assert metrics.names_of_volumes() == {"pvc-1", "pvc-2"}


@pytest.mark.promise("S600")
def test_opens_that_the_kernel_reads_by_itself_are_counted_with_their_sizes(
    tmp_path: Path, bucket: Bucket, port: int
) -> None:
    bench = DaemonBench(tmp_path, flags=("--no-openless", "--free-floor=0", f"--metrics-port={port}"), keep=False)
    try:
        bench.start()
        mount_point = bench.mount(bucket, "pvc-1", verifyChecksums="off")
        for _ in range(3):
            assert (mount_point / "small").read_bytes() == bucket.objects["small"]
        metrics = Metrics(port)
        with bench.client() as client:
            passthrough = client.report().passthrough
        assert metrics["opens_total mode=passthrough"] == (3 if passthrough else 0)
        assert metrics["passthrough_bytes_total"] == (3 * SMALL_BYTES if passthrough else 0)
        assert metrics["saved_bytes"] == (2 * SMALL_BYTES if passthrough else metrics["saved_bytes"])
        assert metrics["origin_requests_total"] == 1
        assert metrics["wait_seconds_count reason=open"] == 1
    finally:
        bench.close()
