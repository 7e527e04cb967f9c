"""``warmup: memory`` on a real mount: the pages of cached files are in memory before a program maps them."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.errors import InvalidParameter
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm
from hayloft_bench.run.page_cache import cached_share, evict, write_out
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, stop, wait_until
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

VOLUME = "volume-1"
MIB = 1 << 20


def safetensors(draw: random.Random, tensors: int, tensor_bytes: int) -> bytes:
    places = {
        f"layer.{number}": {
            "dtype": "F16",
            "shape": [tensor_bytes // 2],
            "data_offsets": [number * tensor_bytes, (number + 1) * tensor_bytes],
        }
        for number in range(tensors)
    }
    head = json.dumps(places).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + draw.randbytes(tensors * tensor_bytes)


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    draw = random.Random(18)
    seaweed.create_bucket("memory")
    bucket = Bucket(seaweed, "memory", {})
    objects = {f"model-{number}.safetensors": safetensors(draw, 6, 4 * MIB) for number in range(2)}
    objects |= {"config.json": draw.randbytes(3_000), "tokens.idx": draw.randbytes(9 * MIB)}
    bucket.fill(objects)
    return bucket


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


def report(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        return client.warmup(VOLUME)


def finish(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        return wait_until_warm(client, VOLUME, 60)


def warm_into_memory(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        client.start_warmup(WarmupRequest(VOLUME, into_memory=True))
    return finish(bench)


def object_files(bench: DaemonBench) -> list[Path]:
    return [path for path in (bench.cache / "objects").rglob("*") if path.is_file()]


def make_cold(bench: DaemonBench, *also: Path) -> None:
    write_out(bench.cache)
    evict([*also, *object_files(bench)])


def mapped_share(path: Path) -> float:
    """Pages of a file that are in memory for a program that maps it, by mincore(2)."""
    return cached_share([path])


@pytest.mark.promise("S540")
def test_the_memory_map_of_a_model_finds_its_pages_after_a_warmup_into_memory(
    bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    mount_point = bench.mount(bucket, warmup="background", opens="daemon")
    finish(bench)
    models = sorted(mount_point.glob("*.safetensors"))
    make_cold(bench, *models)
    assert cached_share(object_files(bench)) < 0.1, "the state before the warmup into memory"
    done = warm_into_memory(bench)
    assert (done.state, done.memory_bytes, done.hot_bytes) == (WarmupState.COMPLETE, *(bucket.total_bytes,) * 2)
    assert cached_share(object_files(bench)) == 1.0
    fetched = bench.origin_bytes()
    for path in models:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as model:
            assert model[:] == bucket.objects[path.name]
    assert bench.origin_bytes() == fetched


@pytest.mark.promise("S540")
def test_a_file_that_is_passed_through_is_mapped_from_the_pages_that_were_read_in(
    bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    with bench.client() as client:
        mount_point = bench.mount(bucket, warmup="background", opens="daemon")
        finish(bench)
        if not client.report().passthrough:
            pytest.skip("no passthrough on this kernel: a mount has pages of its own")
    make_cold(bench)
    warm_into_memory(bench)
    path = mount_point / "model-0.safetensors"
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert pages_in_memory(descriptor, len(bucket.objects[path.name])) == 1.0, "before the first access to a page"
    finally:
        os.close(descriptor)


def pages_in_memory(descriptor: int, size_bytes: int) -> float:
    """By mincore(2), of a map of the mount, that nothing has touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    pages = ctypes.create_string_buffer(-(-size_bytes // mmap.PAGESIZE))
    assert libc.mincore(address, size_bytes, pages) == 0
    libc.munmap(address, size_bytes)
    return sum(byte & 1 for byte in pages.raw) / len(pages.raw)


@pytest.mark.promise("S541")
def test_a_volume_with_warmup_memory_reads_the_chosen_files_in_and_no_others(
    bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    bench.mount(bucket, warmup="memory", warmupMemoryInclude="*.safetensors")
    done = finish(bench)
    weights = sum(len(data) for path, data in bucket.objects.items() if path.endswith(".safetensors"))
    assert (done.state, done.done_bytes) == (WarmupState.COMPLETE, bucket.total_bytes), "the bytes of all are cached"
    assert (done.memory_bytes, done.hot_bytes) == (weights, weights)


@pytest.mark.promise("S542")
@pytest.mark.parametrize("percent", ["0", "101"])
def test_a_share_beyond_the_machine_is_refused_by_the_name_of_its_flag(tmp_path: Path, percent: str) -> None:
    command = [sys.executable, "-m", "csi_driver.cli", "cache", f"--socket={tmp_path}/s", f"--cache-dir={tmp_path}"]
    command += [f"--state-dir={tmp_path}/state", f"--registry={tmp_path}/registry"]
    found = subprocess.run(
        [*command, f"--warmup-memory-percent={percent}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 2
    assert "--warmup-memory-percent" in found.stderr
    assert percent in found.stderr


@pytest.mark.promise("S543")
def test_a_daemon_that_is_replaced_resumes_a_warmup_into_memory_and_keeps_its_result(
    bench: DaemonBench, bucket: Bucket
) -> None:
    daemon = bench.start()
    bench.mount(bucket, warmup="memory", warmupBandwidth="8MiB/s")
    wait_until(lambda: report(bench).done_bytes)
    stop(daemon, signal.SIGKILL)
    daemon = bench.start()
    with bench.client() as client:
        client.start_warmup(WarmupRequest(VOLUME, into_memory=True, bandwidth_bytes=1 << 30))
    done = finish(bench)
    assert done.hot_bytes == bucket.total_bytes
    stop(daemon, signal.SIGKILL)
    bench.start()
    assert report(bench).hot_bytes == bucket.total_bytes


@pytest.mark.promise("S541")
def test_a_report_counts_again_what_is_in_memory(bench: DaemonBench, bucket: Bucket) -> None:
    """The kernel may have dropped pages since the end of the warmup."""
    bench.start()
    bench.mount(bucket, warmup="memory")
    assert finish(bench).hot_bytes == bucket.total_bytes
    make_cold(bench)
    wait_until(lambda: report(bench).hot_bytes < bucket.total_bytes)
    assert report(bench).state is WarmupState.COMPLETE


@pytest.mark.promise("S541")
def test_the_command_shows_what_is_in_memory_and_the_metrics_count_it(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    bench.mount(bucket)
    command = [sys.executable, "-m", "csi_driver.cli", "warm", f"--volume={VOLUME}", "--memory"]
    found = subprocess.run(
        [*command, f"--daemon-socket={bench.run / 'cache.sock'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert " in memory" in found.stdout
    with bench.client() as client:
        counted = client.report()
    assert counted.warmup_hot_bytes == bucket.total_bytes
    make_cold(bench)
    with bench.client() as client:
        read_before = client.report().warmup_memory_read_bytes
        warm_into_memory(bench)
        assert client.report().warmup_memory_read_bytes - read_before == bucket.total_bytes


def test_a_bad_request_is_refused(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    bench.mount(bucket)
    with bench.client() as client, pytest.raises(InvalidParameter, match=r"^trace: '\.\./x'"):
        client.start_warmup(WarmupRequest(VOLUME, trace="../x"))
