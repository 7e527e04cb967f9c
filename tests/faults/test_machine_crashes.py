"""Power cuts: whatever part of the cache is lost, no wrong byte is read and no reader sees an error.

A daemon is killed while it reads; its directory and index are damaged as a crash of the machine may damage them, and
the boot id is changed. ``make faults COUNT=30`` makes thirty of them.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.fuse import mounting as device
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.faults.test_kills import COUNT
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket, stop
from tests.support.machine_crash import crash, keep_index
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.faults, pytest.mark.timeout(60 + 20 * COUNT)]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "crashes", small=40, large=2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, keep=False)
    yield bench
    bench.close()


def read_some(mount_point: Path, bucket: Bucket, draw: random.Random, dead: threading.Event) -> None:
    """Reads files and parts of files until the daemon is dead; all bytes must be right until then."""
    paths = sorted(bucket.objects)
    with suppress(OSError):
        while not dead.is_set():
            path = draw.choice(paths)
            start = draw.randrange(len(bucket.objects[path]))
            with (mount_point / path).open("rb", buffering=0) as file:
                file.seek(start)
                found = file.read(draw.choice((4096, 300_000, 3 << 20)))
            assert found == bucket.objects[path][start : start + len(found)]


@pytest.mark.promise("S63")
def test_after_a_power_cut_every_byte_is_right(bench: DaemonBench, bucket: Bucket, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    expected = digest_of_objects(bucket.objects)
    done: list[str] = []
    for round_number in range(COUNT):
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        if round_number:
            found = digest_of_tree(mount_point)
            assert found == expected, f"seed {seed}, after {done}"
        dead = threading.Event()
        readers = [
            threading.Thread(target=read_some, args=(mount_point, bucket, random.Random(draw.random()), dead))
            for _ in range(2)
        ]
        for reader in readers:
            reader.start()
        dead.wait(draw.uniform(0.1, 0.6))
        keep_index(bench.cache, tmp_path / "aside")
        dead.wait(draw.uniform(0.1, 0.6))
        stop(daemon, signal.SIGKILL)
        dead.set()
        entry = device.find(mount_point)
        assert entry is not None
        device.abort(entry)
        for reader in readers:
            reader.join()
        device.unmount(mount_point, lazy=True)
        done.append(crash(bench.cache, tmp_path / "aside", draw))
    bench.start()
    assert digest_of_tree(bench.mount(bucket)) == expected, f"seed {seed}, after {done}"
    sys.stderr.write(f"{COUNT} crashes of the machine: {', '.join(done)}\n")
