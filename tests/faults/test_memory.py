"""The daemon's memory stays below the bound of its settings, whatever is read: docs/limits.md has the sum."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from csi_driver.reading.read_through_cache import HELD_SHARE
from csi_driver.settings import MIB, ReadingSettings
from tests.support.control_groups import memory_group, why_not
from tests.support.daemons import Bucket, DaemonBench, digest_of_tree
from tests.support.hostile_s3 import HostileS3, Slow

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

READERS = 64
FILE_BYTES = 16 * MIB
SETTINGS = ReadingSettings(fetch_threads=8, write_queue_bytes=32 * MIB)
MARGIN_BYTES = 32 * MIB
"""Freed memory that allocators do not return."""


def bound_bytes(settings: ReadingSettings, readers: int, whole_files: str = "none") -> int:
    """The bound beyond the daemon's memory at rest."""
    fetching = settings.fetch_threads * (settings.small_object_bytes + MIB)
    held_bytes = 0 if whole_files == "none" else int(settings.write_queue_bytes * HELD_SHARE)
    return fetching + settings.write_queue_bytes + held_bytes + readers * MIB + MARGIN_BYTES


def peak_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_the_bound_is_well_below_what_is_read() -> None:
    assert bound_bytes(SETTINGS, READERS, "all") < READERS * FILE_BYTES / 3


@pytest.mark.promise("S55")
@pytest.mark.parametrize("whole_files", ["none", "all"])
@pytest.mark.parametrize("slow", [False, True], ids=["fast store", "slow store"])
def test_64_readers_of_64_cold_files_stay_within_the_memory_bound_of_the_settings(
    tmp_path: Path, slow: bool, whole_files: str
) -> None:
    data = random.Random(1).randbytes(FILE_BYTES)
    expected, wrong = hashlib.sha256(data).digest(), []
    flags = (
        "--free-floor=0",
        f"--fetch-threads={SETTINGS.fetch_threads}",
        f"--write-queue={SETTINGS.write_queue_bytes}",
    )
    with HostileS3({f"data/{number}.bin": data for number in range(READERS)}) as store:
        bench = DaemonBench(tmp_path, flags=flags, keep=False)
        try:
            daemon = bench.start()
            mount_point = bench.mount(as_bucket(store), addressingStyle="path", wholeFiles=whole_files)
            at_rest = peak_bytes(daemon.pid)
            if slow:
                store.fail_all(Slow(0.01, 256 << 10))

            def read(number: int) -> None:
                with (mount_point / f"{number}.bin").open("rb", buffering=0) as file:
                    if hashlib.file_digest(file, "sha256").digest() != expected:
                        wrong.append(number)

            threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert peak_bytes(daemon.pid) - at_rest <= bound_bytes(SETTINGS, READERS, whole_files)
        finally:
            bench.close()


READER = """
import os, sys
if sys.stdin.readline():  # this process is in its group now
    for name in os.listdir(sys.argv[1]):
        with open(os.path.join(sys.argv[1], name), "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
"""


@pytest.mark.promise("S278")
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_fetched_pages_are_charged_to_the_daemon_and_a_smaller_pod_reads_them(tmp_path: Path) -> None:
    draw = random.Random(1)
    objects = {f"data/{number}.bin": draw.randbytes(FILE_BYTES) for number in range(8)}
    dataset_bytes = sum(map(len, objects.values()))
    with HostileS3(objects) as store, memory_group("daemon") as group, memory_group("pod", 32 * MIB) as pod:
        bench = DaemonBench(tmp_path, flags=("--free-floor=0",), keep=False)
        try:
            group.add(bench.start().pid)
            mount_point = bench.mount(as_bucket(store), addressingStyle="path")
            for _ in range(2):
                command = [sys.executable, "-c", READER, str(mount_point)]
                with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as reader:
                    pod.add(reader.pid)
                    reader.communicate("go\n", timeout=120)
                assert reader.returncode == 0
                assert group.page_cache_bytes > 0.9 * dataset_bytes
                assert (pod.killed, pod.page_cache_bytes < 0.4 * dataset_bytes) == (0, True)
            with bench.client() as client:
                assert client.report().origin_bytes < 1.1 * dataset_bytes, "nothing is fetched twice"
        finally:
            bench.close()


GROUP_BYTES = 192 * MIB
"""The limit of the daemon's container: less than the dataset, and room for the process and what it has not written yet
(control groups v1 do not throttle a writer whose pages are dirty, they kill it)."""


@pytest.mark.promise("S278")
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_limit_of_the_container_bounds_the_page_cache_and_breaks_nothing(tmp_path: Path) -> None:
    draw = random.Random(1)
    objects = {f"data/{number}.bin": draw.randbytes(FILE_BYTES) for number in range(24)}
    expected = {key.removeprefix("data/"): hashlib.sha256(data).hexdigest() for key, data in objects.items()}
    with HostileS3(objects) as store, memory_group("memory", GROUP_BYTES) as group:
        flags = ("--free-floor=0", "--fetch-threads=2", "--write-queue=8MiB")
        bench = DaemonBench(tmp_path, flags=flags, keep=False)
        try:
            daemon = bench.start()
            group.add(daemon.pid)
            mount_point = bench.mount(as_bucket(store), addressingStyle="path")
            for _ in range(2):
                assert digest_of_tree(mount_point) == expected
            assert group.page_cache_bytes > GROUP_BYTES // 4, "the bytes that the daemon has written are charged to it"
            assert group.charged_bytes <= GROUP_BYTES
            assert (group.killed, daemon.poll()) == (0, None)
            with bench.client() as client:
                assert client.report().origin_bytes < 1.1 * sum(map(len, objects.values())), "nothing is fetched twice"
        finally:
            bench.close()


class _Server:
    """The attributes of an S3 server that a mount needs."""

    def __init__(self, store: HostileS3) -> None:
        self.endpoint = store.endpoint
        self.access_key_id, self.secret_access_key = store.access_key_id, store.secret_access_key


def as_bucket(store: HostileS3) -> Bucket:
    return Bucket(_Server(store), store.bucket, {})  # type: ignore[arg-type]
