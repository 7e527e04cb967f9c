"""The cache daemon as its own process: real store, real mount, real restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.fuse import mounting
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EmptyDataset,
    EndpointUnreachable,
    HayloftError,
    MountPointBusy,
    MountPointMissing,
    NotADirectory,
    UnsupportedUrl,
    VolumeConflict,
)
from csi_driver.volumes.data_plane import MountRequest
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


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "dataset", small=60, large=2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


def test_every_byte_is_correct_cold_and_warm_and_is_fetched_once(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    assert bench.origin_bytes() == bucket.total_bytes


@pytest.mark.promise("S83")
def test_the_cache_survives_a_restart(bench: DaemonBench, bucket: Bucket) -> None:
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    digest_of_tree(mount_point)
    bench.unmount(mount_point)
    stop(daemon)
    bench.start()
    assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)
    assert bench.origin_bytes() == 0


@pytest.mark.promise("S86")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_mount_survives_its_daemon_and_is_adopted_by_the_next_one(
    bench: DaemonBench, bucket: Bucket, how: signal.Signals
) -> None:
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    with (mount_point / "large" / "0.bin").open("rb", buffering=0) as cold:
        first = cold.read(1 << 20)
        stop(daemon, how)
        reader = subprocess.Popen(
            [sys.executable, "-c", "import sys; print(len(open(sys.argv[1], 'rb').read()))",
             str(mount_point / "large" / "1.bin")],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        bench.start()
        assert first + cold.read() == bucket.objects["large/0.bin"]
        assert int(reader.communicate(timeout=60)[0]) == len(bucket.objects["large/1.bin"])
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


@pytest.mark.promise("S91")
def test_without_a_keeper_a_stopped_daemon_leaves_no_dead_mount(tmp_path: Path, bucket: Bucket) -> None:
    bench = DaemonBench(tmp_path, keep=False)
    try:
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        stop(daemon)
        assert mounting.find(mount_point) is None
        assert list(mount_point.iterdir()) == []
    finally:
        bench.close()


@pytest.mark.promise("S90")
def test_without_a_keeper_the_next_daemon_unmounts_the_mount_of_a_killed_one(tmp_path: Path, bucket: Bucket) -> None:
    bench = DaemonBench(tmp_path, keep=False)
    try:
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        stop(daemon, signal.SIGKILL)
        bench.start()
        assert mounting.find(mount_point) is None
        assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)
    finally:
        bench.close()


def test_mounting_again_is_success_and_with_other_attributes_a_conflict(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    assert bench.mount(bucket) == bench.mount(bucket)
    with pytest.raises(VolumeConflict):
        bench.mount(bucket, uid="7")


def test_unmounting_again_is_success_and_leaves_no_state(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    bench.unmount(mount_point)
    bench.unmount(mount_point)
    wait_until(lambda: not list((bench.directory / "state" / "mounts").iterdir()), 10)


def test_an_unmount_by_another_process_is_noticed(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    mounting.unmount(mount_point)
    with bench.client() as client:
        wait_until(lambda: client.report().mounts == 0, 10)


def test_small_files_that_were_just_closed_can_be_evicted(tmp_path: Path, bucket: Bucket) -> None:
    """In a cache for half of them: no file is fetched twice in an epoch, and half of them are cached in the next."""
    small = {path: data for path, data in bucket.objects.items() if path.startswith("small/")}
    dataset_bytes = sum(map(len, small.values()))
    bench = DaemonBench(tmp_path, flags=(f"--cache-limit={dataset_bytes // 2}", "--free-floor=0"))
    try:
        bench.start()
        mount_point = bench.mount(bucket, include="small/*")
        assert digest_of_tree(mount_point / "small") == {
            path.removeprefix("small/"): digest for path, digest in digest_of_objects(small).items()
        }
        assert bench.origin_bytes() == dataset_bytes
        digest_of_tree(mount_point)
        assert bench.origin_bytes() < 1.6 * dataset_bytes
    finally:
        bench.close()


@pytest.mark.promise("S42")
def test_two_volumes_of_one_dataset_share_its_bytes(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    digest_of_tree(bench.mount(bucket, "volume-1"))
    assert digest_of_tree(bench.mount(bucket, "volume-2")) == digest_of_objects(bucket.objects)
    assert bench.origin_bytes() == bucket.total_bytes


def test_owner_and_modes_are_those_of_the_volume_and_nothing_can_be_written(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket, uid="1000", gid="1001", fileMode="0440", dirMode="0550")
    status = (mount_point / "small" / "0000.bin").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1000, 1001, 0o440)
    with pytest.raises(OSError, match="Read-only"):
        (mount_point / "new").write_bytes(b"")


def test_mount_options_of_the_volume_reach_the_kernel(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket, mountOptions="noexec,read_ahead_kb=256")
    entry = mounting.find(mount_point)
    assert entry is not None
    assert {"ro", "nosuid", "nodev", "noexec"} <= entry.options
    assert Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text().strip() == "256"


def test_extended_attributes_name_the_object_of_a_file(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    path = bench.mount(bucket) / "large" / "0.bin"
    size_bytes = len(bucket.objects["large/0.bin"])
    assert os.getxattr(path, "user.hayloft.url") == b"s3://dataset/data/large/0.bin"
    assert os.getxattr(path, "user.hayloft.cached") == f"0/{size_bytes}".encode()
    path.read_bytes()
    assert os.getxattr(path, "user.hayloft.cached") == f"{size_bytes}/{size_bytes}".encode()
    assert os.getxattr(path, "user.hayloft.etag")


# -- invalid requests --


def mount_request(bucket: Bucket, mount_point: Path, **changes: str) -> MountRequest:
    return MountRequest("volume-1", os.fspath(mount_point), {**bucket.attributes, **changes}, bucket.secrets)


@pytest.mark.parametrize(
    ("changes", "secrets", "error", "words"),
    [
        ({"url": "s3://no-such-bucket/data"}, {}, BucketNotFound, "no-such-bucket"),
        ({"url": "s3://dataset/nothing"}, {}, EmptyDataset, "nothing"),
        ({"url": "s3://dataset/data/large/0.bin"}, {}, NotADirectory, "0.bin"),
        ({"url": "gopher://dataset/data"}, {}, UnsupportedUrl, "gopher"),
        ({"endpoint": "http://127.0.0.1:9"}, {}, EndpointUnreachable, "127.0.0.1:9"),
        ({}, {"secret_access_key": "wrong"}, (CredentialsRejected, AccessDenied), "dataset"),
        ({}, {"access_key_id": "nobody"}, (CredentialsRejected, AccessDenied), "dataset"),
    ],
)
def test_an_unavailable_dataset_is_reported_in_one_message_and_leaves_nothing(
    bench: DaemonBench,
    bucket: Bucket,
    tmp_path: Path,
    changes: dict[str, str],
    secrets: dict[str, str],
    error: type[HayloftError] | tuple[type[HayloftError], ...],
    words: str,
) -> None:
    bench.start()
    mount_point = tmp_path / "target"
    mount_point.mkdir()
    request = MountRequest(
        "volume-1", os.fspath(mount_point), {**bucket.attributes, **changes}, {**bucket.secrets, **secrets}
    )
    with bench.client() as client, pytest.raises(error) as caught:
        client.mount(request)
    assert words in str(caught.value)
    assert "wrong" not in str(caught.value).split()
    assert mounting.find(mount_point) is None
    assert not list((bench.directory / "state" / "mounts").iterdir())
    assert not list((bench.directory / "registry").rglob("*.json"))


def test_a_missing_or_busy_mount_point_is_named(bench: DaemonBench, bucket: Bucket, tmp_path: Path) -> None:
    bench.start()
    with bench.client() as client, pytest.raises(MountPointMissing, match="not-there"):
        client.mount(mount_request(bucket, tmp_path / "not-there"))
    taken = tmp_path / "taken"
    taken.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(taken)], check=True)
    try:
        with bench.client() as client, pytest.raises(MountPointBusy, match="taken"):
            client.mount(mount_request(bucket, taken))
    finally:
        subprocess.run(["umount", str(taken)], check=True)
    assert not list((bench.directory / "state" / "mounts").iterdir())


@pytest.mark.parametrize("kind", ["missing", "tmpfs", "in use"])
def test_a_cache_directory_that_cannot_be_used_ends_the_daemon_with_one_line(tmp_path: Path, kind: str) -> None:
    cache = {"missing": tmp_path / "nowhere", "tmpfs": Path("/dev/shm"), "in use": tmp_path / "cache"}[kind]
    bench = DaemonBench(tmp_path, keep=False)
    try:
        if kind == "in use":
            bench.start()
        arguments = [
            *(f"--socket={tmp_path / 'other.sock'}", f"--state-dir={tmp_path / 'other'}", f"--cache-dir={cache}"),
            f"--registry={tmp_path / 'registry'}",
        ]
        ended = subprocess.run(
            [sys.executable, "-m", "csi_driver.cli", "cache", *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode != 0
        assert "Traceback" not in ended.stderr
        assert str(cache) in ended.stderr.strip().splitlines()[-1]
    finally:
        bench.close()
