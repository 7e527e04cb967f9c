"""A daemon with few descriptors, and one that runs out of them while it is read from."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import HostileS3

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

MIB = 1 << 20
READERS = 4


class FewDescriptors(DaemonBench):
    """Its processes inherit these limits, the soft and the hard one."""

    limits = (256, 1024)

    def start_process(self, *arguments: str) -> subprocess.Popen[bytes]:
        start = (
            f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, {self.limits}); "
            "os.execv(sys.executable, [sys.executable, '-m', 'csi_driver.cli', *sys.argv[1:]])"
        )
        process = subprocess.Popen([sys.executable, "-c", start, *arguments], stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    draw = random.Random(1)
    rest = draw.randbytes(300 << 10)
    objects = {f"small/{number:04}": number.to_bytes(4, "big") + rest[4:] for number in range(1500)}
    objects["large"] = draw.randbytes(100 * MIB)
    with HostileS3({f"data/{path}": data for path, data in objects.items()}) as store:
        yield Bucket(store, store.bucket, objects)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[FewDescriptors]:
    bench = FewDescriptors(tmp_path, flags=("--free-floor=0",))
    yield bench
    bench.close()


def read_all(mount_point: Path, bucket: Bucket, seed: int, wrong: list[str]) -> None:
    paths = list(bucket.objects)
    random.Random(seed).shuffle(paths)
    for path in paths:
        try:
            if (mount_point / path).read_bytes() != bucket.objects[path]:
                wrong.append(f"{path}: other bytes")
        except OSError as error:
            wrong.append(f"{path}: {error.strerror}")


def started_readers(mount_point: Path, bucket: Bucket, wrong: list[str]) -> list[threading.Thread]:
    readers = [
        threading.Thread(target=read_all, args=(mount_point, bucket, seed, wrong), daemon=True)
        for seed in range(READERS)
    ]
    for reader in readers:
        reader.start()
    return readers


def join(readers: list[threading.Thread]) -> None:
    for reader in readers:
        reader.join(300)
        assert not reader.is_alive(), "a reader hangs"


def assert_disk_is_in_use(bench: DaemonBench) -> None:
    with bench.client() as client:
        assert client.volume("volume-1").conditions == ()
        report = client.report()
    assert (report.cache_disk_failures, report.cache_disk_in_use) == (0, True)


@pytest.mark.promise("S221")
@pytest.mark.parametrize("hard", [1024, 200])
def test_readers_of_more_files_than_descriptors_get_the_right_bytes(
    bench: FewDescriptors, bucket: Bucket, hard: int
) -> None:
    bench.limits = (hard // 4, hard)
    daemon = bench.start()
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    wrong: list[str] = []
    join(started_readers(bench.mount(bucket), bucket, wrong))
    assert wrong == []
    assert_disk_is_in_use(bench)


@pytest.mark.promise("S221")
def test_readers_go_on_when_descriptors_run_out_and_return(bench: FewDescriptors, bucket: Bucket) -> None:
    bench.limits = (4096, 4096)
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    wrong: list[str] = []
    readers = started_readers(mount_point, bucket, wrong)
    for _ in range(5):
        wait_until(lambda: open_files(daemon) > 60 or not any(reader.is_alive() for reader in readers))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (open_files(daemon) // 2, 4096))
        threading.Event().wait(0.5)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    join(readers)
    assert wrong == []
    assert_disk_is_in_use(bench)


@pytest.mark.promise("S220")
def test_a_reader_without_descriptors_gets_an_error_at_the_deadline(bench: FewDescriptors) -> None:
    objects = {"small": random.Random(3).randbytes(300 << 10), "large": random.Random(4).randbytes(9 * MIB)}
    wrong: list[str] = []
    daemon = bench.start()
    with HostileS3({f"data/{path}": data for path, data in objects.items()}) as store:
        some = Bucket(store, store.bucket, objects)  # type: ignore[arg-type]
        mount_point = bench.mount(some, deadline="2s", requestTimeout="2s")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (8, 1024))
        join(started_readers(mount_point, some, wrong))
        assert len(wrong) == READERS * len(objects)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        wrong.clear()
        join(started_readers(mount_point, some, wrong))
    assert wrong == []
    with bench.client() as client:
        assert client.report().cache_disk_in_use


def open_files(daemon: subprocess.Popen[bytes]) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))
