"""SIGKILL at random moments of a warmup: the next daemon resumes it, and no wrong byte is ever served.

``HAYLOFT_FAULT_COUNT`` is the number of kills, as in ``test_kills.py``.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csi_driver.volumes.data_plane import WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.faults.test_kills import COUNT
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket, stop
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.faults, pytest.mark.timeout(60 + 20 * COUNT)]

VOLUME = "volume-1"


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "warmup-kills", small=200, large=5)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_warm(bench: DaemonBench) -> bool:
    with bench.client() as client:
        report = client.warmup(VOLUME)
    assert report.state in (WarmupState.RUNNING, WarmupState.COMPLETE), report
    return report.state is WarmupState.COMPLETE


def test_a_warmup_resumes_after_kills_and_every_byte_is_right(bench: DaemonBench, bucket: Bucket) -> None:
    """Files are read all the time, also during the kills. When everything is warm, all of it is read without a request
    to the store; then the cache is cleared and the next round begins."""
    draw = random.Random(17)
    expected = digest_of_objects(bucket.objects)
    kills, rounds = 0, 0
    while kills < COUNT:
        daemon = bench.start()
        mount_point = bench.mount(bucket, warmup="background", warmupBandwidth="64MiB/s")
        with ThreadPoolExecutor(2) as readers:
            while kills < COUNT and not is_warm(bench):
                paths = draw.sample(sorted(expected), 2)
                reads = [readers.submit(digest_of, mount_point / path) for path in paths]
                time.sleep(draw.uniform(0.0, 0.5))
                stop(daemon, signal.SIGKILL)
                kills += 1
                time.sleep(draw.uniform(0.0, 0.1))
                daemon = bench.start()
                assert [read.result(60) for read in reads] == [expected[path] for path in paths]
        with bench.client() as client:
            wait_until_warm(client, VOLUME, 60)
            before = client.report().origin_bytes
        assert digest_of_tree(mount_point) == expected
        assert bench.origin_bytes() == before, "reads of warm files send no request"
        rounds += 1
        bench.unmount(mount_point)
        stop(daemon)
        shutil.rmtree(bench.cache)
        bench.cache.mkdir()
    assert rounds
