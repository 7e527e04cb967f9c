"""A cache disk that is too small, full, short of inodes, shared, or read-only: readers get the right bytes, or the
daemon ends with a reason."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path

import pytest

from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.free_floor import free_floor
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

DISK_BYTES = 32 << 20


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "full-disk", small=60, large=3)


@contextmanager
def mounted_ext4(tmp_path: Path, name: str, disk_bytes: int, *flags: str) -> Iterator[Path]:
    image, mount_point = tmp_path / f"{name}.img", tmp_path / name
    with image.open("wb") as file:
        file.truncate(disk_bytes)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", *flags, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 32 MiB, for 40 to 60 MiB of data."""
    with mounted_ext4(tmp_path, "disk", DISK_BYTES) as mount_point:
        yield mount_point


def bench_on(tmp_path: Path, disk: Path, *flags: str, log_path: Path | None = None) -> DaemonBench:
    """Cache and state on the disk, as in the driver's pods."""
    bench = DaemonBench(tmp_path, flags=flags, log_path=log_path)
    bench.cache.rmdir()
    for name in ("cache", "state"):
        (disk / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(disk / name)
    return bench


def free_of(path: Path) -> DiskSpace:
    return DiskSpace.of(path)


@pytest.mark.parametrize(
    "flags",
    [("--free-floor=0",), ("--free-floor=4MiB",), ("--free-floor=0", "--cache-limit=1TiB")],
    ids=["no floor", "floor", "limit beyond the disk"],
)
def test_reads_are_right_with_a_cache_disk_smaller_than_the_dataset(
    tmp_path: Path, disk: Path, bucket: Bucket, flags: tuple[str, ...]
) -> None:
    bench = bench_on(tmp_path, disk, *flags)
    try:
        bench.start()
        mount_point = bench.mount(bucket)
        for _ in range(2):
            assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
        bench.unmount(mount_point)
    finally:
        bench.close()


# -- inodes --

INODES = 1000
"""Of which the directories of the cache take 514."""

FEW_INODES = ("-N", str(INODES))


@pytest.fixture(scope="module")
def many(seaweed: SeaweedFsServer) -> Bucket:
    """More objects than such a file system has inodes; their bytes are a tenth of it."""
    seaweed.create_bucket("many-objects")
    bucket = Bucket(seaweed, "many-objects", {})
    draw = random.Random(1)
    bucket.fill({f"{number // 100}/{number:04}.bin": draw.randbytes(3000) for number in range(600)})
    return bucket


@pytest.mark.promise("S275")
def test_a_disk_that_runs_out_of_inodes_evicts_and_has_room_for_other_volumes(
    tmp_path: Path, many: Bucket, bucket: Bucket
) -> None:
    log_path = tmp_path / "log"
    with mounted_ext4(tmp_path, "disk", DISK_BYTES, *FEW_INODES) as disk:
        bench = bench_on(tmp_path, disk, "--free-floor=0", log_path=log_path)
        try:
            bench.start()
            mount_point = bench.mount(many)
            for _ in range(2):
                assert digest_of_tree(mount_point) == digest_of_objects(many.objects)
            with bench.client() as client:
                report = client.report()
                volume = client.volume("volume-1")
            assert report.cache_inodes == free_of(disk).total_inodes
            assert report.cache_free_floor_inodes == ceil(report.cache_inodes / 10)
            assert free_of(disk).free_inodes >= report.cache_free_floor_inodes
            assert report.cache_evicted_objects > 0
            assert report.cache_used_bytes > 100 * 3000, "no more than necessary was evicted"
            assert volume.conditions == (), "nothing is wrong with the volume"
            for number in range(2, 6):
                other = bench.mount(bucket, f"volume-{number}", include=f"small/000{number}.bin")
                assert len(digest_of_tree(other)) == 1
        finally:
            bench.close()
    assert log_path.read_text().count("runs out of inodes before bytes") == 1


@pytest.mark.promise("S276", "S281")
@pytest.mark.parametrize("what", ["inodes", "bytes"])
def test_a_daemon_on_a_disk_that_others_have_filled_starts_and_makes_room(
    tmp_path: Path, many: Bucket, bucket: Bucket, what: str
) -> None:
    flags = FEW_INODES if what == "inodes" else ()
    with mounted_ext4(tmp_path, "disk", DISK_BYTES, *flags) as disk:
        bench = bench_on(tmp_path, disk, "--free-floor=2MiB")
        try:
            daemon = bench.start()
            cached = digest_of_tree(bench.mount(many) if what == "inodes" else bench.mount(bucket, include="small/*"))
            assert len(cached) >= 60
            bench.unmount(bench.directory / "mount-volume-1")
            stop(daemon)
            fill(disk, what)
            assert free_of(disk).free_inodes == 0 or free_of(disk).free_bytes < 16 << 10
            bench.start()
            wait_until(lambda: free_of(disk).free_inodes >= ceil(free_of(disk).total_inodes / 10))
            wait_until(lambda: free_of(disk).free_bytes >= 2 << 20)
            assert len(digest_of_tree(bench.mount(bucket, "volume-2", include="small/0001.bin"))) == 1
        finally:
            bench.close()


def fill(disk: Path, what: str) -> None:
    """Takes all that is left."""
    others = disk / "others"
    others.mkdir()
    with suppress(OSError):
        for number in range(INODES if what == "inodes" else 1):
            with (others / str(number)).open("wb", buffering=0) as file:
                while what == "bytes":
                    file.write(bytes(4096))


# -- a disk that is shared with kubelet --


@pytest.mark.promise("S276")
def test_a_cache_on_the_disk_of_kubelet_stays_away_from_its_thresholds(tmp_path: Path, bucket: Bucket) -> None:
    with mounted_ext4(tmp_path, "disk", 4 * DISK_BYTES) as disk:
        (disk / "kubelet").mkdir()
        bench = bench_on(tmp_path, disk, f"--kubelet-dir={disk / 'kubelet'}", "--cache-limit=90%")
        try:
            bench.start()
            mount_point = bench.mount(bucket)
            with bench.client() as client:
                floor_bytes = client.report().cache_free_floor_bytes
            total_bytes = free_of(disk).total_bytes
            assert floor_bytes == total_bytes // 5
            assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
            assert free_of(disk).free_bytes >= floor_bytes
            # Images are pulled, and nothing is read meanwhile.
            with (disk / "image").open("wb") as image:
                os.posix_fallocate(image.fileno(), 0, free_of(disk).free_bytes - total_bytes // 20)
            wait_until(lambda: free_of(disk).free_bytes >= floor_bytes)
            assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
        finally:
            bench.close()


def test_the_disk_of_kubelet_or_the_images_is_recognised(tmp_path: Path) -> None:
    with (
        mounted_ext4(tmp_path, "one", DISK_BYTES) as one,
        mounted_ext4(tmp_path, "two", DISK_BYTES) as two,
    ):
        for name in ("cache", "kubelet", "upper", "work"):
            (one / name).mkdir()
        (two / "kubelet").mkdir()
        shared = free_floor(one / "cache", None, one / "kubelet")
        assert shared.count_bytes == free_of(one).total_bytes // 5
        assert shared.shared_with == f"kubelet ({one / 'kubelet'})"
        own = free_floor(one / "cache", None, two / "kubelet")
        assert (own.count_bytes, own.shared_with) == (free_of(one).total_bytes // 10, "")
        assert free_floor(one / "cache", None, tmp_path / "no node").shared_with == ""
        assert free_floor(one / "cache", 5, one / "kubelet").is_below_kubelets
        assert not free_floor(one / "cache", 5, two / "kubelet").is_below_kubelets
        # The root of a container is an overlay, of which the writable layer is on the disk of the images.
        root = tmp_path / "root"
        root.mkdir()
        options = f"lowerdir={two},upperdir={one / 'upper'},workdir={one / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
        try:
            container = free_floor(one / "cache", None, two / "kubelet", root)
            assert container.shared_with == "the container images"
            assert free_floor(two, None, one / "kubelet", root).shared_with == ""
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True)


# -- directories that are refused --


@pytest.mark.promise("S57")
@pytest.mark.parametrize("command", ["cache", "all-in-one"])
def test_a_tmpfs_is_refused_and_stays_empty(tmp_path: Path, command: str) -> None:
    cache = tmp_path / "tmpfs"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "disks-tmpfs", str(cache)], check=True)
    try:
        flags = {
            "cache": [f"--socket={tmp_path / 'x.sock'}", f"--state-dir={cache / 'state'}"],
            "all-in-one": [f"--endpoint=unix://{tmp_path / 'csi.sock'}"],
        }[command]
        program = [sys.executable, "-m", "csi_driver.cli", command, *flags]
        ended = subprocess.run(
            [*program, f"--cache-dir={cache}", f"--registry={cache / 'registry'}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode != 0
        assert "is on tmpfs" in ended.stderr.strip().splitlines()[-1]
        assert list(cache.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)


def cache_command(tmp_path: Path, cache: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "csi_driver.cli", "cache", f"--socket={tmp_path / 'x.sock'}"),
        *(f"--state-dir={tmp_path / 'x'}", f"--cache-dir={cache}", f"--registry={tmp_path / 'x-registry'}"),
    ]


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_an_unwritable_disk_ends_the_daemon_with_a_one_line_error(tmp_path: Path, disk: Path, kind: str) -> None:
    cache = disk / "cache"
    cache.mkdir()
    if kind == "full":
        subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=64k"], check=False, capture_output=True)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = subprocess.run(cache_command(tmp_path, cache), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert str(cache) in ended.stderr.strip().splitlines()[-1]
