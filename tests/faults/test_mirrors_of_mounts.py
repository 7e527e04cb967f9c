"""Volumes with mirrors, on real servers: the bucket is killed, hangs or loses objects while programs read."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.model.errors import HayloftError
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, made_bucket, wait_until
from tests.support.seaweedfs import seaweed, seaweed_bucket

__all__ = ["seaweed", "seaweed_bucket"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]


@dataclass
class Mirrored:
    """A dataset whose bucket is on a server of its own, and its mirror on another one, with other keys."""

    bucket: Bucket
    mirror: Bucket
    options: Mapping[str, str]

    @property
    def attributes(self) -> dict[str, str]:
        mirror = f"s3://{self.mirror.name}/data?endpoint={self.mirror.server.endpoint}"
        return {**self.bucket.attributes, "mirrors": mirror, **self.options}

    @property
    def secrets(self) -> dict[str, str]:
        of_mirror = {f"mirror1.{name}": value for name, value in self.mirror.secrets.items()}
        return {**self.bucket.secrets, **of_mirror}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[SeaweedFsServer]:
    """One that a test may kill."""
    with SeaweedFsServer(tmp_path / "own-server", volume_mb=64) as server:
        yield server


@pytest.fixture
def mirrored(own_server: SeaweedFsServer, seaweed: SeaweedFsServer, seaweed_bucket: str) -> Mirrored:
    bucket = made_bucket(own_server, "data", small=60, large=3)
    mirror = Bucket(seaweed, seaweed_bucket, {})
    mirror.fill(bucket.objects)
    return Mirrored(bucket, mirror, {"requestTimeout": "2s", "deadline": "30s", "mirrorOrder": "listed"})


@contextmanager
def running_bench() -> Iterator[DaemonBench]:
    with tempfile.TemporaryDirectory(prefix="hayloft-", dir="/var/tmp", ignore_cleanup_errors=True) as directory:
        bench = DaemonBench(Path(directory), log_path=Path(directory) / "log")
        bench.start()
        try:
            yield bench
        finally:
            bench.close()


@pytest.fixture
def bench() -> Iterator[DaemonBench]:
    with running_bench() as running:
        yield running


def conditions_of(bench: DaemonBench) -> set[str]:
    with bench.client() as client:
        return {condition.reason for mount in client.health().mounts for condition in mount.conditions}


def wrong_reads(mount_point: Path, objects: Mapping[str, bytes], seed: int, begun: threading.Event) -> list[str]:
    """Reads everything in an order of its own; the paths that failed or had a wrong byte."""
    paths, wrong = sorted(objects), []
    random.Random(seed).shuffle(paths)
    for number, path in enumerate(paths):
        if number == len(paths) // 4:
            begun.set()
        try:
            if (mount_point / path).read_bytes() != objects[path]:
                wrong.append(f"{path}: other bytes")
        except OSError as error:
            wrong.append(f"{path}: {error}")
    return wrong


@contextmanager
def two_readers(mount_point: Path, objects: Mapping[str, bytes], wrong: list[str]) -> Iterator[None]:
    """While they read; the body begins when they have a quarter."""
    begun = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(wrong_reads, mount_point, objects, seed, begun) for seed in range(2)]
        assert begun.wait(60)
        yield
        for reader in readers:
            wrong += reader.result()


@pytest.mark.promise("S641")
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_bucket_that_dies_while_two_programs_read_is_no_error_of_theirs(
    mirrored: Mirrored, own_server: SeaweedFsServer, bench: DaemonBench, how: str
) -> None:
    mount_point, objects = bench.mount(mirrored), dict(mirrored.bucket.objects)
    wrong: list[str] = []
    later = [path for path in sorted(objects) if path > "small/0020"]
    pid = own_server.pid
    assert pid is not None
    with two_readers(mount_point, {path: objects[path] for path in objects.keys() - set(later)}, wrong):
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    assert wrong == []
    assert "ReadingFromMirrors" in conditions_of(bench)
    if how == "killed":
        own_server.stop()
        own_server.start()
    else:
        os.kill(pid, signal.SIGCONT)
    assert _is_read_again(bench, mount_point, mirrored.bucket.objects, later)


@pytest.mark.promise("S685")
def test_whichever_place_is_the_nearest_one_that_dies_is_no_error_of_two_programs(
    mirrored: Mirrored, own_server: SeaweedFsServer, bench: DaemonBench
) -> None:
    """Here the order is measured: on one machine it may be either."""
    mount_point, objects = bench.mount(mirrored, mirrorOrder="nearest"), dict(mirrored.bucket.objects)
    wrong: list[str] = []
    pid = own_server.pid
    assert pid is not None
    with two_readers(mount_point, objects, wrong):
        os.kill(pid, signal.SIGKILL)
    assert wrong == []
    own_server.stop()


def _is_read_again(bench: DaemonBench, mount_point: Path, objects: Mapping[str, bytes], later: Sequence[str]) -> bool:
    """Whether the bucket is asked again while objects are read that are not cached yet."""
    for path in later:
        assert (mount_point / path).read_bytes() == objects[path]
        if "ReadingFromMirrors" not in conditions_of(bench):
            return True
        time.sleep(1)
    return False


@pytest.mark.promise("S641")
def test_the_next_daemon_reads_from_the_mirror_too(
    mirrored: Mirrored, own_server: SeaweedFsServer, bench: DaemonBench
) -> None:
    mount_point = bench.mount(mirrored)
    paths = sorted(mirrored.bucket.objects)
    half: Sequence[str] = paths[::2]
    for path in half:
        assert (mount_point / path).read_bytes() == mirrored.bucket.objects[path]
    bench.processes[-1].kill()
    bench.processes[-1].wait()
    own_server.stop()
    bench.start()
    assert wrong_reads(mount_point, mirrored.bucket.objects, 1, threading.Event()) == []
    assert bench.origin_bytes() <= sum(len(mirrored.bucket.objects[path]) for path in paths if path not in half) + 1000


@pytest.mark.promise("S642")
def test_a_mirror_that_lacks_an_object_or_has_another_version_is_told_and_not_read(
    mirrored: Mirrored, bench: DaemonBench
) -> None:
    first = min(mirrored.bucket.objects)
    mirrored.mirror.put(first, os.urandom(len(mirrored.bucket.objects[first])))
    mount_point = bench.mount(mirrored)
    wait_until(lambda: "MirrorDiffers" in conditions_of(bench))
    assert wrong_reads(mount_point, mirrored.bucket.objects, 1, threading.Event()) == []
    assert bench.log_path is not None
    assert f"s3://{mirrored.mirror.name}/data/" in bench.log_path.read_text()


@pytest.mark.promise("S643")
def test_a_mirror_that_does_not_resolve_is_told_by_name_and_the_volume_reads_from_the_bucket(
    mirrored: Mirrored, bench: DaemonBench
) -> None:
    mount_point = bench.mount(mirrored, mirrors="s3://copies/data?endpoint=http://no-such-host.invalid:9000")
    wait_until(lambda: "MirrorFailing" in conditions_of(bench))
    assert wrong_reads(mount_point, mirrored.bucket.objects, 1, threading.Event()) == []
    assert bench.log_path is not None
    assert "s3://copies/data/ at http://no-such-host.invalid:9000" in bench.log_path.read_text()


@pytest.mark.promise("S643")
def test_a_mirror_that_hangs_delays_no_read(
    mirrored: Mirrored, own_server: SeaweedFsServer, bench: DaemonBench
) -> None:
    """Here the server that may be stopped has the mirror."""
    swapped = Mirrored(mirrored.mirror, mirrored.bucket, mirrored.options)
    pid = own_server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        mount_point = bench.mount(swapped)
        assert wrong_reads(mount_point, mirrored.bucket.objects, 1, threading.Event()) == []
        wait_until(lambda: conditions_of(bench) == {"MirrorFailing"}, 60)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.promise("S644")
def test_cached_bytes_are_shared_with_volumes_of_the_same_mirrors_alone(mirrored: Mirrored, bench: DaemonBench) -> None:
    """What a mirror sends is in the cache under the names of the bucket: a volume that does not trust the mirror finds
    none of it."""
    path = "large/0.bin"
    assert (bench.mount(mirrored) / path).read_bytes() == mirrored.bucket.objects[path]
    before = bench.origin_bytes()
    assert (bench.mount(mirrored, "volume-2") / path).read_bytes() == mirrored.bucket.objects[path]
    assert bench.origin_bytes() == before
    assert (bench.mount(mirrored.bucket, "volume-3") / path).read_bytes() == mirrored.bucket.objects[path]
    assert bench.origin_bytes() > before


@pytest.mark.promise("S644")
@pytest.mark.parametrize(
    ("mirrors", "secret", "message"),
    [
        ("ftp://copies/data", "", "mirrors: 'ftp://copies/data'"),
        ("s3://copies/data?password=x", "", "options of a mirror"),
        ("s3://copies/data?endpoint=copies", "", "mirrors: s3://copies/data/: endpoint: 'copies'"),
        ("file:///data", "", "mirrors: 'file:///data'"),
        ("s3://copies/data", "mirror2.access_key_id", "keys of mirror1 to mirror1"),
        ("s3://copies/data", "mirror1.access_key_id", "mirrors: s3://copies/data/: secret key secret_access_key"),
    ],
)
def test_what_cannot_be_a_mirror_is_refused_by_name(
    bench: DaemonBench, mirrors: str, secret: str, message: str
) -> None:
    class Refused:
        attributes: Mapping[str, str] = {"url": "s3://data/data", "endpoint": "http://127.0.0.1:9", "mirrors": mirrors}
        secrets: Mapping[str, str] = {
            "access_key_id": "x",
            "secret_access_key": "x",
            **({secret: "x"} if secret else {}),
        }

    with pytest.raises(HayloftError, match=re.escape(message)):
        bench.mount(Refused())
