"""The data plane of the cache daemon in this process, with a dataset of local files."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.daemon.volume_stores import VolumeStore
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse import mounting
from csi_driver.model.errors import (
    BudgetExceeded,
    CacheDiskFailed,
    CacheDiskFull,
    CredentialsRejected,
    DescriptorsExhausted,
    ViewUnavailable,
    VolumeConflict,
)
from csi_driver.model.tenant import Tenant
from csi_driver.mounts import bind_mounts, materialised_views
from csi_driver.mounts.materialised_views import check_labels
from csi_driver.mounts.mount_table import MountTable
from csi_driver.reading.access import Credential
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import MIB, CacheDaemonSettings, ChunkStoreSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.data_plane import KnownMount, MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.csi_calls import count_parses
from tests.support.daemons import wait_until
from tests.support.listers import LocalLister
from tests.support.web_server import web_server

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
        policy=PolicySettings(
            allow_file_urls=True, inline_reservation_bytes=2 * MIB, inline_manifest_bytes=MIB, trusted_namespaces=("a",)
        ),
    )
    chunk_store = ChunkStore(settings.chunk_store)
    event_loop = EventLoop()
    read_through_cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
    event_loop.start()
    lister = LocalLister(open_listing_store)
    snapshots = SnapshotService(open_registry(settings.registry), lister, settings.state_directory / "m")
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


def inline(tmp_path: Path, number: int, namespace: str = "team", **attributes: str) -> MountRequest:
    mount_point = tmp_path / f"mount-{number}"
    mount_point.mkdir(exist_ok=True)
    url = f"file://{tmp_path}/data"
    volume_id = f"csi-{number:064x}"
    return MountRequest(volume_id, str(mount_point), {"url": url} | attributes, tenant=Tenant(namespace, inline=True))


def manifests(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "state").rglob("*.arrow")]


@pytest.mark.promise("S163")
def test_the_manifest_of_an_inline_volume_leaves_with_its_mount(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    requests = [inline(tmp_path, number) for number in range(2)]
    for request in requests:
        data_plane.mount(request)
    data_plane.unmount(requests[0].volume_id, requests[0].mount_point)
    assert manifests(tmp_path), "the other mount shows it"
    data_plane.unmount(requests[1].volume_id, requests[1].mount_point)
    wait_until(lambda: manifests(tmp_path) == [])


def test_the_end_of_an_inline_volume_does_not_disturb_the_mount_of_another_of_its_dataset(
    data_plane: LocalDataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (inline(tmp_path, number) for number in range(2))
    data_plane.mount(first)
    store_manifest = data_plane._records.store_manifest

    def ending_first(mount_id: str, source: Path) -> Path:
        data_plane.unmount(first.volume_id, first.mount_point)
        wait_until(lambda: data_plane.report().mounts == 0)
        return store_manifest(mount_id, source)

    monkeypatch.setattr(data_plane._records, "store_manifest", ending_first)
    assert data_plane.mount(second).file_count


@pytest.mark.promise("S164")
def test_the_manifests_of_a_namespaces_inline_volumes_are_under_a_limit(
    data_plane: LocalDataPlane, tmp_path: Path
) -> None:
    for number in range(12_000):
        (tmp_path / "data" / f"{number:0120}").touch()
    with pytest.raises(BudgetExceeded, match="the list of its objects"):
        data_plane.mount(inline(tmp_path, 1))
    assert manifests(tmp_path) == []
    assert data_plane.report().mounts == 0
    data_plane.mount(inline(tmp_path, 2, namespace="a"))
    data_plane.mount(MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"}))


@pytest.mark.promise("S165")
def test_the_inline_volumes_of_a_namespace_reserve_what_the_operator_allows(
    data_plane: LocalDataPlane, tmp_path: Path
) -> None:
    first = inline(tmp_path, 1, cacheReservation="1Mi")
    data_plane.mount(first)
    with pytest.raises(BudgetExceeded, match="--inline-reservation"):
        data_plane.mount(inline(tmp_path, 2, cacheReservation="1100Ki"))
    data_plane.mount(inline(tmp_path, 3, namespace="other", cacheReservation="2Mi"))
    data_plane.mount(inline(tmp_path, 4, namespace="a", cacheReservation="20Mi"))
    data_plane.unmount(first.volume_id, first.mount_point)
    data_plane.mount(inline(tmp_path, 2, cacheReservation="1100Ki"))


def test_a_mount_that_fails_closes_its_store(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    closed: list[str] = []

    class Noting:
        endpoint, bucket = "e", "b"

        def close(self) -> None:
            closed.append("store")

    data_plane._assembly._open_volume = lambda parameters, secrets: VolumeStore(Noting(), "d")  # type: ignore[arg-type]
    (tmp_path / "state" / "mounts").rmdir()
    with pytest.raises(CacheDiskFailed, match="records of mounts"):
        data_plane.mount(MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"}))
    assert closed == ["store"]


def test_a_mount_whose_identity_is_not_found_opens_no_store_and_leaves_no_manifest(
    data_plane: LocalDataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> Credential:
        raise CredentialsRejected("the metadata service gives no answer")

    opened: list[object] = []
    assembly = data_plane._assembly
    open_volume = assembly._open_volume
    monkeypatch.setattr(assembly, "_open_volume", lambda *request: opened.append(request) or open_volume(*request))
    monkeypatch.setattr(assembly._credentials, "of", unavailable)
    with pytest.raises(CredentialsRejected):
        data_plane.mount(inline(tmp_path, 1, "a"))
    assert opened == []
    assert [path for path in (tmp_path / "state").rglob("*.arrow")] == []


@pytest.mark.promise("S711")
def test_a_mount_without_room_for_its_open_files_is_refused_and_leaves_nothing(
    data_plane: LocalDataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = MountTable.read().below(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        with pytest.raises(CacheDiskFull, match="the open files of mounts are stored there"):
            data_plane.mount(inline(tmp_path, 1))
    assert MountTable.read().below(tmp_path) == before
    assert not list(tmp_path.rglob("*.new"))
    data_plane.mount(inline(tmp_path, 1))


def test_a_mount_without_a_descriptor_left_says_so(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with suppress(OSError):
            while True:
                descriptors.append(os.open("/dev/null", os.O_RDONLY))
        # Which of the two depends on what the process gives back meanwhile; both are RESOURCE_EXHAUSTED.
        with pytest.raises((BudgetExceeded, DescriptorsExhausted), match="RLIMIT_NOFILE"):
            data_plane.mount(inline(tmp_path, 1))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    data_plane.mount(inline(tmp_path, 1))


@pytest.mark.promise("S264")
@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"username": "a", "password": "1"}, {"username": "a", "password": "2"}, True),
        ({"token": "1"}, {"token": "2"}, True),
        ({"username": "a", "password": "1"}, {"username": "b", "password": "1"}, False),
    ],
)
def test_renewed_credentials_are_of_the_same_user_and_keep_the_names_of_cached_bytes(
    data_plane: LocalDataPlane,
    tmp_path: Path,
    first: dict[str, str],
    second: dict[str, str],
    same: bool,
) -> None:
    """Web servers may show each user other files under the same names."""
    with web_server({"data/file": b"content"}) as server:
        attributes = {"url": f"{server.url}/data/"}
        mount_point = str(tmp_path / "mount")
        data_plane.mount(MountRequest("volume-1", mount_point, attributes, first))
        (served,) = data_plane.served_mounts()
        scope = served.cache_scope
        renewal = MountRequest("volume-1", mount_point, attributes, second)
        if same:
            data_plane.mount(renewal)
            assert served.record.credential == served.credential.own.hex()
        else:
            with pytest.raises(VolumeConflict, match="another user"):
                data_plane.mount(renewal)
        assert (tmp_path / "mount" / "file").read_bytes() == b"content"
        assert served.cache_scope is scope


LABELLED = b"""21 1 8:1 / / rw,relatime - ext4 /dev/root rw,seclabel
22 21 8:2 / /var/cache rw,relatime - xfs /dev/sdb rw,seclabel,attr2
23 22 8:3 / /var/cache/plain rw - ext4 /dev/sdc rw
24 21 8:4 / /var/context rw - ext4 /dev/sdd rw,context=system_u:object_r:container_file_t:s0
"""


@pytest.mark.promise("S272")
@pytest.mark.parametrize(
    ("directory", "mount_point"),
    [
        ("/nowhere/views", "/"),
        ("/var/cache/views", "/var/cache"),
        ("/var/cache/plain/views", ""),
        ("/var/context/v", ""),
    ],
)
def test_a_file_system_whose_files_selinux_labels_has_no_views(directory: str, mount_point: str) -> None:
    table = MountTable.parse(LABELLED)
    if not mount_point:
        check_labels(Path(directory), table)
        return
    with pytest.raises(ViewUnavailable, match=f"{mount_point}: SELinux"):
        check_labels(Path(directory), table)


@pytest.mark.promise("S272")
def test_on_such_a_file_system_auto_is_fuse_and_materialised_is_refused_at_once(
    data_plane: LocalDataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labelled(_: Path) -> None:
        check_labels(Path("/var/cache/views"), MountTable.parse(LABELLED))

    target = tmp_path / "target"
    target.mkdir()
    volumes = {
        view: MountRequest(view, str(tmp_path / view), {"url": f"file://{tmp_path}/data", "view": view})
        for view in ("auto", "materialised")
    }
    for view, request in volumes.items():
        (tmp_path / view).mkdir()
        data_plane.mount(request)
        assert (tmp_path / view / "file").read_bytes() == b"content"
    wait_until(lambda: any((tmp_path / "cache").glob("objects/*/*")))
    monkeypatch.setattr(materialised_views, "check_labels", labelled)
    try:
        assert not data_plane.publish("auto", str(target))
        with pytest.raises(ViewUnavailable, match="SELinux"):
            data_plane.publish("materialised", str(target))
        monkeypatch.undo()
        assert data_plane.publish("materialised", str(target))
    finally:
        bind_mounts.unmount(target)
        data_plane.unpublish("materialised", str(target))


# -- mounts that died, or are in use elsewhere -------------------------------------------------------------------------


def records(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "state" / "mounts").iterdir())


def abort(mount_point: str) -> None:
    entry = mounting.find(Path(mount_point))
    assert entry is not None
    busy = os.open(mount_point, os.O_PATH)  # without fusectl, a mount that is not in use would be unmounted as well
    try:
        mounting.abort(entry)
    finally:
        os.close(busy)


@pytest.mark.promise("S248")
def test_an_aborted_mount_is_unmounted_and_can_be_mounted_again(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    request = MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"})
    data_plane.mount(request)
    (served,) = data_plane.mounts()
    assert served.device == MountTable.read().at(request.mount_point).device  # type: ignore[union-attr]
    abort(request.mount_point)
    lost = KnownMount("volume-1", request.mount_point, "")
    wait_until(lambda: data_plane.mounts() == (lost,))
    wait_until(lambda: mounting.find(Path(request.mount_point)) is None)
    wait_until(lambda: records(tmp_path) == [".json", ".more"])
    data_plane.mount(request)
    assert (tmp_path / "mount" / "file").read_bytes() == b"content"
    assert [known.device != "" for known in data_plane.mounts()] == [True]
    data_plane.unmount(request.volume_id, request.mount_point)
    wait_until(lambda: records(tmp_path) == [])


@pytest.mark.promise("S248")
def test_a_lost_mount_is_forgotten_when_its_volume_is_unmounted(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    request = MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"})
    data_plane.mount(request)
    abort(request.mount_point)
    wait_until(lambda: records(tmp_path) == [".json", ".more"])
    data_plane.unmount(request.volume_id, request.mount_point)
    assert data_plane.mounts() == ()
    assert records(tmp_path) == []


def test_a_mount_that_is_still_in_use_is_not_taken_for_the_next_one_at_its_path(
    data_plane: LocalDataPlane, tmp_path: Path
) -> None:
    """A directory of the first one is mounted in a pod (``subPath``) when its volume is unstaged and staged again."""
    (tmp_path / "data" / "cats").mkdir()
    (tmp_path / "data" / "cats" / "1").write_bytes(b"cat")
    (tmp_path / "part").mkdir()
    request = MountRequest("volume-1", str(tmp_path / "mount"), {"url": f"file://{tmp_path}/data"})
    data_plane.mount(request)
    subprocess.run(["mount", "--bind", tmp_path / "mount" / "cats", tmp_path / "part"], check=True)
    try:
        data_plane.unmount(request.volume_id, request.mount_point)
        changed = replace(request, attributes={**request.attributes, "uid": "7"})
        data_plane.mount(changed)
        data_plane.mount(changed)
        assert (tmp_path / "part" / "1").read_bytes() == b"cat"
        assert (tmp_path / "mount" / "file").stat().st_uid == 7
        data_plane.unmount(request.volume_id, request.mount_point)
        wait_until(lambda: len(data_plane.mounts()) == 1)
        assert (tmp_path / "part" / "1").stat().st_uid == 0
    finally:
        subprocess.run(["umount", tmp_path / "part"], check=True)
    wait_until(lambda: data_plane.mounts() == ())
    wait_until(lambda: records(tmp_path) == [])


@pytest.mark.promise("S328")
def test_a_changed_volume_is_mounted_with_the_change_and_under_its_old_attributes(
    data_plane: LocalDataPlane, tmp_path: Path
) -> None:
    registry = open_registry(RegistrySettings(location=str(tmp_path / "registry")))
    attributes = {"url": f"file://{tmp_path}/data", "cacheReservation": "1KiB"}
    request = MountRequest("volume-1", str(tmp_path / "mount"), attributes)
    data_plane.mount(request)  # records the volume
    record = registry.get("volume-1")
    assert record is not None
    assert registry.replace(record, record.model_copy(update={"modified": {"cacheReservation": "2KiB", "later": "1"}}))
    data_plane.mount(request)
    assert data_plane.volume("volume-1").attributes["cacheReservation"] == "1KiB", "a mounted volume keeps what it has"
    data_plane.unmount("volume-1", request.mount_point)
    data_plane.mount(request)
    assert data_plane.volume("volume-1").attributes["cacheReservation"] == "2KiB"
    data_plane.mount(request)  # kubelet repeats its call, with what the PersistentVolume says
    with pytest.raises(VolumeConflict, match="uid"):
        data_plane.mount(replace(request, attributes={**attributes, "uid": "7"}))
