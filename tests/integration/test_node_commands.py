"""``hayloft status``, ``ls``, ``evict``, ``pin``, ``verify``, ``top`` and ``warm``: a real daemon, mount and store, and
a workload whose numbers are known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from csi_driver.cli.application import run_command
from csi_driver.daemon.daemon_service import daemon_server
from csi_driver.daemon.operations_client import OperationsClient
from csi_driver.wiring.node_readers import readers
from csi_driver.wiring.reader_rates import Sample, use_between
from csi_driver.wiring.version import hayloft_version
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, made_bucket, wait_until
from tests.support.data_planes import InMemoryDataPlane
from tests.support.faulty_disk import flip_a_bit
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

MIB = 1 << 20


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "node-commands", small=12, large=2)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonBench]:
    for name in [name for name in os.environ if name.startswith("HAYLOFT_") or name == "COLUMNS"]:
        monkeypatch.delenv(name)
    bench = DaemonBench(tmp_path, flags=("--free-floor=64MiB", "--no-openless"))
    yield bench
    bench.close()


class Command:
    """Runs commands in this process, against the daemon of a bench."""

    def __init__(self, bench: DaemonBench, capfd: pytest.CaptureFixture[str]) -> None:
        self._socket = f"--daemon-socket={bench.run / 'cache.sock'}"
        self._capfd = capfd

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._capfd.readouterr()
        code = run_command([*words, self._socket])
        captured = self._capfd.readouterr()
        return int(code), captured.out, captured.err

    def document(self, *words: str, code: int = 0) -> Any:
        """Of a command with ``--json``."""
        found, out, err = self(*words, "--json")
        assert found == code, err
        return json.loads(out)


@pytest.fixture
def hayloft(bench: DaemonBench, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(bench, capfd)


def bytes_below(bucket: Bucket, prefix: str) -> int:
    return sum(len(data) for path, data in bucket.objects.items() if path.startswith(prefix))


def cached_bytes(hayloft: Command, *words: str) -> int:
    return int(hayloft.document("ls", "volume-1", *words)["cached_bytes"])


def read_all(hayloft: Command, mount_point: Path, bucket: Bucket) -> None:
    """Reads every file once, and waits until all of them are in the cache."""
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    wait_until(lambda: cached_bytes(hayloft) == bucket.total_bytes)


@pytest.mark.promise("S584")
def test_the_numbers_of_a_known_workload_are_exact(hayloft: Command, bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    cold = hayloft.document("status")
    assert cold["healthy"]
    assert cold["reads"] == {"opened_bytes": 0, "fetched_for_readers_bytes": 0, "hit_ratio": None}
    (volume,) = cold["volumes"]
    assert (volume["cached_bytes"], volume["total_bytes"], volume["files"]) == (0, bucket.total_bytes, 14)
    read_all(hayloft, mount_point, bucket)
    whole = hayloft.document("status")
    assert whole["reads"] == {
        "opened_bytes": bucket.total_bytes,
        "fetched_for_readers_bytes": bucket.total_bytes,
        "hit_ratio": 0.0,
    }
    assert whole["counters"]["origin_bytes"] == bucket.total_bytes
    assert whole["counters"]["cache_used_bytes"] == bucket.total_bytes
    for name in ("0", "1"):
        (mount_point / "large" / f"{name}.bin").read_bytes()
    again = hayloft.document("status")["reads"]
    large_bytes = bytes_below(bucket, "large/")
    assert again["opened_bytes"] == bucket.total_bytes + large_bytes
    assert again["fetched_for_readers_bytes"] == bucket.total_bytes
    assert again["hit_ratio"] == pytest.approx(large_bytes / (bucket.total_bytes + large_bytes))
    assert hayloft.document("status")["counters"]["origin_requests"] == whole["counters"]["origin_requests"]


@pytest.mark.promise("S585")
def test_a_listing_tells_the_cached_bytes_of_each_file_and_directory(
    hayloft: Command, bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    (mount_point / "small" / "0003.bin").read_bytes()
    size = len(bucket.objects["small/0003.bin"])
    wait_until(lambda: cached_bytes(hayloft, "small") == size)
    listed = hayloft.document("ls", "volume-1", "small")
    cached = {entry["name"]: entry["cached_bytes"] for entry in listed["entries"]}
    assert cached == {f"{number:04}.bin": size if number == 3 else 0 for number in range(12)}
    root = {entry["name"]: entry for entry in hayloft.document("ls", "volume-1")["entries"]}
    assert {name: entry["cached_bytes"] for name, entry in root.items()} == {"small": size, "large": 0}
    assert {name: entry["total_bytes"] for name, entry in root.items()} == {
        name: bytes_below(bucket, f"{name}/") for name in ("small", "large")
    }
    assert hayloft.document("ls", "volume-1", "small/0003.bin")["cached_bytes"] == size
    with (mount_point / "large" / "0.bin").open("rb") as file:
        file.read(1)
    attribute = os.getxattr(mount_point / "large" / "0.bin", "user.hayloft.cached").split(b"/")[0]
    wait_until(lambda: cached_bytes(hayloft, "large/0.bin") >= int(attribute) > 0)
    code, out, _ = hayloft("ls", "volume-1", "small")
    assert code == 0
    assert "100%" in next(line for line in out.splitlines() if line.endswith("0003.bin"))
    code, _, err = hayloft("ls", "volume-1", "none/such")
    assert (code, "none/such" in err) == (2, True)


@pytest.mark.promise("S585")
def test_a_volume_is_named_by_id_part_of_it_url_or_path(hayloft: Command, bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    for name in ("volume-1", "lume-", f"s3://{bucket.name}/data", f"{mount_point}", f"{mount_point}/small/0001.bin"):
        assert hayloft.document("ls", name)["volume_id"] == "volume-1"
    code, _, err = hayloft("ls", "other")
    assert code == 2
    assert "volume-1" in err
    assert "volume-1" in hayloft("volumes")[1]
    assert hayloft.document("volumes")[0]["url"] == f"s3://{bucket.name}/data/"


@pytest.mark.promise("S586")
def test_what_is_evicted_is_gone_and_is_fetched_again(hayloft: Command, bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    read_all(hayloft, mount_point, bucket)
    evicted = hayloft.document("evict", "volume-1", "small")
    assert evicted == {
        "volume_id": "volume-1",
        "path": "small",
        "evicted_bytes": bytes_below(bucket, "small/"),
        "evicted_files": 12,
        "kept_bytes": 0,
        "kept_files": 0,
    }
    assert cached_bytes(hayloft, "small") == 0
    used = hayloft.document("status")["counters"]["cache_used_bytes"]
    assert used == bytes_below(bucket, "large/") == cached_bytes(hayloft)
    with (mount_point / "large" / "0.bin").open("rb") as file:
        file.read(1)
        kept = hayloft.document("evict", "volume-1")
        assert (kept["kept_files"], kept["kept_bytes"]) == (1, len(bucket.objects["large/0.bin"]))
        assert kept["evicted_files"] == 1
        assert file.read() == bucket.objects["large/0.bin"][1:]
    read_all(hayloft, mount_point, bucket)
    assert bench.origin_bytes() == bucket.total_bytes * 2 - len(bucket.objects["large/0.bin"])


@pytest.mark.promise("S587")
def test_a_pinned_volume_is_reserved_also_by_the_next_daemon(
    hayloft: Command, bench: DaemonBench, bucket: Bucket
) -> None:
    daemon = bench.start()
    bench.mount(bucket)
    assert hayloft.document("pin", "volume-1")["pinned"]
    code, _, err = hayloft("evict", "volume-1")
    assert code == 1
    assert "hayloft unpin volume-1" in err
    bench.mount(bucket, "volume-2")
    code, _, err = hayloft("evict", "volume-2")
    assert (code, "shows the dataset of volume-1, which is pinned" in err) == (1, True)
    bench.unmount(bench.directory / "mount-volume-2", "volume-2")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    bench.start()
    assert hayloft.document("volumes")[0]["pinned"]
    code, out, _ = hayloft("unpin", "volume-1")
    assert (code, "not pinned" in out) == (0, True)
    assert not hayloft.document("volumes")[0]["pinned"]
    assert hayloft("evict", "volume-1")[0] == 0


@pytest.mark.promise("S587")
def test_a_volume_that_does_not_fit_is_not_pinned(hayloft: Command, bench: DaemonBench, bucket: Bucket) -> None:
    large_bytes = bytes_below(bucket, "large/")
    bench.flags = (*bench.flags, f"--cache-limit={large_bytes}")
    bench.start()
    bench.mount(bucket)
    for name in ("large", "small"):
        bench.mount(bucket, name, url=f"s3://{bucket.name}/data/{name}")
    code, _, err = hayloft("pin", "volume-1")
    assert (code, "--cache-limit" in err) == (2, True)
    assert hayloft("pin", "small")[0] == 0
    code, _, err = hayloft("pin", "large")
    assert (code, "are reserved by other volumes on this node" in err) == (1, True)
    assert {one["volume_id"] for one in hayloft.document("volumes") if one["pinned"]} == {"small"}
    assert hayloft("unpin", "small")[0] == 0
    assert hayloft("pin", "large")[0] == 0


@pytest.mark.promise("S588")
def test_every_cached_byte_is_verified_and_damage_is_dropped(
    hayloft: Command, bench: DaemonBench, bucket: Bucket
) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    read_all(hayloft, mount_point, bucket)
    good = hayloft.document("verify", "volume-1")
    assert (good["checked_bytes"], good["checked_files"], good["findings"]) == (bucket.total_bytes, 14, [])
    # The last chunk is read before the file is complete: the store is asked for the object's checksum in between.
    wait_until(lambda: len(list(bench.cache.glob("objects/*/*"))) == 14)
    digest = next(path for path in bench.cache.glob("objects/*/*") if path.stat().st_size > 10 * MIB)
    size = digest.stat().st_size
    name = next(path for path, data in bucket.objects.items() if len(data) == size)
    digest.chmod(0o644)
    flip_a_bit(digest, 3 * MIB + 5)
    code, out, _ = hayloft("verify", "volume-1", "large")
    assert code == 6
    assert f"damaged: {name} (1 of its chunks of 1 MiB" in out
    assert cached_bytes(hayloft) == bucket.total_bytes - MIB
    assert hayloft.document("verify", "volume-1")["findings"] == []
    # Pages that the kernel still has of the mount need no fetch, until the daemon has them dropped.
    wait_until(
        lambda: (
            (mount_point / name).read_bytes() == bucket.objects[name] and cached_bytes(hayloft) == bucket.total_bytes
        )
    )


@pytest.mark.promise("S588")
def test_files_are_compared_with_the_store(hayloft: Command, bench: DaemonBench, seaweed: SeaweedFsServer) -> None:
    bucket = made_bucket(seaweed, "node-commands-origin", small=4, large=0)
    bench.start()
    bench.mount(bucket)
    good = hayloft.document("verify", "volume-1", "--origin")
    assert (good["compared_files"], good["checked_files"], good["findings"]) == (4, 0, [])
    same_size = bytes(len(bucket.objects["small/0000.bin"]))
    bucket.put("small/0000.bin", same_size)
    bucket.put("small/0001.bin", b"shorter")
    obstore.delete(bucket._store(), "data/small/0002.bin")
    found = hayloft.document("verify", "volume-1", "--origin", code=6)["findings"]
    assert {one["path"]: one["kind"] for one in found} == {
        "small/0000.bin": "changed",
        "small/0001.bin": "changed",
        "small/0002.bin": "missing",
    }


@pytest.mark.promise("S580")
def test_a_daemon_that_is_down_stuck_or_of_another_version_is_said_to_be_so(
    hayloft: Command, bench: DaemonBench, bucket: Bucket
) -> None:
    commands = (
        *(("status",), ("volumes",), ("ls", "volume-1"), ("evict", "volume-1"), ("pin", "volume-1")),
        *(("unpin", "volume-1"), ("verify", "volume-1"), ("top",), ("warm", "volume-1")),
    )
    for command in commands:
        code, out, err = hayloft(*command)
        assert (code, out) == (3, ""), err
        assert "no cache daemon" in err
        assert len(err.splitlines()) == 1
    daemon = bench.start()
    bench.mount(bucket)
    process_id = hayloft.document("status")["daemon"]["process_id"]
    os.kill(process_id, signal.SIGSTOP)
    try:
        for command in commands:
            code, _, err = hayloft(*command)
            assert code == 4, err
            assert f"process {process_id} is stopped" in err
            assert f"kill -CONT {process_id}" in err
    finally:
        os.kill(process_id, signal.SIGCONT)
    daemon.terminate()
    daemon.wait()
    server = daemon_server(bench.run / "cache.sock", InMemoryDataPlane())
    server.start()
    try:
        for command in commands[:-1]:
            code, _, err = hayloft(*command)
            assert code == 5, err
            assert "version 1.2.3 (process 77)" in err
            assert f"of version {hayloft_version()}" in err
    finally:
        server.stop(0)


@pytest.mark.promise("S590")
def test_readers_are_seen_with_their_files_and_what_they_have_read(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    warm_file = mount_point / "large" / "0.bin"
    with OperationsClientOf(bench) as client:
        with (mount_point / "large" / "1.bin").open("rb", buffering=0) as partial:
            warm_file.read_bytes()
            wait_until(
                lambda: (
                    os.getxattr(warm_file, "user.hayloft.cached").split(b"/")[0]
                    == str(warm_file.stat().st_size).encode()
                )
            )
            with warm_file.open("rb", buffering=0) as complete:
                before = sample(client)
                assert complete.read(3 * MIB) == bucket.objects["large/0.bin"][: 3 * MIB]
                assert partial.read(MIB) == bucket.objects["large/1.bin"][:MIB]
                after = sample(client)
        use = use_between(Sample(0.0, before.activity, before.readers), Sample(2.0, after.activity, after.readers))
        (mine,) = (one for one in use.uses if one.process_id == os.getpid())
        (volume,) = after.activity.volumes
        passthrough = bool(volume.passed_through)
        assert mine.volume_id == "volume-1"
        assert (mine.open_files, mine.passed_through) == (2, 1 if passthrough else 0)
        assert mine.served_per_s is not None
        moved = (mine.passed_per_s * 2, mine.served_per_s * 2)
        assert moved == ((3 * MIB, MIB) if passthrough else (0, 4 * MIB))
        assert mine.process_reads_per_s is not None
        assert mine.process_reads_per_s * 2 >= 4 * MIB
        closed = sample(client)
        assert os.getpid() not in closed.readers


class OperationsClientOf:
    """A client of a bench's daemon, closed at the end of the body."""

    def __init__(self, bench: DaemonBench) -> None:
        self._client = OperationsClient(bench.run / "cache.sock", hayloft_version())

    def __enter__(self) -> OperationsClient:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


def sample(client: OperationsClient) -> Sample:
    activity = client.activity()
    return Sample(0.0, activity, readers({volume.device for volume in activity.volumes}))


@pytest.mark.promise("S584")
def test_a_warmup_is_no_miss_of_readers(hayloft: Command, bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    assert hayloft("warm", "volume-1")[0] == 0
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)
    reads = hayloft.document("status")["reads"]
    assert reads == {"opened_bytes": bucket.total_bytes, "fetched_for_readers_bytes": 0, "hit_ratio": 1.0}
    code, out, _ = hayloft("status")
    assert code == 0
    assert "nothing is wrong" in out
    code, _, err = hayloft("warm")
    assert (code, "VOLUME" in err) == (2, True)


@pytest.mark.promise("S580")
def test_a_view_that_is_repeated_outlives_the_daemon(bench: DaemonBench) -> None:
    daemon = bench.start()
    words = ("status", "--watch", "--json", "--interval=0.2s", f"--daemon-socket={bench.run / 'cache.sock'}")
    command = (sys.executable, "-m", "csi_driver.cli", *words)
    # Not inherited: readline, which pytest imports, has put COLUMNS into the environment of the process itself.
    environment = dict(os.environ)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as view:
        assert view.stdout is not None
        try:
            assert json.loads(view.stdout.readline())["healthy"]
            daemon.kill()
            daemon.wait()
            while "no cache daemon listens there" not in json.loads(view.stdout.readline()).get("error", ""):
                pass
            bench.start()
            while "healthy" not in json.loads(view.stdout.readline()):
                pass
            view.send_signal(signal.SIGINT)
            view.stdout.read()
            assert view.wait(60) == 128 + signal.SIGINT
        finally:
            view.kill()
