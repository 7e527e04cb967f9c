"""The daemon's memory stays below the bound of its settings, whatever is read: docs/limits.md has the sum."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest

from csi_driver.settings import MIB, ReadingSettings
from tests.support.daemons import Bucket, DaemonBench
from tests.support.hostile_s3 import HostileS3, Slow

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

READERS = 64
FILE_BYTES = 12 * MIB
SETTINGS = ReadingSettings(fetch_threads=8, write_queue_bytes=32 * MIB)
MARGIN_BYTES = 32 * MIB
"""Freed memory that allocators do not return."""


def bound_bytes(settings: ReadingSettings, readers: int) -> int:
    """The bound beyond the daemon's memory at rest."""
    fetching = settings.fetch_threads * (settings.small_object_bytes + MIB)
    return fetching + settings.write_queue_bytes + readers * MIB + MARGIN_BYTES


def peak_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_the_bound_is_well_below_what_is_read() -> None:
    assert bound_bytes(SETTINGS, READERS) < READERS * FILE_BYTES / 3


@pytest.mark.parametrize("slow", [False, True], ids=["fast store", "slow store"])
def test_64_readers_of_64_cold_files_stay_within_the_memory_bound_of_the_settings(tmp_path: Path, slow: bool) -> None:
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
            mount_point = bench.mount(as_bucket(store), addressingStyle="path")
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
            assert peak_bytes(daemon.pid) - at_rest <= bound_bytes(SETTINGS, READERS)
        finally:
            bench.close()


class _Server:
    """The attributes of an S3 server that a mount needs."""

    def __init__(self, store: HostileS3) -> None:
        self.endpoint = store.endpoint
        self.access_key_id, self.secret_access_key = store.access_key_id, store.secret_access_key


def as_bucket(store: HostileS3) -> Bucket:
    return Bucket(_Server(store), store.bucket, {})  # type: ignore[arg-type]
