"""The data plane of the cache daemon in this process, with a dataset of local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.csi_calls import count_parses

pytestmark = pytest.mark.fuse


@pytest.fixture
def data_plane(tmp_path: Path) -> Iterator[LocalDataPlane]:
    for name in ("cache", "data", "mount", "registry", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "file").write_bytes(b"content")
    settings = CacheDaemonSettings(
        socket=tmp_path / "socket",
        state_directory=tmp_path / "state",
        chunk_store=ChunkStoreSettings(directory=tmp_path / "cache", free_floor_bytes=0, scrub_bytes_per_s=0),
        registry=RegistrySettings(location=str(tmp_path / "registry")),
        policy=PolicySettings(allow_file_urls=True),
    )
    chunk_store = ChunkStore(settings.chunk_store)
    event_loop = EventLoop()
    read_through_cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
    event_loop.start()
    snapshots = SnapshotService(open_registry(settings.registry), open_listing_store, settings.state_directory / "m")
    data_plane = LocalDataPlane(settings, chunk_store, read_through_cache, event_loop, snapshots, None, "test")
    yield data_plane
    data_plane.close()
    event_loop.close()
    read_through_cache.close()
    chunk_store.close()


def test_a_mount_parses_the_attributes_once(
    data_plane: LocalDataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = count_parses(monkeypatch)
    request = MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"})
    data_plane.mount(request)
    assert len(parsed) == 1
    data_plane.mount(request)
    assert len(parsed) == 2
