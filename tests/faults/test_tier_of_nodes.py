"""Several daemons, as of several nodes, with their own caches and one tier of real nginx replicas."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.model.replica import USED_SHARE
from csi_driver.volumes.data_plane import WarmupRequest, WarmupState
from hayloft_lab.child_servers import free_ports
from hayloft_lab.nginx_process import HOST
from hayloft_lab.nginx_replica import NginxReplica
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, Mountable, made_bucket, wait_until
from tests.support.guarded_s3 import GuardedS3
from tests.support.seaweedfs import seaweed, seaweed_bucket
from tests.support.tier import KEY, running_replicas

__all__ = ["seaweed", "seaweed_bucket"]

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.nginx]

NODES = 4


@dataclass
class Node:
    """One node: a daemon with a cache of its own."""

    bench: DaemonBench
    mount_point: Path
    metrics_port: int

    def read(self, bucket: Bucket, paths: Sequence[str]) -> list[str]:
        """The paths that could not be read, or have a wrong byte."""
        wrong = []
        for path in paths:
            try:
                if (self.mount_point / path).read_bytes() != bucket.objects[path]:
                    wrong.append(f"{path}: other bytes")
            except OSError as error:
                wrong.append(f"{path}: {error}")
        return wrong

    def metric(self, name: str) -> float:
        """The sum over its labels that ``name`` names."""
        with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    (path / "key").write_bytes(KEY)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bucket(seaweed: SeaweedFsServer, seaweed_bucket: str) -> Bucket:
    return made_bucket(seaweed, f"{seaweed_bucket}-tier", small=120, large=3)


@contextmanager
def running_nodes(
    home: Path, bucket: Mountable, replicas: Sequence[NginxReplica], count: int, *flags: str
) -> Iterator[list[Node]]:
    with ExitStack() as stack:
        nodes = []
        for _ in range(count):
            directory = Path(tempfile.mkdtemp(dir=home))
            (port,) = free_ports(1, HOST)
            tier = [f"--tier={replica.address}" for replica in replicas]
            bench = DaemonBench(
                directory,
                (
                    *tier,
                    f"--tier-key={home / 'key'}",
                    *(() if any(flag.startswith("--tier-timeout") for flag in flags) else ("--tier-timeout=2s",)),
                    f"--metrics-address={HOST}",
                    f"--metrics-port={port}",
                    *flags,
                ),
                keep=False,
                log_path=directory / "log",
            )
            stack.callback(bench.close)
            bench.start()
            nodes.append(Node(bench, bench.mount(bucket), port))
        yield nodes


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own at the directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def orders(bucket: Bucket, count: int) -> list[list[str]]:
    """The complete dataset, in another order for each node."""
    found = []
    for number in range(count):
        paths = sorted(bucket.objects)
        random.Random(number).shuffle(paths)
        found.append(paths)
    return found


def read_by_all(nodes: Sequence[Node], bucket: Bucket) -> list[str]:
    """What went wrong, of all nodes at once."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        found = pool.map(lambda node, order: node.read(bucket, order), nodes, orders(bucket, len(nodes)))
    return [each for wrong in found for each in wrong]


def sent(bucket: Bucket, before: int) -> float:
    """What the bucket has sent since, in datasets. Its counter moves when an answer has ended."""
    time.sleep(0.5)
    return (bucket.server.bytes_sent() - before) / bucket.total_bytes


@pytest.mark.promise("S562")
def test_four_nodes_fetch_a_dataset_once_from_the_bucket_and_a_fifth_almost_nothing(home: Path, bucket: Bucket) -> None:
    with running_replicas(home, 3) as replicas, running_nodes(home, bucket, replicas, NODES) as nodes:
        before = bucket.server.bytes_sent()
        assert read_by_all(nodes, bucket) == []
        assert sent(bucket, before) <= 1.05
        before = bucket.server.bytes_sent()
        with running_nodes(home, bucket, replicas, 1) as (fifth,):
            assert fifth.read(bucket, sorted(bucket.objects)) == []
            assert sent(bucket, before) <= 0.02
            assert fifth.metric('hayloft_tier_requests_total{result="hit"}') > 100
            assert fifth.metric('hayloft_tier_requests_total{result="failure"}') == 0
            assert fifth.metric("hayloft_tier_bytes_total") >= bucket.total_bytes
            assert fifth.metric("hayloft_tier_replicas ") == 3


@pytest.mark.promise("S562")
def test_without_the_flags_each_node_fetches_by_itself(home: Path, bucket: Bucket) -> None:
    """What the figures above are compared with."""
    with running_nodes(home, bucket, [], 2) as nodes:
        before = bucket.server.bytes_sent()
        assert read_by_all(nodes, bucket) == []
        assert sent(bucket, before) >= 1.95


def _trouble(replicas: list[NginxReplica], how: str, ending: threading.Event) -> None:
    """Until the end, one replica after the other."""
    number = 0
    while not ending.wait(0.3):
        replica = replicas[number % len(replicas)]
        if how == "kill":
            replica.kill()
            ending.wait(0.4)
            replica.start()
        else:
            replica.suspend()
            ending.wait(2.5)
            replica.resume()
        number += 1


@pytest.mark.promise("S563")
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_replicas_are_killed_and_hang_while_four_nodes_read(home: Path, bucket: Bucket, how: str) -> None:
    with running_replicas(home, 3) as replicas, running_nodes(home, bucket, replicas, NODES) as nodes:
        ending = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            wrong = pool.submit(lambda: _until_both(nodes, bucket, ending))
            _trouble(replicas, how, ending)  # in this thread, with which the replicas end
            assert wrong.result() == []
        assert sum(node.metric('hayloft_tier_requests_total{result="failure"}') for node in nodes) >= 1


def _until_both(nodes: Sequence[Node], bucket: Bucket, ending: threading.Event) -> list[str]:
    try:
        time.sleep(0.4)  # until a replica is away
        return read_by_all(nodes, bucket)
    finally:
        ending.set()


@pytest.mark.promise("S563")
def test_a_replica_whose_disk_is_full_fails_no_read(home: Path, bucket: Bucket) -> None:
    disk = home / "disk"
    disk.mkdir()
    with (
        small_disk(disk, 5 << 20),
        running_replicas(home, 1, cache=disk / "cache") as replicas,
        running_nodes(home, bucket, replicas, 2) as nodes,
    ):
        assert read_by_all(nodes, bucket) == []
        assert sum(node.metric('hayloft_tier_requests_total{result="failure"}') for node in nodes) >= 1


@pytest.mark.promise("S567")
def test_a_bucket_that_is_overwritten_in_mid_epoch_gives_old_bytes_or_an_error(home: Path, bucket: Bucket) -> None:
    with running_replicas(home, 2) as replicas, running_nodes(home, bucket, replicas, 2) as (first, second):
        paths = sorted(bucket.objects)
        seen, unseen = paths[::2], paths[1::2]
        assert first.read(bucket, seen) == []
        old = dict(bucket.objects)
        bucket.fill({path: random.Random(path).randbytes(len(old[path])) for path in paths})
        for path in seen:
            assert (second.mount_point / path).read_bytes() == old[path], "from the tier, of the second node's snapshot"
        for path in unseen:
            with pytest.raises(OSError, match=r".") as caught:
                (second.mount_point / path).read_bytes()
            assert caught.value.errno == errno.ESTALE


@pytest.mark.promise("S565")
def test_a_tier_of_half_the_dataset_has_almost_half_of_the_second_epoch(
    home: Path, seaweed: SeaweedFsServer, seaweed_bucket: str
) -> None:
    """The caches of the nodes are smaller still: each epoch reads nearly everything anew."""
    bucket = Bucket(seaweed, seaweed_bucket, {})
    draw = random.Random(3)
    # So many that the share of them by their hashes is half, within a few per cent.
    bucket.fill({f"{number:04}.bin": draw.randbytes(20_000) for number in range(1200)})
    half = bucket.total_bytes // 2
    with running_replicas(home, 2, size_bytes=max(64 << 20, half)) as replicas:
        size = f"--tier-size={int(half / 2 / USED_SHARE)}"
        with running_nodes(
            home,
            bucket,
            replicas,
            2,
            size,
            "--cache-limit=8MiB",
            "--free-floor=0",
            "--no-openless",
            "--tier-timeout=60s",
        ) as nodes:
            assert read_by_all(nodes, bucket) == []
            wait_until(lambda: sum(node.metric("hayloft_cache_used_bytes") for node in nodes) < 16 << 20)
            before = [node.metric("hayloft_tier_bytes_total") for node in nodes]
            total = [node.metric("hayloft_origin_bytes_total") for node in nodes]
            assert read_by_all(nodes, bucket) == []
            by_tier = sum(node.metric("hayloft_tier_bytes_total") for node in nodes) - sum(before)
            received = sum(node.metric("hayloft_origin_bytes_total") for node in nodes) - sum(total)
            assert by_tier / received >= 0.45


@pytest.mark.promise("S562")
def test_a_mount_that_another_daemon_adopts_reads_through_the_tier(home: Path, bucket: Bucket) -> None:
    paths = sorted(bucket.objects)
    with running_replicas(home, 1) as (replica,), running_nodes(home, bucket, [replica], 1) as (first,):
        assert first.read(bucket, paths) == []
        (home / "kept").mkdir()
        flags = (f"--tier={replica.address}", f"--tier-key={home / 'key'}")
        bench = DaemonBench(home / "kept", flags, log_path=home / "kept" / "log")
        try:
            daemon = bench.start()
            mount_point = bench.mount(bucket)
            assert (mount_point / paths[0]).read_bytes() == bucket.objects[paths[0]]
            daemon.kill()
            daemon.wait()
            bench.start()
            before = bucket.server.bytes_sent()
            node = Node(bench, mount_point, 0)
            assert node.read(bucket, paths) == []
            assert sent(bucket, before) <= 0.02
        finally:
            bench.close()


@dataclass
class Guarded:
    """The dataset of ``GuardedS3``, with one of its keys."""

    server: GuardedS3
    key: str

    @property
    def attributes(self) -> dict[str, str]:
        return {"url": "s3://data/set", "endpoint": self.server.endpoint}

    @property
    def secrets(self) -> dict[str, str]:
        return {"access_key_id": self.key, "secret_access_key": self.server.secrets[self.key]}


@pytest.mark.promise("S646")
def test_four_nodes_that_warm_at_once_fetch_each_byte_from_the_bucket_once(home: Path, bucket: Bucket) -> None:
    """Each begins at another place of the dataset, as ``kubectl hayloft warm --nodes`` has them begin."""
    with (
        running_replicas(home, 3) as replicas,
        running_nodes(home, bucket, replicas, NODES) as nodes,
        ExitStack() as open,
    ):
        clients = [open.enter_context(node.bench.client()) for node in nodes]
        before = bucket.server.bytes_sent()
        for number, client in enumerate(clients):
            client.start_warmup(WarmupRequest("volume-1", start_percent=100 * number / NODES))
        for client in clients:
            wait_until(lambda client=client: client.warmup("volume-1").state is not WarmupState.RUNNING, 120)
            report = client.warmup("volume-1")
            assert (report.state, report.done_bytes) == (WarmupState.COMPLETE, bucket.total_bytes)
        assert sent(bucket, before) <= 1.05
        received = [node.bench.origin_bytes() for node in nodes]
        assert read_by_all(nodes, bucket) == []
        assert [node.bench.origin_bytes() for node in nodes] == received, "the readers find all of it cached"


@pytest.mark.promise("S561")
def test_a_secret_that_the_bucket_does_not_let_read_reads_nothing_of_what_others_have_put_into_the_tier(
    home: Path,
) -> None:
    """Not even on a node of its own, whose daemon has the key of the cluster. One key is one name on all nodes."""
    objects = {f"set/{number}.bin": random.Random(number).randbytes(40_000) for number in range(8)}
    objects["set/large.bin"] = random.Random(9).randbytes(6 << 20)
    with (
        GuardedS3(objects, {"ONE": "secret-one", "TWO": "secret-two"}) as server,
        running_replicas(home, 1) as replicas,
        running_nodes(home, Guarded(server, "ONE"), replicas, 2) as (first, second),
        running_nodes(home, Guarded(server, "TWO"), replicas, 1) as (stranger,),
    ):
        server.readers = {"ONE"}
        for node in (first, second):
            for key, content in objects.items():
                assert (node.mount_point / Path(key).name).read_bytes() == content
        assert second.metric('hayloft_tier_requests_total{result="hit"}') >= len(objects)
        for key in objects:
            with pytest.raises(PermissionError):
                (stranger.mount_point / Path(key).name).read_bytes()
        assert stranger.metric('hayloft_tier_requests_total{result="hit"}') == 0
        server.readers = {"ONE", "TWO"}
        for key, content in objects.items():
            wait_until(lambda name=Path(key).name, wanted=content: _bytes_of(stranger.mount_point / name) == wanted)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        return b""
