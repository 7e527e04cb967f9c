"""A cache disk that answers EIO, below real mounts: readers get the right bytes, and the volume's condition reports it.

The faults are in ``Disk``, which passthrough reads bypass together with the daemon. A kernel with device-mapper could
fail those, too, by its ``error`` and ``flakey`` targets; the reader would get the kernel's EIO, which no daemon sees.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.model.conditions import CACHE_DISK_FAILING
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, FuseSettings, RegistrySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, digest_of_objects, made_bucket, wait_until
from tests.support.faulty_disk import FaultyDisk
from tests.support.listers import LocalLister
from tests.support.own_event_loop import OwnLoopCache
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.faults]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "failing", small=20, large=1)


class Node:
    """A data plane in this process over a disk that fails; readers are separate processes."""

    def __init__(self, directory: Path, bucket: Bucket) -> None:
        self.disk = FaultyDisk()
        self.mount_point = directory / "mount"
        for name in ("cache", "mount", "registry"):
            (directory / name).mkdir()
        settings = CacheDaemonSettings(
            socket=directory / "socket",
            state_directory=directory / "state",
            chunk_store=ChunkStoreSettings(directory=directory / "cache", free_floor_bytes=0, scrub_bytes_per_s=0),
            fuse=FuseSettings(passthrough=False),
            registry=RegistrySettings(location=str(directory / "registry")),
        )
        settings.state_directory.mkdir()
        self.chunks = ChunkStore(settings.chunk_store, self.disk)
        self.library = OwnLoopCache(self.chunks, settings.reading)
        snapshots = SnapshotService(
            open_registry(settings.registry),
            LocalLister(open_listing_store),
            settings.state_directory / "manifests",
        )
        self.plane = LocalDataPlane(
            settings, self.chunks, self.library, self.library.event_loop, snapshots, None, "test"
        )
        self.plane.mount(MountRequest("volume-1", str(self.mount_point), bucket.attributes, bucket.secrets))

    def digests(self) -> dict[str, str]:
        # No ``cwd``: before exec, ``subprocess`` of Python 3.11.2 keeps the interpreter lock, which the mount needs.
        find = ["find", str(self.mount_point), "-type", "f", "-printf", "%P\n"]
        names = sorted(subprocess.run(find, capture_output=True, check=True, text=True).stdout.splitlines())
        command = ["sha256sum", *(str(self.mount_point / name) for name in names)]
        summed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
        return {name: line.split()[0] for name, line in zip(names, summed, strict=True)}

    def close(self) -> None:
        self.disk.labels = ()
        self.plane.close()
        self.library.close()
        self.chunks.close()


@pytest.fixture
def node(tmp_path: Path, bucket: Bucket) -> Iterator[Node]:
    node = Node(tmp_path, bucket)
    yield node
    node.close()


@pytest.mark.promise("S68")
@pytest.mark.parametrize("probability", [0.2, 1.0])
@pytest.mark.parametrize("labels", [("chunk.write",), ("chunk.read",), ("object.",), ("",)])
def test_readers_get_the_right_bytes_from_a_disk_that_answers_eio(
    node: Node, bucket: Bucket, labels: tuple[str, ...], probability: float
) -> None:
    expected = digest_of_objects(bucket.objects)
    node.disk.labels, node.disk.probability = labels, probability
    assert node.digests() == expected
    node.plane.tidy(-1.0)
    assert node.digests() == expected
    node.disk.labels = ()
    assert node.digests() == expected


def test_the_volume_condition_reports_a_failing_disk_and_its_recovery(node: Node, bucket: Bucket) -> None:
    expected = digest_of_objects(bucket.objects)
    assert not node.plane.volume("volume-1").abnormal
    for _ in range(20):
        node.chunks.read_failed("chunk.read: Input/output error")
    condition = node.plane.volume("volume-1")
    assert condition.conditions == (CACHE_DISK_FAILING,)
    assert node.plane.health().node == (CACHE_DISK_FAILING,)
    assert not node.plane.report().cache_disk_in_use
    node.disk.labels = ("",)
    assert node.digests() == expected
    assert node.disk.failed == 0, "a disk that is out of use is not touched"
    node.disk.labels = ()
    node.chunks.health._try_at = 0.0
    wait_until(lambda: node.chunks.checkpoint() or node.chunks.health.in_use)
    assert not node.plane.volume("volume-1").abnormal
    assert node.digests() == expected
