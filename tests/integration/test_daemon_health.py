"""Liveness and readiness of the cache daemon: a store that is away is no reason for a restart, a dead-lock is."""

from __future__ import annotations

import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_driver.cache.cache_directory import is_in_use
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, RegistrySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import Hang, HostileS3
from tests.support.listers import LocalLister
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.fuse

CONTENT = random_bytes(3, 8 << 20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A reader, which waits for the store during the body."""

    def read() -> None:
        with pytest.raises(OSError, match=r"."):
            path.read_bytes()

    reader = threading.Thread(target=read)
    reader.start()
    yield
    reader.join()


@pytest.mark.promise("S606")
def test_a_daemon_is_alive_and_ready_while_its_store_is_away(tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    flags = (f"--health-port={port}", f"--metrics-port={metrics}", "--free-floor=0")
    bench = DaemonBench(tmp_path, flags=flags, keep=False)
    with HostileS3({"data/large": CONTENT}) as store:
        try:
            bench.start()
            wait_until(lambda: status(port, "/readyz") == (200, "ok\n"))
            bucket = Bucket(store, store.bucket, {"large": CONTENT})  # type: ignore[arg-type]
            mount_point = bench.mount(bucket, requestTimeout="2s", deadline="6s")
            store.fail_all(Hang(60))
            with reading(mount_point / "large"):
                wait_until(lambda: "hayloft_volume_stall_seconds_total" in status(metrics, "/metrics")[1])
                assert status(port, "/healthz") == (200, "ok\n")
                assert status(port, "/readyz") == (200, "ok\n")
            assert status(port, "/healthz") == (200, "ok\n")
        finally:
            bench.close()


@pytest.mark.promise("S606")
def test_a_daemon_in_standby_is_ready_and_serves_no_mount_yet(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    bench = DaemonBench(tmp_path, flags=("--standby", f"--health-port={first}", "--free-floor=0"))
    try:
        bench.start()
        assert is_in_use(bench.cache)
        bench.flags = ("--standby", f"--health-port={second}", "--free-floor=0")
        bench.start_again()

        def ready() -> bool:
            try:
                return status(second, "/readyz")[0] == 200
            except OSError:  # it does not listen yet
                return False

        wait_until(ready)
    finally:
        bench.close()


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[LocalDataPlane, ReadThroughCache, HostileS3]]:
    """A data plane with a mounted volume, and its store."""
    for name in ("cache", "mount", "registry", "state"):
        (tmp_path / name).mkdir()
    settings = CacheDaemonSettings(
        socket=tmp_path / "socket",
        state_directory=tmp_path / "state",
        chunk_store=ChunkStoreSettings(directory=tmp_path / "cache", free_floor_bytes=0, scrub_bytes_per_s=0),
        registry=RegistrySettings(location=str(tmp_path / "registry")),
    )
    with HostileS3({"data/large": CONTENT}) as store:
        chunk_store, event_loop = ChunkStore(settings.chunk_store), EventLoop()
        cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
        event_loop.start()
        lister = LocalLister(open_listing_store)
        snapshots = SnapshotService(open_registry(settings.registry), lister, settings.state_directory / "m")
        plane = LocalDataPlane(settings, chunk_store, cache, event_loop, snapshots, None, "test")
        bucket = Bucket(store, store.bucket, {})  # type: ignore[arg-type]
        attributes = {**bucket.attributes, "requestTimeout": "2s", "deadline": "6s"}
        plane.mount(MountRequest("volume-1", os.fspath(tmp_path / "mount"), attributes, dict(bucket.secrets)))
        yield plane, cache, store
        plane.close()
        event_loop.close()
        cache.close()
        chunk_store.close()


@pytest.mark.promise("S605")
def test_the_probe_returns_while_the_store_hangs_and_not_while_a_lock_is_held(
    parts: tuple[LocalDataPlane, ReadThroughCache, HostileS3], tmp_path: Path
) -> None:
    plane, cache, store = parts
    store.fail_all(Hang(60))
    with reading(tmp_path / "mount" / "large"):
        wait_until(lambda: plane.measurements().reads.stall_s > 0)
        plane.probe()
    locks = (
        *(plane._lock, cache.fetcher._lock, cache.write_back._lock, cache.table._lock),
        plane._assembly.read_counts._lock,
    )
    for lock in locks:
        with lock:
            probe = threading.Thread(target=plane.probe)
            probe.start()
            probe.join(0.1)
            assert probe.is_alive(), f"it needs the lock {locks.index(lock)}"
        probe.join(30)
        assert not probe.is_alive()
