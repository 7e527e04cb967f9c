"""Eviction with a real daemon, a real mount and a real store: hits are counted in bytes that the store did not send."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.errors import CacheOvercommitted
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, stop
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

FILES = 200
FILE_BYTES = 100_000
DATASET_BYTES = FILES * FILE_BYTES
EPOCHS = 5
BEST = 0.5


def filled(server: SeaweedFsServer, name: str, seed: int, objects: dict[str, bytes] | None = None) -> Bucket:
    draw = random.Random(seed)
    server.create_bucket(name)
    bucket = Bucket(server, name, {})
    bucket.fill(objects or {f"{number:04}.bin": draw.randbytes(FILE_BYTES) for number in range(FILES)})
    return bucket


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return filled(seaweed, "epochs", 1)


@pytest.fixture(scope="module")
def next_bucket(seaweed: SeaweedFsServer) -> Bucket:
    return filled(seaweed, "next-epochs", 2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    flags = (f"--cache-limit={DATASET_BYTES // 2}", "--free-floor=0")
    bench = DaemonBench(tmp_path, flags=flags, keep=False)
    bench.start()
    yield bench
    bench.close()


def hit_ratio(bench: DaemonBench, mount_point: Path, bucket: Bucket, shuffle_seed: int | None) -> float:
    """Reads every file once, past the kernel's page cache; every byte is checked."""
    names = sorted(bucket.objects)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(names)
    before = bench.origin_bytes()
    for name in names:
        assert read_afresh(mount_point / name) == bucket.objects[name]
    return 1 - (bench.origin_bytes() - before) / bucket.total_bytes


def read_afresh(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


@pytest.mark.parametrize("shuffled", [False, True], ids=["same order", "new order each epoch"])
def test_with_a_cache_of_half_the_dataset_the_hit_ratio_is_near_the_best_possible(
    bench: DaemonBench, bucket: Bucket, shuffled: bool
) -> None:
    mount_point = bench.mount(bucket)
    ratios = [hit_ratio(bench, mount_point, bucket, seed if shuffled else None) for seed in range(EPOCHS)]
    assert 0.9 * BEST <= min(ratios[1:]) <= max(ratios[1:]) <= BEST, ratios


def test_an_abandoned_dataset_is_evicted_within_two_epochs_of_the_next(
    bench: DaemonBench, bucket: Bucket, next_bucket: Bucket
) -> None:
    old = bench.mount(bucket, "old")
    for seed in range(3):
        hit_ratio(bench, old, bucket, seed)
    new = bench.mount(next_bucket, "new")
    for seed in range(2):
        hit_ratio(bench, new, next_bucket, seed)
    assert hit_ratio(bench, new, next_bucket, 9) >= 0.9 * BEST
    assert cached_bytes(old, bucket) == 0


def test_reserved_bytes_outlive_the_epochs_of_another_dataset_and_a_restart_until_the_unmount(
    tmp_path: Path, bucket: Bucket, next_bucket: Bucket
) -> None:
    bench = DaemonBench(tmp_path, flags=(f"--cache-limit={DATASET_BYTES // 2}", "--free-floor=0"))
    try:
        daemon = bench.start()
        reserved = bench.mount(bucket, "reserved", cacheReservation="5MB")
        other = bench.mount(next_bucket, "other")
        hit_ratio(bench, reserved, bucket, None)
        hit_ratio(bench, other, next_bucket, 1)
        stop(daemon)
        daemon = bench.start()
        hit_ratio(bench, other, next_bucket, 2)
        hit_ratio(bench, other, next_bucket, 3)
        assert cached_bytes(reserved, bucket) >= 5_000_000 - FILE_BYTES
        bench.unmount(reserved, "reserved")
        hit_ratio(bench, other, next_bucket, 4)
        hit_ratio(bench, other, next_bucket, 5)
        assert cached_bytes(bench.mount(bucket, "again"), bucket) <= FILE_BYTES * 4
    finally:
        bench.close()


def test_more_reservations_than_the_cache_holds_are_refused_and_nothing_is_mounted(
    bench: DaemonBench, bucket: Bucket, next_bucket: Bucket
) -> None:
    bench.mount(bucket, "one", cacheReservation="6MB")
    with pytest.raises(CacheOvercommitted, match="6000000 of the cache's 10000000"):
        bench.mount(next_bucket, "two", cacheReservation="5MB")
    assert not (bench.directory / "mount-two").is_mount()
    bench.unmount(bench.directory / "mount-one", "one")
    bench.mount(next_bucket, "two", cacheReservation="5MB")


def test_a_file_larger_than_the_cache_reads_right_and_others_stay_cached(
    bench: DaemonBench, seaweed: SeaweedFsServer
) -> None:
    draw = random.Random(3)
    small = {f"{number:04}.bin": draw.randbytes(FILE_BYTES) for number in range(40)}
    bucket = filled(seaweed, "giants", 0, {**small, "giant.bin": draw.randbytes(3 * DATASET_BYTES // 2)})
    mount_point = bench.mount(bucket)
    for name in small:
        read_afresh(mount_point / name)
    for _ in range(2):
        with (mount_point / "giant.bin").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
        assert found == hashlib.sha256(bucket.objects["giant.bin"]).digest()
    before = bench.origin_bytes()
    for name, data in small.items():
        assert read_afresh(mount_point / name) == data
    assert bench.origin_bytes() == before
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


def cached_bytes(mount_point: Path, bucket: Bucket) -> int:
    """By the extended attribute of each file."""
    found = [os.getxattr(mount_point / name, "user.hayloft.cached") for name in bucket.objects]
    return sum(int(text.split(b"/")[0]) for text in found)
