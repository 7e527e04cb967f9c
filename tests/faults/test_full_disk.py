"""A cache disk that is too small, full, or read-only: readers get the right bytes, or the daemon ends with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

DISK_BYTES = 32 << 20


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "full-disk", small=60, large=3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 32 MiB, for 40 to 60 MiB of data."""
    image, mount_point = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def bench_on(tmp_path: Path, disk: Path, *flags: str) -> DaemonBench:
    bench = DaemonBench(tmp_path, flags=flags)
    bench.cache.rmdir()
    (disk / "cache").mkdir()
    bench.cache.symlink_to(disk / "cache")
    return bench


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
