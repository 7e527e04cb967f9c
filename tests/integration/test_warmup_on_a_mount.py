"""Warmups by a real daemon, from a real store, through the API, the attribute and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.errors import InvalidParameter, VolumeNotFound
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import (
    Bucket,
    DaemonBench,
    digest_of_objects,
    digest_of_tree,
    made_bucket,
    stop,
    wait_until,
)
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

VOLUME = "volume-1"
MIB = 1 << 20


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "warm", small=40, large=3)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


def start(bench: DaemonBench, *include: str, bandwidth_bytes: int = 0, concurrency: int = 0) -> WarmupReport:
    with bench.client() as client:
        return client.start_warmup(WarmupRequest(VOLUME, include, bandwidth_bytes, concurrency))


def report(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        return client.warmup(VOLUME)


def finish(bench: DaemonBench) -> WarmupReport:
    with bench.client() as client:
        return wait_until_warm(client, VOLUME, 60)


@pytest.mark.promise("S72")
def test_a_warm_volume_is_read_without_requests_to_the_store(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    assert report(bench).state is WarmupState.NONE
    assert start(bench).state in (WarmupState.RUNNING, WarmupState.COMPLETE)
    done = finish(bench)
    assert (done.done_bytes, done.total_bytes, done.fetched_bytes) == (bucket.total_bytes,) * 3
    assert (done.done_files, done.total_files, done.failed_files) == (len(bucket.objects), len(bucket.objects), 0)
    assert done.state is WarmupState.COMPLETE
    assert not done.include
    assert bench.origin_bytes() == bucket.total_bytes
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    assert bench.origin_bytes() == bucket.total_bytes
    assert (
        os.getxattr(mount_point / "large/0.bin", "user.hayloft.cached").split(b"/")[0]
        == str(len(bucket.objects["large/0.bin"])).encode()
    )


def test_globs_select_the_files_that_are_fetched(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    start(bench, "small/*", "large/1.bin")
    done = finish(bench)
    expected = {path: data for path, data in bucket.objects.items() if path[0] == "s" or path == "large/1.bin"}
    assert (done.total_files, done.total_bytes) == (len(expected), sum(map(len, expected.values())))
    assert bench.origin_bytes() == done.total_bytes
    assert done.include
    assert (mount_point / "large/1.bin").read_bytes() == bucket.objects["large/1.bin"]
    assert bench.origin_bytes() == done.total_bytes


@pytest.mark.promise("S287")
def test_globs_that_match_no_file_are_no_success(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    bench.mount(bucket, warmup="background", warmupInclude="larg/*")
    wait_until(lambda: report(bench).state is not WarmupState.RUNNING)
    failed = report(bench)
    assert (failed.state, failed.total_files) == (WarmupState.FAILED, 0)
    assert "no file of the volume matches 'larg/*'" in failed.message
    typed = warm(bench, "--include=no/such/*,small*/nothing")
    assert typed.returncode == 1
    assert "no file of the volume matches 'no/such/*', 'small*/nothing'" in typed.stderr
    assert warm(bench, "--include=no/such/*,large/*").returncode == 0


@pytest.mark.promise("S77")
def test_the_warmup_of_a_killed_daemon_is_resumed_by_the_next_one(bench: DaemonBench, bucket: Bucket) -> None:
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    start(bench, "large/*", bandwidth_bytes=32 * MIB, concurrency=1)
    wait_until(lambda: report(bench).done_files)
    assert report(bench).state is WarmupState.RUNNING
    stop(daemon, signal.SIGKILL)
    bench.start()
    resumed = report(bench)
    assert resumed.include == ("large/*",)
    assert finish(bench).state is WarmupState.COMPLETE
    rest = sum(len(data) for path, data in bucket.objects.items() if path in ("large/1.bin", "large/2.bin"))
    assert bench.origin_bytes() <= rest, "what was complete when the first daemon was killed is not fetched again"
    before = bench.origin_bytes()
    assert (mount_point / "large/2.bin").read_bytes() == bucket.objects["large/2.bin"]
    assert bench.origin_bytes() == before


@pytest.mark.promise("S77")
def test_a_warmup_that_was_cancelled_or_has_ended_stays_so_after_a_restart(bench: DaemonBench, bucket: Bucket) -> None:
    daemon = bench.start()
    bench.mount(bucket, warmup="background", warmupBandwidth="1MiB/s")
    assert report(bench).state is WarmupState.RUNNING
    with bench.client() as client:
        cancelled = client.cancel_warmup(VOLUME)
    assert cancelled.state is WarmupState.CANCELLED
    stop(daemon, signal.SIGKILL)
    daemon = bench.start()
    assert report(bench).state is WarmupState.CANCELLED
    assert bench.origin_bytes() == 0
    start(bench, "small/*", bandwidth_bytes=1 << 30)
    done = finish(bench)
    stop(daemon)
    bench.start()
    found = report(bench)
    assert (found.state, found.include, found.done_bytes) == (WarmupState.COMPLETE, ("small/*",), done.done_bytes)
    assert bench.origin_bytes() == 0


def test_an_attribute_starts_a_warmup_that_is_resumed_after_a_restart(bench: DaemonBench, bucket: Bucket) -> None:
    daemon = bench.start()
    bench.mount(bucket, warmup="background", warmupInclude="large/*", warmupBandwidth="24MiB/s")
    assert report(bench).state is WarmupState.RUNNING
    wait_until(lambda: report(bench).done_bytes > 4 * MIB)
    stop(daemon)
    bench.start()
    assert finish(bench).include == ("large/*",)


def test_a_volume_that_is_unmounted_or_mounted_again_has_no_trace_of_the_last_warmup(
    bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    start(bench, bandwidth_bytes=MIB)
    bench.unmount(mount_point)
    with pytest.raises(VolumeNotFound):
        report(bench)
    with pytest.raises(VolumeNotFound):
        start(bench)
    wait_until(lambda: not list((bench.directory / "state" / "mounts").glob("*.warmup*")))
    bench.mount(bucket)
    assert report(bench).state is WarmupState.NONE


@pytest.mark.promise("S79")
def test_another_request_replaces_the_running_warmup(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    bench.mount(bucket)
    start(bench, "large/*", bandwidth_bytes=MIB)
    start(bench, "small/*")
    done = finish(bench)
    assert done.include == ("small/*",)
    with pytest.raises(InvalidParameter, match="include"):
        start(bench, "[")
    with pytest.raises(InvalidParameter, match="bandwidth_bytes"):
        start(bench, bandwidth_bytes=5)


def test_the_warmup_of_a_dataset_that_does_not_fit_stops_when_the_cache_is_full(
    bench: DaemonBench, bucket: Bucket
) -> None:
    bench.flags = ("--cache-limit=24MiB",)
    bench.start()
    mount_point = bench.mount(bucket)
    start(bench)
    wait_until(lambda: report(bench).state is not WarmupState.RUNNING)
    ended = report(bench)
    assert ended.state is WarmupState.FULL
    assert "--cache-limit" in ended.message
    assert ended.done_bytes <= 24 * MIB
    assert bench.origin_bytes() <= 24 * MIB, "nothing was thrown out to be fetched again"
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


def warm(bench: DaemonBench, *arguments: str, volume: str = VOLUME) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "csi_driver.cli", "warm", f"--volume={volume}", *arguments]
    socket = {"HAYLOFT_DAEMON_SOCKET": str(bench.run / "cache.sock")}
    return subprocess.run(command, env={**os.environ, **socket}, capture_output=True, text=True, timeout=60)


def test_the_command_starts_monitors_and_cancels_a_warmup(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    bench.mount(bucket)
    begun = warm(bench, "--include=large/*", "--bandwidth=1MiB/s", "--no-wait", "--json")
    assert (begun.returncode, begun.stderr) == (0, "")
    assert json.loads(begun.stdout)["state"] == "running"
    status = warm(bench, "--status")
    assert status.returncode == 0
    assert status.stdout.startswith(f"volume {VOLUME}: running, ")
    cancelled = warm(bench, "--cancel", "--json")
    assert (cancelled.returncode, json.loads(cancelled.stdout)["state"]) == (0, "cancelled")
    assert warm(bench, "--status").returncode == 1, "it is not warm and will not be"
    done = warm(bench)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"volume {VOLUME}: complete, ")
    assert f"{len(bucket.objects)} of {len(bucket.objects)} files" in done.stdout
    assert bench.origin_bytes() >= bucket.total_bytes


def test_the_command_reports_an_error_in_one_line(bench: DaemonBench) -> None:
    bench.start()
    for arguments, volume, code in (
        ((), "other", 1),
        (("--bandwidth=fast",), VOLUME, 2),
        (("--status", "--cancel"), VOLUME, 2),
        (("--daemon-socket=/nowhere/cache.sock",), VOLUME, 3),
    ):
        failed = warm(bench, *arguments, volume=volume)
        assert (failed.returncode, failed.stdout) == (code, ""), failed
        assert failed.stderr.startswith("hayloft: ")
        assert len(failed.stderr.splitlines()) == 1
