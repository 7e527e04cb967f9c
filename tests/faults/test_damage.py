"""Flipped bits in every file on the node: a reader sees the right bytes or a clean errno, and the daemon starts.
``make faults COUNT=100`` flips bits in a hundred places of each file."""

from __future__ import annotations

import errno
import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.fuse import mounting as device
from csi_driver.model.errors import CacheDirectoryUnusable
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.faults.test_kills import COUNT
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket, stop, wait_until
from tests.support.faulty_disk import flip_a_bit
from tests.support.seaweedfs import seaweed
from tests.unit.test_chunk_store import BYTES, read_all, settings, version

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.faults, pytest.mark.timeout(60 + 20 * COUNT)]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "damage", small=20, large=1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, keep=False)
    yield bench
    bench.close()


def warm(bench: DaemonBench, bucket: Bucket) -> None:
    """Makes a cache with complete and partial files."""
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    for path in sorted(bucket.objects)[1:]:
        (mount_point / path).read_bytes()
    with (mount_point / "large/0.bin").open("rb", buffering=0) as file:
        file.seek(5 << 20)
        file.read(4096)
    with bench.client() as client:
        wait_until(lambda: client.report().cache_used_bytes > 0)
    bench.unmount(mount_point)
    stop(daemon)


def flip_at_random(path: Path, draw: random.Random, count: int) -> None:
    for _ in range(count):
        flip_a_bit(path, draw.randrange(path.stat().st_size), draw.randrange(8))


@pytest.mark.promise("S70")
def test_reads_are_right_after_flipped_bits_in_the_index(bench: DaemonBench, bucket: Bucket) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    warm(bench, bucket)
    for _ in range(COUNT):
        index = bench.cache / "index.sqlite"
        flip_at_random(index, draw, draw.choice((1, 3, 200)))
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects), f"seed {seed}"
        bench.unmount(mount_point)
        stop(daemon)


@pytest.mark.promise("S70")
def test_reads_are_right_after_flipped_bits_in_chunk_maps(bench: DaemonBench, bucket: Bucket) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    warm(bench, bucket)
    with closing(sqlite3.connect(bench.cache / "index.sqlite")) as database, database:
        for digest, chunk_map in database.execute("SELECT digest, chunk_map FROM objects").fetchall():
            spoiled = bytearray(chunk_map)
            for _ in range(draw.randint(1, 4)):
                spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
            database.execute("UPDATE objects SET chunk_map = ? WHERE digest = ?", (bytes(spoiled), digest))
    bench.start()
    assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects), f"seed {seed}"


def test_flipped_bits_in_object_files_are_found_after_a_crash_of_the_machine(
    bench: DaemonBench, bucket: Bucket
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    warm(bench, bucket)
    with closing(sqlite3.connect(bench.cache / "index.sqlite")) as database, database:
        database.execute("UPDATE facts SET value = 'another' WHERE name = 'boot_id'")
        database.execute("UPDATE facts SET value = 'no' WHERE name = 'clean'")
    for path in (*bench.cache.glob("objects/??/*"), *bench.cache.glob("partial/??/*")):
        flip_at_random(path, draw, draw.randint(1, 3))
    bench.start()
    assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects), f"seed {seed}"
    with bench.client() as client:
        assert client.report().cache_bad_chunks > 0


@pytest.mark.promise("S67")
def test_a_flipped_bit_in_a_file_of_the_same_boot_is_found_by_the_scrubber_alone(tmp_path: Path) -> None:
    """The limit of the promise: until the next pass of the scrubber, a disk's silent error is trusted, as it is for
    local files."""
    store = ChunkStore(settings(tmp_path).model_copy(update={"scrub_bytes_per_s": 0}))

    try:
        store.add_whole(version(), [memoryview(BYTES)]).release()
        (path,) = tmp_path.glob("objects/??/*")
        flip_a_bit(path, 17)
        assert read_all(store, version()) != BYTES
        store._index.flush()
        store.scrubber.scrub()
        assert store.find(version()) is None
    finally:
        store.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 9}', b"\xff\x00", b"[]"])
def test_a_damaged_format_file_ends_the_daemon_with_a_clear_error(tmp_path: Path, content: bytes) -> None:
    ChunkStore(settings(tmp_path)).close()
    (tmp_path / "format.json").write_bytes(content)
    with pytest.raises(CacheDirectoryUnusable, match="another format"):
        ChunkStore(settings(tmp_path))


@pytest.mark.promise("S71")
@pytest.mark.parametrize("suffix", ["json", "arrow", "opens"])
def test_the_daemon_starts_after_flipped_bits_in_the_records_of_a_mount(
    tmp_path: Path, bucket: Bucket, suffix: str
) -> None:
    """The mount is adopted, or is unmounted; the next mount shows the right bytes."""
    bench = DaemonBench(tmp_path)
    draw = random.Random(3)
    try:
        for _ in range(max(1, COUNT // 3)):
            daemon = bench.start()
            mount_point = bench.mount(bucket)
            stop(daemon, signal.SIGKILL)
            (record,) = (tmp_path / "state" / "mounts").glob(f"*.{suffix}")
            flip_at_random(record, draw, 3)
            daemon = bench.start()
            if device.find(mount_point) is not None:
                try:
                    mount_point.stat()  # raises if the mount was not adopted; a walk would ignore the error
                    found = digest_of_tree(mount_point)
                except OSError as error:
                    assert error.errno in (errno.EIO, errno.ESTALE, errno.ENOTCONN)  # noqa: PT017
                else:
                    assert found == digest_of_objects(bucket.objects)
                device.unmount(mount_point, lazy=True)
            mount_point = bench.mount(bucket, volume_id="volume-2")
            assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
            bench.unmount(mount_point, "volume-2")
            stop(daemon)
    finally:
        bench.close()
