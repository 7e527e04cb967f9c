"""The daemon's health report, reservations that grow, and groups: with real mounts, a real store, and kills."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.csi.node_health import NodeHealth
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.fuse import mounting
from csi_driver.model import conditions
from csi_driver.model.errors import CacheOvercommitted, CapacityOutOfRange, VolumeNotFound
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.data_plane import HealthReport, MountHealth, MountRequest, WarmupRequest
from tests.support.daemons import Bucket, DaemonBench, stop, wait_until
from tests.support.hostile_s3 import Hang, HostileS3, Status

pytestmark = pytest.mark.fuse

MIB = 1 << 20
OBJECTS = {"a": os.urandom(100_000), "b": os.urandom(100_000), "large": os.urandom(6 * MIB)}


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3({f"data/{name}": content for name, content in OBJECTS.items()}) as store:
        yield store


@pytest.fixture
def bench(home: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(home, flags=("--free-floor=64MiB", "--cache-limit=100MiB"))
    bench.start()
    yield bench
    bench.close()


@pytest.fixture
def client(bench: DaemonBench) -> Iterator[DaemonClient]:
    with bench.client() as client:
        yield client


def bucket(store: HostileS3) -> Bucket:
    return Bucket(store, store.bucket, OBJECTS)  # type: ignore[arg-type]


def of(report: HealthReport, volume_id: str) -> MountHealth:
    (found,) = (mount for mount in report.mounts if mount.volume_id == volume_id)
    return found


def reasons(client: DaemonClient, volume_id: str = "volume-1") -> set[str]:
    return {condition.reason for condition in of(client.health(), volume_id).conditions}


@pytest.mark.promise("S350")
def test_what_readers_and_warmups_meet_is_in_the_report_and_leaves_it_again(
    bench: DaemonBench, client: DaemonClient, store: HostileS3
) -> None:
    mount = bench.mount(bucket(store), requestTimeout="4s", deadline="4s", opens="daemon")
    assert reasons(client) == set()
    health = of(client.health(), "volume-1")
    assert (health.total_bytes, health.file_count) == (sum(map(len, OBJECTS.values())), 3)
    store.fail_all(Hang(60))
    reader = threading.Thread(target=lambda: suppress_errors(mount / "large"))
    reader.start()
    wait_until(lambda: "StoreSlow" in reasons(client))
    reader.join()
    assert reasons(client) >= {"StoreFailing"}
    store.fail_all(Status(403, "InvalidAccessKeyId"))
    suppress_errors(mount / "a")
    assert reasons(client) >= {"CredentialsRejected"}
    store.fail_all(None)
    assert (mount / "a").read_bytes() == OBJECTS["a"]
    wait_until(lambda: reasons(client) == set())
    store.delete("data/b")
    suppress_errors(mount / "b")
    assert reasons(client) == {"ObjectsGone"}
    client.start_warmup(WarmupRequest("volume-1"))
    wait_until(lambda: reasons(client) == {"ObjectsGone", "WarmupFailed"})
    stop(bench.keeper, signal.SIGKILL)
    wait_until(lambda: client.health().node == (conditions.KEEPER_UNAVAILABLE,))
    bench.start_keeper()
    wait_until(lambda: client.health().node == ())


def suppress_errors(path: Path) -> None:
    with suppress(OSError):
        path.read_bytes()


@pytest.mark.promise("S352")
def test_health_is_answered_at_once_while_the_daemon_is_dead_hangs_and_starts(
    bench: DaemonBench, store: HostileS3
) -> None:
    mount = bench.mount(bucket(store))
    entry = MountTable.read().at(mount)
    assert entry is not None
    daemon = bench.processes[-1]
    with bench.client() as client:
        health = NodeHealth(client)
        assert health.of_volume("volume-1", entry).conditions == ()
        daemon.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: health.of_volume("volume-1", entry).conditions == (conditions.CACHE_DAEMON_UNAVAILABLE,))
        finally:
            daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: health.of_volume("volume-1", entry).conditions == ())
        stop(daemon, signal.SIGKILL)
        wait_until(lambda: health.of_node() == (conditions.CACHE_DAEMON_UNAVAILABLE,))
        bench.start()
        wait_until(lambda: health.of_volume("volume-1", entry).conditions == ())
        mounting.abort(entry)
        wait_until(lambda: health.of_volume("volume-1", entry).conditions == (conditions.MOUNT_DEAD,))


@pytest.mark.promise("S354")
def test_a_reservation_grows_and_outlives_the_daemon_but_not_the_mount(
    bench: DaemonBench, client: DaemonClient, store: HostileS3
) -> None:
    mount = bench.mount(bucket(store), cacheReservation="10MiB")
    assert client.volume("volume-1").reserved_bytes == 10 * MIB
    for _ in range(2):
        assert client.reserve("volume-1", 40 * MIB).reserved_bytes == 40 * MIB
    assert client.reserve("volume-1", 20 * MIB).reserved_bytes == 40 * MIB
    with pytest.raises(CapacityOutOfRange, match="capacity_range"):
        client.reserve("volume-1", 101 * MIB)
    with pytest.raises(VolumeNotFound):
        client.reserve("volume-2", MIB)
    stop(bench.processes[-1], signal.SIGKILL)
    bench.start()
    assert client.volume("volume-1").reserved_bytes == 40 * MIB
    store.put("other/x", b"x")
    other = Bucket(store, store.bucket, {})  # type: ignore[arg-type]
    second = bench.mount(other, "volume-2", url=f"s3://{store.bucket}/other", cacheReservation="30MiB")
    with pytest.raises(CacheOvercommitted):
        client.reserve("volume-2", 90 * MIB)
    assert client.volume("volume-2").reserved_bytes == 30 * MIB, "a refusal changes nothing"
    assert client.reserve("volume-2", 55 * MIB).reserved_bytes == 55 * MIB
    bench.unmount(second, "volume-2")
    bench.unmount(mount)
    bench.mount(bucket(store), cacheReservation="10MiB")
    assert client.volume("volume-1").reserved_bytes == 10 * MIB


@pytest.mark.promise("S354")
def test_a_volume_without_a_reservation_gets_none(bench: DaemonBench, client: DaemonClient, store: HostileS3) -> None:
    bench.mount(bucket(store))
    assert client.reserve("volume-1", 40 * MIB).reserved_bytes == 0


@pytest.mark.promise("S355")
@pytest.mark.parametrize(
    ("attributes", "shown", "is_view"),
    [
        ({}, 2000, True),
        ({"gid": "3000"}, 3000, False),
        ({"dirMode": "0550"}, 2000, False),
        ({"fileMode": "0440", "dirMode": "0550"}, 2000, False),
    ],
    ids=["all may read", "the volume's own group", "directories of the group", "all of the group"],
)
def test_the_group_of_a_pod_reads_the_mount_and_the_view(
    bench: DaemonBench,
    client: DaemonClient,
    store: HostileS3,
    home: Path,
    attributes: dict[str, str],
    shown: int,
    is_view: bool,
) -> None:
    volume = bucket(store)
    mount, target = home / "mount", home / "target"
    for path in (mount, target):
        path.mkdir()
    bench.mount_points += [target, mount]
    request = MountRequest("v", str(mount), volume.attributes | attributes, volume.secrets, mount_group=2000)
    client.mount(request)
    if is_view:
        stop(bench.processes[-1], signal.SIGKILL)
        bench.start()
    assert {path.stat().st_gid for path in (mount, *mount.iterdir())} == {shown}, "also after a restart of the daemon"
    for path in mount.iterdir():
        path.read_bytes()
    wait_until(lambda: client.volume("v").cached_bytes == sum(map(len, OBJECTS.values())))
    if not is_view:
        assert not client.publish("v", str(target))
    else:
        wait_until(lambda: client.publish("v", str(target)))  # an object is complete a moment after its last byte
        status = (target / "a").stat()
        assert status.st_mode & stat.S_IROTH
        assert target.stat().st_mode & 0o005 == 0o005
    # A pod that is neither root nor of the volume's owner, with the group as a supplementary one.
    home.chmod(0o711)
    reader = ["cat", str((target if is_view else mount) / "a")]
    try:
        found = subprocess.run(reader, user=12345, group=12345, extra_groups=[shown], capture_output=True, check=False)
        assert found.stdout == OBJECTS["a"], found.stderr
    finally:
        client.unpublish("v", str(target))
