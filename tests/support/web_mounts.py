"""Mounts of web servers' datasets, by a data plane in the process of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, RegistrySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.listers import LocalLister
from tests.support.random_bytes import random_bytes

MIB = 1 << 20
LARGE = random_bytes(1, 6 * MIB + 321)
FILES = {
    "a.txt": b"hello",
    "empty": b"",
    "dir/with space.bin": b"x" * 3000,
    "dir/deep/tab\there": b"tab",
    "dir/deep/new\nline": b"line",
    "dir/deep/plain": b"plain",
    "grüße/日本語": b"text",
    "<&>\"'": b"markup",
    "per%20cent": b"literal",
    "query?x=1": b"query",
    "hash#1": b"hash",
    "colon:x": b"colon",
    "back\\slash": b"back",
    "plus+plus": b"plus",
    "large.bin": LARGE,
}
OBJECTS = {f"data/{path}": content for path, content in FILES.items()} | {"data2/no": b"no", "no": b"no"}


@dataclass
class Mounts:
    """A data plane in this process, and its mounts."""

    data_plane: LocalDataPlane
    directory: Path
    count: int = 0

    def __call__(self, url: str, secrets: Mapping[str, str] | None = None, **attributes: str) -> Path:
        self.count += 1
        path = self.directory / f"mount-{self.count}"
        path.mkdir()
        given = {"url": url, "deadline": "3s", "requestTimeout": "3s", **attributes}
        self.data_plane.mount(MountRequest(f"volume-{self.count}", str(path), given, secrets or {}))
        return path


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounts]:
    for name in ("cache", "registry", "state"):
        (tmp_path / name).mkdir()
    settings = CacheDaemonSettings(
        socket=tmp_path / "socket",
        state_directory=tmp_path / "state",
        chunk_store=ChunkStoreSettings(directory=tmp_path / "cache", free_floor_bytes=0, scrub_bytes_per_s=0),
        registry=RegistrySettings(location=str(tmp_path / "registry")),
    )
    chunk_store = ChunkStore(settings.chunk_store)
    event_loop = EventLoop()
    read_through_cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
    event_loop.start()
    lister = LocalLister(open_listing_store)
    snapshots = SnapshotService(open_registry(settings.registry), lister, settings.state_directory / "m")
    data_plane = LocalDataPlane(settings, chunk_store, read_through_cache, event_loop, snapshots, None, "test")
    yield Mounts(data_plane, tmp_path)
    data_plane.close()
    event_loop.close()
    read_through_cache.close()
    chunk_store.close()


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by path."""
    root = os.fsencode(directory)
    found = {}
    for above, _, names in os.walk(root):
        for name in names:
            path = os.path.join(above, name)
            with open(path, "rb") as file:
                found[os.fsdecode(os.path.relpath(path, root))] = file.read()
    return found


def listed(url: str, **options: object) -> dict[str, int]:
    """Sizes by key, of a listing without a mount."""
    parsed = DatasetUrl.parse(url)
    store = open_store(parsed, StoreOptions(deadline_s=3, **options), Credentials())  # type: ignore[arg-type]
    try:
        pages = list(store.list(parsed.prefix))
        return {key: size for page in pages for key, size in zip(page.keys, page.sizes_bytes, strict=True)}
    finally:
        store.close()
