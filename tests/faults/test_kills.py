"""SIGKILL at random moments: readers see a pause, never an error or a wrong byte.

``HAYLOFT_FAULT_COUNT`` is the number of kills in each test: 3 in the suite; ``make faults COUNT=100`` makes more.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.cache_files import found_in_cache, known_versions, wrong_in_cache
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket, stop
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.faults, pytest.mark.timeout(60 + 20 * COUNT)]

READER = """
import os, random, sys
root, right, seed, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
draw, rounds = random.Random(seed), 0
names = sorted(os.path.relpath(os.path.join(at, name), right) for at, _, names in os.walk(right) for name in names)

def complain(path, offset, got, expected):
    places = range(max(len(got), len(expected)))
    wrong = [place for place in places if got[place:place + 1] != expected[place:place + 1]]
    spoiled = bytes(got[wrong[0]:wrong[-1] + 1])
    with open(os.path.join(root, path), "rb", buffering=0) as file:
        again = os.pread(file.fileno(), len(expected), offset) == expected
    sys.exit(
        f"{path}: wrong bytes: {len(wrong)} in {offset + wrong[0]}..{offset + wrong[-1]} of a read of {len(expected)} "
        f"at {offset} that gave {len(got)}; {'others' if any(spoiled) else 'zeros'}; right when read again: {again}"
    )

while not os.path.exists(end):
    path, offset = draw.choice(names), 0
    with open(os.path.join(root, path), "rb", buffering=0) as file, open(os.path.join(right, path), "rb") as check:
        while True:
            data = file.read(draw.choice((4096, 65536, 1 << 20)))
            expected = check.read(len(data)) if data else check.read()
            if data != expected:
                complain(path, offset, data, expected)
            if not data:
                break
            offset += len(data)
    rounds += 1
print(rounds)
"""


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "kills", small=4, large=8)


class Readers:
    """Four processes that read and compare until ``finish`` stops them."""

    def __init__(self, directory: Path, mount_point: Path, bucket: Bucket) -> None:
        self._end = directory / "end"
        right = directory / "right"
        for path, content in bucket.objects.items():
            (right / path).parent.mkdir(parents=True, exist_ok=True)
            (right / path).write_bytes(content)
        script = directory / "reader.py"
        script.write_text(READER)
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(mount_point), str(right), str(seed), str(self._end)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for seed in range(4)
        ]  # fmt: skip

    def complaints(self) -> list[str]:
        """The error output of processes that ended before ``finish``."""
        return [process.communicate()[1] for process in self._processes if process.poll() is not None]

    def finish(self) -> int:
        """Stops the readers and returns the number of files they read; fails if a reader saw an error."""
        self._end.touch()
        rounds = 0
        for process in self._processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            rounds += int(out)
        return rounds

    def kill(self) -> None:
        for process in self._processes:
            with process:  # closes its pipes
                process.kill()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S87")
@pytest.mark.parametrize(("cache_limit", "whole_files"), [("64MiB", "none"), ("0", "none"), ("64MiB", "all")], ids=str)
def test_readers_see_neither_an_error_nor_a_wrong_byte_while_the_daemon_is_killed(
    bench: DaemonBench, bucket: Bucket, tmp_path: Path, cache_limit: str, whole_files: str
) -> None:
    """With 64 MiB for 128 MiB of data some files are always cold; without a limit all are warm soon. While no daemon
    runs, every cached byte is compared with the store."""
    bench.flags = (f"--cache-limit={cache_limit}",)
    draw = random.Random(11)
    daemon = bench.start()
    mount_point = bench.mount(bucket, wholeFiles=whole_files)
    known = known_versions(bucket.attributes, bucket.secrets, bucket.objects)
    readers = Readers(tmp_path, mount_point, bucket)
    try:
        for _ in range(COUNT):
            time.sleep(draw.choice((draw.uniform(0.0, 0.8), draw.uniform(0.0, 2.5))))
            stop(daemon, signal.SIGKILL)
            assert wrong_in_cache(bench.cache, known) == []
            daemon = bench.start()
            assert readers.complaints() == []
        assert readers.finish() > 0
    finally:
        readers.kill()
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    assert found_in_cache(bench.cache, known) > 0
