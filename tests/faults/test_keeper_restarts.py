"""The keeper dies, keeper and daemon die together, or the store is unreachable when a daemon starts."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.fuse import mounting as device
from csi_driver.mounts.keeper_protocol import KeeperClient
from tests.support.cache_files import chunk_maps
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, stop, wait_until
from tests.support.hostile_s3 import Hang, HostileS3

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

MIB = 1 << 20
TIMES = {"requestTimeout": "1s", "deadline": "1s"}


@pytest.fixture
def store() -> Iterator[HostileS3]:
    draw = random.Random(9)
    objects = {"data/small.jpg": draw.randbytes(110_000), "data/other.jpg": draw.randbytes(110_000)}
    objects |= {"data/large.bin": draw.randbytes(20 * MIB + 5)}
    with HostileS3(objects) as store:
        yield store


@pytest.fixture
def bucket(store: HostileS3) -> Bucket:
    objects = {path: store.content(f"data/{path}") or b"" for path in ("small.jpg", "other.jpg", "large.bin")}
    return Bucket(store, store.bucket, objects)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path)
    yield bench
    bench.close()


def held(bench: DaemonBench) -> int:
    return len(KeeperClient(bench.run / "keeper.sock").names())


def kill_keeper(bench: DaemonBench) -> None:
    stop(bench.keeper, signal.SIGKILL)


@pytest.mark.promise("S89")
def test_a_restarted_keeper_receives_the_mounts_again(bench: DaemonBench, bucket: Bucket) -> None:
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    with (mount_point / "large.bin").open("rb", buffering=0) as file:
        first = file.read(1 << 20)
        kill_keeper(bench)
        bench.start_keeper()
        assert held(bench) == 0
        wait_until(lambda: held(bench) == 1)
        stop(daemon, signal.SIGKILL)
        bench.start()
        assert first + file.read() == bucket.objects["large.bin"]
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


@pytest.mark.promise("S89")
def test_a_keeper_that_starts_after_the_mount_receives_it(bench: DaemonBench, bucket: Bucket) -> None:
    kill_keeper(bench)
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    bench.start_keeper()
    wait_until(lambda: held(bench) == 1)
    stop(daemon, signal.SIGKILL)
    bench.start()
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


def test_an_unmounted_mount_is_not_passed_to_a_restarted_keeper(bench: DaemonBench, bucket: Bucket) -> None:
    bench.start()
    mount_point = bench.mount(bucket)
    kill_keeper(bench)
    bench.unmount(mount_point)
    bench.mount(bucket, "volume-2")
    bench.start_keeper()
    wait_until(lambda: held(bench) == 1)
    bench.unmount(bench.directory / "mount-volume-2", "volume-2")
    wait_until(lambda: held(bench) == 0)


@pytest.mark.promise("S90")
def test_when_daemon_and_keeper_die_readers_get_an_error_and_the_volume_can_be_mounted_again(
    bench: DaemonBench, bucket: Bucket
) -> None:
    daemon = bench.start()
    mount_point = bench.mount(bucket)
    with (mount_point / "small.jpg").open("rb", buffering=0) as passed, (mount_point / "large.bin").open("rb") as cold:
        cold.read(1)
        kill_keeper(bench)
        stop(daemon, signal.SIGKILL)
        with pytest.raises(OSError, match="not connected") as caught:
            os.stat(mount_point / "other.jpg")
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(cold.fileno(), 100, 15 * MIB)
        assert passed.read() == bucket.objects["small.jpg"], "a passthrough read needs no daemon"
        bench.start_keeper()
        bench.start()
        assert device.find(mount_point) is None
    assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)
    wait_until(lambda: held(bench) == 1)


@pytest.mark.promise("S223")
def test_readers_of_a_daemon_that_does_not_come_back_get_an_error(tmp_path: Path, bucket: Bucket) -> None:
    bench = DaemonBench(tmp_path, keeper_flags=("--daemon-timeout=15s",))
    try:
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        with (mount_point / "large.bin").open("rb", buffering=0) as file:
            first = file.read(MIB)
            stop(daemon, signal.SIGKILL)
            daemon = bench.start()
            assert first + file.read() == bucket.objects["large.bin"], "one that comes back in time adopts the mount"
        stop(daemon, signal.SIGKILL)
        ask = f"import os; os.stat({os.fspath(mount_point / 'other.jpg')!r})"
        reader = subprocess.run([sys.executable, "-c", ask], stderr=subprocess.PIPE, timeout=60, check=False)
        assert b"ConnectionAbortedError" in reader.stderr, reader.stderr
        with pytest.raises(OSError, match="not connected"):
            os.stat(mount_point / "small.jpg")
        bench.start()
        assert device.find(mount_point) is None
        assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)
    finally:
        bench.close()


@pytest.mark.promise("S656")
def test_a_killed_reader_ends_when_no_daemon_comes_back_and_the_next_one_names_the_mount(
    tmp_path: Path, bucket: Bucket, store: HostileS3
) -> None:
    """A request that a daemon had read when it died is waited for by the kernel whatever becomes of its reader, whose
    pod stays for as long. Here it is the open of a small file, which the store does not send."""
    bench = DaemonBench(tmp_path, keeper_flags=("--daemon-timeout=30s",))
    try:
        daemon = bench.start()
        mount_point = bench.mount(bucket)
        store.fail_all(Hang(600))
        read = f"open({os.fspath(mount_point / 'small.jpg')!r}, 'rb')"
        reader = subprocess.Popen([sys.executable, "-c", read])
        with bench.client() as client:
            wait_until(lambda: client.report().origin_requests > 0)
        stop(daemon, signal.SIGKILL)
        reader.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(2)
        assert state_of(reader.pid) == "D"
        assert reader.wait(120) == -signal.SIGKILL
        store.fail_all(None)
        bench.start()
        with bench.client() as client:
            (lost,) = client.mounts()
            assert (lost.volume_id, lost.mount_point, lost.device) == ("volume-1", os.fspath(mount_point), "")
            assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)
            (mounted,) = client.mounts()
            assert mounted.device
    finally:
        bench.close()


def state_of(process_id: int) -> str:
    """A letter of proc_pid_stat(5)."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_daemon_without_a_keeper_starts_although_one_is_named(bench: DaemonBench, bucket: Bucket) -> None:
    kill_keeper(bench)
    bench.start()
    assert digest_of_tree(bench.mount(bucket)) == digest_of_objects(bucket.objects)


@pytest.mark.promise("S88")
@pytest.mark.parametrize("how", ["gone", "hangs"])
def test_a_daemon_that_starts_without_its_store_serves_cached_bytes(
    bench: DaemonBench, bucket: Bucket, store: HostileS3, how: str
) -> None:
    """Open files are adopted without a request to the store, including small ones that were never complete."""
    daemon = bench.start()
    mount_point = bench.mount(bucket, **TIMES)
    small = (mount_point / "small.jpg").open("rb", buffering=0)
    large = (mount_point / "large.bin").open("rb", buffering=0)
    cached = os.pread(large.fileno(), MIB, 0)
    wait_until(lambda: _is_recorded(bench))
    if how == "gone":
        store.go_away()
    else:
        store.fail_all(Hang(60))
    stop(daemon, signal.SIGKILL)
    bench.start()
    assert small.read() == bucket.objects["small.jpg"]
    assert os.pread(large.fileno(), MIB, 0) == cached
    expected = {"gone": errno.EHOSTUNREACH, "hangs": errno.ETIMEDOUT}[how]
    for attempt in (lambda: os.pread(large.fileno(), 100, 19 * MIB), lambda: (mount_point / "other.jpg").read_bytes()):
        with pytest.raises(OSError, match="Errno") as caught:
            attempt()
        assert caught.value.errno == expected
    store.fail_all(None)
    if how == "gone":
        store.come_back()
    assert os.pread(large.fileno(), 100, 19 * MIB) == bucket.objects["large.bin"][19 * MIB : 19 * MIB + 100]
    small.close()
    large.close()
    assert digest_of_tree(mount_point) == digest_of_objects(bucket.objects)


def _is_recorded(bench: DaemonBench) -> bool:
    """Partial files are in the index a second after their chunks were fetched."""
    return bool(chunk_maps(bench.cache / "index.sqlite"))


@pytest.mark.promise("S38")
def test_a_daemon_is_stopped_while_its_store_hangs(bench: DaemonBench, bucket: Bucket, store: HostileS3) -> None:
    """The deadline is five minutes, and the daemon still ends on SIGTERM."""
    daemon = bench.start()
    mount_point = bench.mount(bucket, requestTimeout="2m", deadline="5m")
    store.fail_all(Hang(600))
    reader = subprocess.Popen(["cat", str(mount_point / "large.bin")], stdout=subprocess.DEVNULL)
    wait_until(lambda: store.seen("GET"))
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    store.fail_all(None)
    bench.start()
    assert reader.wait(60) == 0, "the next daemon answers the pending read"
