"""Complete files by their first read, and recorded starts that a warmup replays: on real mounts of a real store."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from csi_driver.catalog.trace_format import decode_trace
from csi_driver.cli.trace_command import save
from csi_driver.model.access_trace import AccessTrace
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import InvalidParameter, VolumeNotFound
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

VOLUME = "volume-1"
MIB = 1 << 20
LARGE = 40 * MIB + 17


def filled(seaweed: SeaweedFsServer, name: str, seed: int) -> Bucket:
    draw = random.Random(seed)
    seaweed.create_bucket(name)
    bucket = Bucket(seaweed, name, {})
    bucket.fill(
        {
            "model.safetensors": draw.randbytes(LARGE),
            "tokens.tar": draw.randbytes(LARGE),
            "config.json": draw.randbytes(2_000),
            "unused.json": draw.randbytes(2_000),
        }
    )
    return bucket


@pytest.fixture
def bucket(seaweed: SeaweedFsServer, request: pytest.FixtureRequest) -> Bucket:
    return filled(seaweed, f"trace-{abs(hash(request.node.name)) % 10**8}", 3)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    yield from benches(tmp_path / "first")


@pytest.fixture
def other_node(tmp_path: Path) -> Iterator[DaemonBench]:
    yield from benches(tmp_path / "second")


def benches(directory: Path) -> Iterator[DaemonBench]:
    directory.mkdir()
    bench = DaemonBench(directory)
    bench.start()
    yield bench
    bench.close()


def cached_bytes(path: Path) -> int:
    return int(os.getxattr(path, "user.hayloft.cached").split(b"/")[0])


def read_at(path: Path, offset: int, size_bytes: int = 4096) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size_bytes, offset)
    finally:
        os.close(descriptor)


def finish(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        return wait_until_warm(client, VOLUME, 60)


@pytest.mark.promise("S545")
def test_the_first_read_of_a_file_of_weights_fetches_all_of_it_and_that_of_other_files_does_not(
    bench: DaemonBench, bucket: Bucket
) -> None:
    mount_point = bench.mount(bucket, profile="inference", warmup="none")
    model, tokens = mount_point / "model.safetensors", mount_point / "tokens.tar"
    with tokens.open("rb", buffering=0) as other, model.open("rb", buffering=0) as weights:
        assert os.pread(other.fileno(), 4096, 21 * MIB) == bucket.objects["tokens.tar"][21 * MIB :][:4096]
        assert os.pread(weights.fileno(), 4096, 21 * MIB) == bucket.objects["model.safetensors"][21 * MIB :][:4096]
        wait_until(lambda: cached_bytes(model) == LARGE)
        assert cached_bytes(tokens) < LARGE / 2, "a random read of it fetches what it needs, and the kernel's readahead"
        fetched = bench.origin_bytes()
        assert os.pread(weights.fileno(), LARGE, 0) == bucket.objects["model.safetensors"]
    assert bench.origin_bytes() == fetched, "each byte was fetched once"


@pytest.mark.promise("S545")
def test_a_fetch_of_a_complete_file_ends_when_its_reader_closes_the_file(bench: DaemonBench, bucket: Bucket) -> None:
    """And the next reader gets the right bytes."""
    mount_point = bench.mount(bucket, wholeFiles="all")
    for name in ("model.safetensors", "tokens.tar"):
        assert read_at(mount_point / name, 30 * MIB) == bucket.objects[name][30 * MIB :][:4096]
        assert (mount_point / name).read_bytes() == bucket.objects[name]
    assert bench.origin_bytes() <= 2 * 2 * LARGE


# -- traces --


def record(bench: DaemonBench, mount_point: Path, output: Path, cached: bool = False) -> AccessTrace:
    """A start-up that reads a part of a large file, and one small file; of ``cached`` files the kernel would read the
    bytes by itself."""
    with bench.client() as client:
        if cached:
            client.start_warmup(WarmupRequest(VOLUME))
            wait_until_warm(client, VOLUME, 60)
        client.start_trace(VOLUME, 60)
        read_at(mount_point / "model.safetensors", 30 * MIB, 2 * MIB)
        read_at(mount_point / "model.safetensors", 0, 100)
        (mount_point / "config.json").read_bytes()
        assert save(client, VOLUME, output) == 0
    return decode_trace("--output", str(output), output.read_bytes())


@pytest.mark.promise("S547")
@pytest.mark.parametrize("cached", [False, True])
def test_a_recording_names_what_was_read_in_the_order_of_the_first_reads(
    bench: DaemonBench, bucket: Bucket, tmp_path: Path, cached: bool
) -> None:
    mount_point = bench.mount(bucket, view="fuse", opens="daemon", mountOptions="read_ahead_kb=128")
    trace = record(bench, mount_point, tmp_path / "start.arrow", cached)
    assert trace.dataset_url == f"s3://{bucket.name}/data/"
    assert list(dict.fromkeys(each.path for each in trace.ranges)) == [b"model.safetensors", b"config.json"]
    first, *_ = trace.ranges
    assert first.start <= 30 * MIB < 32 * MIB <= max(each.stop for each in trace.ranges if each.start >= first.start)
    assert trace.total_bytes < LARGE / 2, "the kernel reads ahead, and not that far"
    table = pa.ipc.open_stream((tmp_path / "start.arrow").read_bytes()).read_all()
    assert table.column_names == ["path", "etag", "size_bytes", "mtime_ns", "start", "stop", "time_ms"]
    assert table.schema.metadata[b"hayloft.trace"] == b"1"


@pytest.mark.promise("S548")
def test_a_warmup_by_a_trace_fetches_what_it_names_so_that_the_next_start_needs_no_store(
    bench: DaemonBench, other_node: DaemonBench, bucket: Bucket, tmp_path: Path
) -> None:
    trace = record(bench, bench.mount(bucket, view="fuse"), tmp_path / "start.arrow")
    bucket.put("traces/start.arrow", (tmp_path / "start.arrow").read_bytes())
    mount_point = other_node.mount(bucket, warmup="memory", warmupTrace="traces/start.arrow", exclude="traces/*")
    done = finish(other_node)
    assert (done.state, done.done_files, done.total_files) == (WarmupState.COMPLETE, 2, 2)
    assert done.message == ""
    assert done.total_bytes == done.done_bytes == done.fetched_bytes == done.memory_bytes == done.hot_bytes
    assert trace.total_bytes <= done.total_bytes < LARGE
    assert done.total_bytes <= trace.total_bytes + 2 * len(trace.ranges) * CHUNK_BYTES
    fetched = other_node.origin_bytes()
    for each in trace.ranges:
        read = read_at(mount_point / each.path.decode(), each.start, each.stop - each.start)
        assert read == bucket.objects[each.path.decode()][each.start : each.stop]
    # The kernel reads ahead of these reads, too, which may need more.
    assert cached_bytes(mount_point / "unused.json") == 0
    assert cached_bytes(mount_point / "tokens.tar") == 0
    assert fetched == done.fetched_bytes


@pytest.mark.promise("S549")
def test_of_objects_that_changed_since_nothing_is_fetched_and_the_report_says_so(
    bench: DaemonBench, other_node: DaemonBench, bucket: Bucket, tmp_path: Path
) -> None:
    record(bench, bench.mount(bucket, view="fuse"), tmp_path / "start.arrow")
    bucket.put("traces/start.arrow", (tmp_path / "start.arrow").read_bytes())
    bucket.put("model.safetensors", random.Random(4).randbytes(LARGE))
    mount_point = other_node.mount(bucket, warmup="background", warmupTrace="traces/start.arrow", exclude="traces/*")
    done = finish(other_node)
    assert (done.state, done.done_files, done.total_files) == (WarmupState.COMPLETE, 1, 1)
    assert done.message.startswith("1 of 2 files of the trace have changed since it was recorded, or are gone")
    assert "model.safetensors" in done.message
    assert (cached_bytes(mount_point / "model.safetensors"), cached_bytes(mount_point / "config.json")) == (0, 2_000)


@pytest.mark.promise("S549")
def test_a_trace_of_another_dataset_or_none_is_refused_by_name_and_nothing_is_mounted(
    bench: DaemonBench, seaweed: SeaweedFsServer, bucket: Bucket, tmp_path: Path
) -> None:
    record(bench, bench.mount(bucket, view="fuse"), tmp_path / "start.arrow")
    other = filled(seaweed, f"{bucket.name}-other", 9)
    other.put("start.arrow", (tmp_path / "start.arrow").read_bytes())
    other.put("no-trace.arrow", b"something else")
    said = {
        "start.arrow": rf"a trace of s3://{other.name}/data/.* recorded of s3://{bucket.name}/data/",
        "no-trace.arrow": "a file that `hayloft trace record` has written",
        "nothing.arrow": f"an object below s3://{other.name}/data/; there is none",
    }
    for path, expected in said.items():
        with pytest.raises(InvalidParameter, match=rf"^warmupTrace: '{path}'.*{expected}"):
            bench.mount(other, "volume-2", warmup="wait", warmupTrace=path)
    with bench.client() as client, pytest.raises(VolumeNotFound):
        client.volume("volume-2")


@pytest.mark.promise("S547")
def test_the_command_records_until_it_is_interrupted(bench: DaemonBench, bucket: Bucket, tmp_path: Path) -> None:
    mount_point = bench.mount(bucket, view="fuse")
    output = tmp_path / "start.arrow"
    command = [sys.executable, "-m", "csi_driver.cli", "trace", "record", f"--volume={VOLUME}", f"--output={output}"]
    command.append(f"--daemon-socket={bench.run / 'cache.sock'}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "reads are recorded" in process.stderr.readline()
        (mount_point / "config.json").read_bytes()
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, complaints) == (0, "")
    assert "upload it below the dataset's URL" in said
    assert [each.path for each in decode_trace("", "", output.read_bytes()).ranges] == [b"config.json"]


@pytest.mark.promise("S547")
def test_a_recording_without_a_read_writes_no_file_and_says_what_to_do(
    bench: DaemonBench, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.mount(bucket, view="fuse")
    with bench.client() as client:
        with pytest.raises(InvalidParameter, match="a volume whose reads are recorded"):
            client.stop_trace(VOLUME)
        with pytest.raises(InvalidParameter, match="at most 3600 seconds"):
            client.start_trace(VOLUME, 10_000)
        client.start_trace(VOLUME, 60)
        assert save(client, VOLUME, tmp_path / "start.arrow") == 1
    assert "set view: fuse" in capsys.readouterr().err
    assert not (tmp_path / "start.arrow").exists()
