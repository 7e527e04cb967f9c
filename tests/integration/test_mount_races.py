"""Mounts stay below kubelet's directory while another process replaces directories of the path by links."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from csi_driver.fuse import mounting
from csi_driver.model.errors import MountError, MountFailed, MountPointMissing
from csi_driver.mounts import bind_mounts, syscalls
from csi_driver.mounts.mount_point import open_directory, pinned
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import URL, CsiClient, refused, serving
from tests.support.data_planes import MountingDataPlane

pytestmark = pytest.mark.fuse

ROUNDS = 200
VOLUME = csi_pb2.Volume(volume_id="static-1", volume_context={"url": URL})
OTHER = csi_pb2.Volume(volume_id="static-2", volume_context={"url": URL})
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(first: Path, second: Path) -> None:
    """Swaps two names in one step."""
    if _libc.renameat2(-100, os.fsencode(first), -100, os.fsencode(second), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """An attacker who swaps two names in a loop."""
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            with suppress(OSError):  # EBUSY: something is mounted there
                exchange(first, second)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@pytest.fixture(params=["openat2", "directory by directory"])
def _each_walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is the fallback path for kernels before 5.6."""
    if request.param != "openat2":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(syscalls, "openat2", missing)


@pytest.fixture(params=["by descriptor", "by path"])
def _each_mount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is the fallback path for kernels before 5.12."""
    if request.param != "by descriptor":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(syscalls, "mount_setattr", missing)
        monkeypatch.setattr(syscalls, "new_file_system", missing)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-race-")).resolve()
    yield path
    for entry in reversed(MountTable.read().below(path)):
        with suppress(OSError):
            syscalls.umount2(entry.mount_point, syscalls.MNT_DETACH)
    shutil.rmtree(path)


@pytest.fixture
def kubelet(home: Path) -> Path:
    path = home / "kubelet"
    (path / "staging").mkdir(parents=True)
    (path / "pods" / "pod-1").mkdir(parents=True)
    return path


@pytest.fixture
def outside(home: Path) -> Path:
    """A directory of the node, with the names that a mount would need."""
    path = home / "etc"
    (path / "mount").mkdir(parents=True)
    return path


@pytest.fixture
def data_plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    yield plane
    plane.close(home)


@pytest.fixture
def driver(home: Path, kubelet: Path, data_plane: MountingDataPlane) -> Iterator[CsiClient]:
    with serving(home / "csi.sock", data_plane, kubelet_directory=kubelet) as client:
        yield client


def mounted_at_or_below(path: Path) -> list[str]:
    return [entry.mount_point for entry in MountTable.read().entries if Path(entry.mount_point).is_relative_to(path)]


@pytest.mark.promise("S170")
@pytest.mark.usefixtures("_each_walk", "_each_mount")
@pytest.mark.parametrize("swapped", ["the target", "its parent"])
def test_a_target_that_is_swapped_for_a_link_never_leads_a_mount_outside(
    driver: CsiClient, kubelet: Path, outside: Path, swapped: str
) -> None:
    driver.stage(VOLUME, kubelet / "staging")
    target = kubelet / "pods" / "pod-1" / "mount"
    name = target if swapped == "the target" else target.parent
    target.mkdir()
    link = kubelet / "pods" / "link"
    link.symlink_to(outside)
    with swapping(name, link):
        for _ in range(ROUNDS):
            with suppress(grpc.RpcError):
                driver.publish(VOLUME, kubelet / "staging", target)
            assert mounted_at_or_below(outside) == []
            with suppress(grpc.RpcError):
                driver.unpublish(VOLUME.volume_id, target)
            with suppress(OSError):
                target.mkdir()
    assert (outside / "mount").is_dir() or swapped == "the target"
    assert outside.is_dir()


@pytest.mark.promise("S170")
@pytest.mark.usefixtures("_each_walk")
def test_a_link_to_the_directory_of_another_pod_unmounts_and_mounts_nothing_there(
    driver: CsiClient, kubelet: Path
) -> None:
    other_target = kubelet / "pods" / "pod-2" / "mount"
    (kubelet / "staging-2").mkdir()
    driver.stage(OTHER, kubelet / "staging-2")
    driver.publish(OTHER, kubelet / "staging-2", other_target)
    link = kubelet / "pods" / "pod-3"
    link.symlink_to(other_target.parent)
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        driver.unpublish(VOLUME.volume_id, link / "mount")
    assert str(link) in found[0].message
    driver.stage(VOLUME, kubelet / "staging")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        driver.publish(VOLUME, kubelet / "staging", link / "second")
    assert mounted_at_or_below(kubelet / "pods") == [str(other_target)]


@pytest.mark.usefixtures("_each_walk")
def test_a_path_with_a_link_in_it_is_refused_and_nothing_is_made_behind_it(home: Path, outside: Path) -> None:
    (home / "link").symlink_to(outside)
    with pytest.raises(MountPointMissing, match="link"):
        bind_mounts.ensure_directory(home / "link" / "new" / "mount")
    with pytest.raises(MountPointMissing, match="link"):
        mounting.mount(home / "link" / "mount", "memory://test")
    with pytest.raises(MountError, match="link"):
        bind_mounts.bind_read_only(outside, home / "link" / "mount")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        open_directory(Path("/proc/self/root") / home.relative_to("/"))
    assert [entry.name for entry in outside.iterdir()] == ["mount"]
    assert mounted_at_or_below(home) == []


@pytest.mark.promise("S170")
def test_a_mount_whose_directory_was_moved_meanwhile_is_undone(home: Path, outside: Path) -> None:
    source, target = home / "source", home / "target"
    source.mkdir()
    target.mkdir()
    with pinned(target) as mount_point:
        directory_fd = mount_point.open()
        flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        tree_fd = syscalls.open_tree(syscalls.AT_FDCWD, source, flags)
        target.rename(outside / "moved")
        with pytest.raises(MountFailed, match="moved or replaced"):
            mount_point.attach(tree_fd, directory_fd)
        os.close(tree_fd)
        os.close(directory_fd)
    assert mounted_at_or_below(home) == []
    assert mounted_at_or_below(outside) == [], "where the directory is now"


def test_the_names_of_kubelets_directory_itself_may_be_links(
    home: Path, kubelet: Path, data_plane: MountingDataPlane
) -> None:
    (home / "link").symlink_to(kubelet)
    (home / "second").symlink_to(home / "link")
    with serving(home / "second.sock", data_plane, kubelet_directory=home / "link") as driver:
        for name in (home / "link", home / "second", kubelet):
            driver.stage(VOLUME, name / "staging")
            driver.publish(VOLUME, name / "staging", name / "pods" / "pod-1" / "mount")
            assert mounted_at_or_below(kubelet / "pods") == [str(kubelet / "pods" / "pod-1" / "mount")]
            driver.unpublish(VOLUME.volume_id, name / "pods" / "pod-1" / "mount")
            driver.unstage(VOLUME.volume_id, name / "staging")
    assert mounted_at_or_below(home) == []
