"""Fair shares of volumes, and fetches of killed readers, with a real daemon and mounts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.reading.bandwidth_limit import BURST_S
from csi_driver.settings import MIB
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import Hang, HostileS3, Slow
from tests.support.random_bytes import random_bytes

pytestmark = [pytest.mark.fuse]

DATA = random_bytes(1, 6 * MIB)


class _Server:
    """The attributes of an S3 server that a bucket needs to be mounted."""

    def __init__(self, store: HostileS3) -> None:
        self.endpoint = store.endpoint
        self.access_key_id, self.secret_access_key = store.access_key_id, store.secret_access_key


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, flags=("--free-floor=0",), keep=False, leaves_fetches=True)
    bench.start()
    yield bench
    bench.close()


def mounted(bench: DaemonBench, store: HostileS3, volume_id: str) -> Path:
    return bench.mount(Bucket(_Server(store), store.bucket, {}), volume_id, addressingStyle="path")  # type: ignore[arg-type]


@pytest.mark.promise("S52")
def test_a_volume_whose_store_hangs_blocks_its_64_readers_and_no_others(bench: DaemonBench) -> None:
    objects = {f"data/{number}.bin": DATA for number in range(64)}
    with HostileS3(objects) as hanging, HostileS3({"data/one.bin": DATA}) as other:
        greedy, modest = mounted(bench, hanging, "greedy"), mounted(bench, other, "modest")
        hanging.fail_all(Hang(60))
        command = [sys.executable, "-c", "import os, sys, threading\n" + MANY, str(greedy)]
        readers = subprocess.Popen(command)
        try:
            wait_until(lambda: len(hanging.seen("GET")) >= 14)
            assert (modest / "one.bin").read_bytes() == DATA
            assert readers.poll() is None, "the others still wait"
            assert len(hanging.seen("GET")) <= 32, "a volume has a quarter of all slots, stalled ones included"
        finally:
            readers.kill()
            readers.wait()
            hanging.fail_all(None)


MANY = """
def read(number):
    with open(os.path.join(sys.argv[1], f"{number}.bin"), "rb") as file:
        file.read()
threads = [threading.Thread(target=read, args=(number,)) for number in range(64)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.promise("S522")
def test_readers_of_a_limited_volume_wait_for_its_bandwidth_and_those_of_another_do_not(bench: DaemonBench) -> None:
    with HostileS3({"data/slow.bin": DATA}) as limited, HostileS3({"data/one.bin": DATA}) as other:
        bucket = Bucket(_Server(limited), limited.bucket, {})  # type: ignore[arg-type]
        slow = bench.mount(bucket, "limited", addressingStyle="path", bandwidth="4MiB/s")
        fast = mounted(bench, other, "other")
        began, read = time.monotonic(), list[bytes]()
        reader = threading.Thread(target=lambda: read.append((slow / "slow.bin").read_bytes()))
        reader.start()
        wait_until(lambda: limited.seen("GET"))
        assert (fast / "one.bin").read_bytes() == DATA
        assert not read, "it has the first of its six MiB"
        reader.join(60)
        assert read == [DATA]
        assert time.monotonic() - began >= 5 / 4 - BURST_S, "all but the last MiB, at this rate"
        assert len(limited.seen("GET")) >= 6, "requests of a quarter of a second"


@pytest.mark.promise("S54")
def test_a_killed_reader_leaves_no_fetch_that_no_reader_needs(bench: DaemonBench) -> None:
    objects = {f"data/{number}.bin": DATA * 8 for number in range(12)}
    with HostileS3(objects) as store:
        mount_point = mounted(bench, store, "volume-1")
        store.fail_all(Slow(0.03, 64 << 10))
        reader = subprocess.Popen([sys.executable, "-c", "import os, sys, threading\n" + FEWER, str(mount_point)])
        wait_until(lambda: len(store.seen("GET")) >= 10)
        reader.kill()
        reader.wait()
        wait_until(lambda: _settled(bench))
        # The kernel still waits for its own readahead, 4 MiB a file, and then closes the file; meanwhile the readahead
        # of the daemon may fetch a chunk or two. If fetches did not end, it would be 7 to 9 MiB a file.
        assert bench.origin_bytes() <= 12 * 6 * MIB


FEWER = MANY.replace("range(64)", "range(12)")


def _settled(bench: DaemonBench) -> bool:
    before = bench.origin_bytes()
    time.sleep(1)
    return bench.origin_bytes() == before
