"""Completely cached volumes are published as trees of hard links: real daemon, real calls, real mounts."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import ViewUnavailable
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.materialised_views import view_shown_by
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import AllInOne, until
from tests.support.csi_calls import CsiClient, publish_request, refused
from tests.support.mount_namespace import copied_mounts
from tests.support.pod_namespaces import FIRST_ID, pod_user_namespace

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode

CONTENT = {
    b"a.bin": b"a" * 10,
    b"train/0.jpg": b"0" * 110_000,
    b"train/1.jpg": b"0" * 110_000,
    b"train/deep/er/and/deeper/1.tar": os.urandom(5_000_001),
    b"empty": b"",
    b"name-\xff\xfe": b"no UTF-8",
}
MTIME_NS = 1_600_000_000_123_456_000


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def url(home: Path) -> str:
    for name, content in CONTENT.items():
        path = Path(os.fsdecode(os.path.join(os.fsencode(home), b"data", name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return f"file://{home}/data"


@pytest.fixture
def driver(home: Path) -> Iterator[AllInOne]:
    made = AllInOne(home)
    yield made
    made.close()
    sys.stdout.write(made.log.read_text())  # shown with a failure


@pytest.fixture
def staging(home: Path) -> Path:
    path = home / "staging"
    path.mkdir()
    return path


def tree(root: Path) -> dict[bytes, bytes]:
    found = {}
    top = os.fsencode(root)
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = Path(os.fsdecode(path)).read_bytes()
    return found


def mounted(path: Path) -> MountEntry:
    entry = MountTable.read().at(path)
    assert entry is not None
    return entry


def is_view(path: Path) -> bool:
    return view_shown_by(mounted(path)) is not None


def views(driver: AllInOne) -> list[str]:
    return sorted(path.name for path in (driver.cache / "views").iterdir())


def nothing_is_left(driver: AllInOne) -> None:
    until(lambda: views(driver) == [], "views are removed")
    assert MountTable.read().below(driver.home) == ()


Staged = Callable[..., tuple[CsiClient, csi_pb2.Volume]]


@pytest.fixture
def staged(driver: AllInOne, url: str, staging: Path) -> Staged:
    """Starts the driver with a volume that is staged, and read once, so that it is completely cached."""

    def make(*flags: str, warm: bool = True, **parameters: str) -> tuple[CsiClient, csi_pb2.Volume]:
        client = driver.start(*flags)
        volume = client.create("pvc-1", parameters={"url": url, **parameters})
        client.stage(volume, staging)
        if warm:
            assert tree(staging) == CONTENT
            objects = sum(1 for content in CONTENT.values() if content)
            until(lambda: driver.cached_objects() == objects, "all that was read is in the cache")
        return client, volume

    return make


# -- content of a view -------------------------------------------------------------------------------------------------


@pytest.mark.promise("S101", "S106")
def test_a_complete_volume_is_published_as_plain_files_and_its_view_is_removed_with_the_last_target(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    one, two = home / "pods" / "1", home / "pods" / "2"
    client.publish(volume, staging, one)
    client.publish(volume, staging, two)
    client.publish(volume, staging, two)
    assert is_view(one)
    assert mounted(one).root == mounted(two).root, "pods of a volume share one view"
    assert mounted(one).options >= {"ro", "nosuid", "nodev"}
    assert tree(one) == CONTENT
    client.unpublish(volume.volume_id, one)
    client.unpublish(volume.volume_id, one)
    assert tree(two) == CONTENT, "the view stays while it is mounted somewhere"
    assert not client.stats(volume.volume_id, two).volume_condition.abnormal
    client.unpublish(volume.volume_id, two)
    client.unstage(volume.volume_id, staging)
    nothing_is_left(driver)
    assert not one.exists()


@pytest.mark.promise("S103")
def test_an_incomplete_volume_is_published_through_fuse(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(warm=False)
    client.publish(volume, staging, home / "target")
    assert not is_view(home / "target")
    assert tree(home / "target") == CONTENT
    client.publish(volume, staging, home / "target")
    assert not is_view(home / "target"), "a published volume keeps its kind"
    client.publish(volume, staging, home / "later")
    assert is_view(home / "later")


def test_a_volume_with_view_fuse_is_published_through_fuse(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(view="fuse")
    client.publish(volume, staging, home / "target")
    assert not is_view(home / "target")


@pytest.mark.promise("S101")
def test_files_of_a_view_look_like_those_of_the_fuse_mount(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(dirMode="0500")
    client.publish(volume, staging, home / "target")
    target = home / "target"
    assert is_view(target)
    for name in (".", "train", "train/deep/er", "a.bin", "empty", "train/0.jpg"):
        fuse, view = (staging / name).stat(), (target / name).stat()
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(fuse, field) == getattr(view, field), (name, field)
        assert name.count(".") == 0 or name == "." or fuse.st_size == view.st_size


@pytest.mark.promise("S101")
def test_owners_are_those_of_the_volumes_parameters(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(uid="4711", gid="4712", view="materialised")
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target")
    for path in (home / "target", home / "target" / "train", home / "target" / "a.bin", home / "target" / "empty"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
    assert tree(home / "target") == CONTENT


def owners_in_a_pod(target: Path, home: Path) -> set[tuple[int, int]]:
    """Does what a container runtime does for a pod with a user namespace of its own (``hostUsers: false``): clones the
    mount and maps its owners to the pod's range. The owners of all files, as the node sees them then."""
    clone = home / "in-the-pod"
    clone.mkdir(exist_ok=True)
    with pod_user_namespace() as namespace:
        bind_mounts.bind_read_only(target, clone, user_namespace=namespace)
    try:
        assert tree(clone) == CONTENT
        return {(path.stat().st_uid, path.stat().st_gid) for path in (clone, *clone.rglob("*"))}
    finally:
        bind_mounts.unmount(clone)


@pytest.mark.promise("S271")
def test_pods_with_a_user_namespace_get_a_volume_of_another_owner_cold_and_warm(
    staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged(warm=False, uid="4711", gid="4712")
    for target in (home / "cold", home / "warm"):
        client.publish(volume, staging, target)
        assert owners_in_a_pod(target, home) == {(FIRST_ID + 4711, FIRST_ID + 4712)}
        assert tree(target) == CONTENT


@pytest.mark.promise("S271")
def test_pods_with_a_user_namespace_get_a_view(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target")
    assert owners_in_a_pod(home / "target", home) == {(FIRST_ID, FIRST_ID)}


def test_the_kernel_maps_no_mount_twice(staged: Staged, staging: Path, home: Path) -> None:
    """Why a view of another owner is for those who ask for it."""
    client, volume = staged(uid="4711", view="materialised")
    client.publish(volume, staging, home / "target")
    with pytest.raises(ViewUnavailable, match="Operation not permitted"):
        owners_in_a_pod(home / "target", home)


@pytest.mark.promise("S272")
def test_a_label_can_be_written_to_no_view_and_would_be_that_of_every_pod(
    staged: Staged, staging: Path, home: Path
) -> None:
    """Why there are no views on a file system whose files SELinux labels."""
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    label = b"system_u:object_r:container_file_t:s0:c1,c2\0"
    with pytest.raises(OSError, match="Read-only") as caught:
        os.setxattr(home / "target" / "a.bin", "security.selinux", label)
    assert caught.value.errno == errno.EROFS
    (shared,) = (path for path in (home / "cache").glob("objects/*/*") if path.stat().st_size == 10)
    os.setxattr(shared, "security.selinux", label)
    assert os.getxattr(home / "target" / "a.bin", "security.selinux") == label


@pytest.mark.promise("S103")
def test_a_volume_with_modes_that_hard_links_cannot_have_is_published_through_fuse(
    staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged(fileMode="0440")
    client.publish(volume, staging, home / "target")
    assert not is_view(home / "target")
    with refused(Code.INVALID_ARGUMENT) as found:
        client.create("pvc-2", parameters={**volume.volume_context, "fileMode": "0440", "view": "materialised"})
    assert "fileMode" in found[0].message


@pytest.mark.promise("S102")
def test_programs_of_a_noexec_volume_cannot_be_executed(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(mountOptions="noexec")
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target")
    assert "noexec" in mounted(home / "target").options


@pytest.mark.promise("S102")
def test_nothing_can_be_written_through_a_view(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    target = home / "target"
    for attempt in (
        lambda: (target / "new").write_text("x"),
        lambda: (target / "a.bin").open("r+b"),
        lambda: (target / "a.bin").unlink(),
        lambda: (target / "a.bin").chmod(0o777),
        lambda: os.link(target / "a.bin", target / "b.bin"),
        lambda: os.truncate(target / "a.bin", 0),
    ):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


WRITE = """
mount --bind "$0" "$1"
mount -o remount,bind,rw "$1"
echo changed > "$1/a.bin" || true
echo new > "$1/new" || true
rm -f "$1/train/0.jpg" || true
"""
"""What a container's runtime does with a volume that the pod may write to, and then root in the container."""


@pytest.mark.promise("S296")
@pytest.mark.parametrize("inline", [False, True])
def test_a_pod_that_may_write_writes_nothing_to_the_cache(
    staged: Staged, url: str, staging: Path, home: Path, inline: bool
) -> None:
    client, volume = staged()
    published = volume
    if inline:
        context = {"url": url, "csi.storage.k8s.io/ephemeral": "true"}
        published = csi_pb2.Volume(volume_id="csi-0123", volume_context=context)
    client.publish(published, None if inline else staging, home / "target", readonly=False)
    (home / "container").mkdir()
    command = ["unshare", "--mount", "bash", "-uc", WRITE, str(home / "target"), str(home / "container")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stderr.count("Read-only file system") == 3, result.stderr
    assert tree(home / "target") == CONTENT
    client.publish(volume, staging, home / "reader")
    assert is_view(home / "reader"), "a pod that only reads gets a view all the same"
    assert tree(home / "reader") == CONTENT


@pytest.mark.promise("S296")
@pytest.mark.parametrize("inline", [False, True])
def test_a_volume_that_must_be_a_view_is_refused_to_a_pod_that_may_write(
    staged: Staged, url: str, staging: Path, home: Path, inline: bool
) -> None:
    client, volume = staged(view="materialised")
    if inline:
        context = {"url": url, "view": "materialised", "csi.storage.k8s.io/ephemeral": "true"}
        volume = csi_pb2.Volume(volume_id="csi-0123", volume_context=context)
    with refused(Code.INVALID_ARGUMENT) as found:
        client.publish(volume, None if inline else staging, home / "target", readonly=False)
    assert "readOnly: 'false' is not allowed; allowed: true with view: materialised" in found[0].message
    assert MountTable.read().at(home / "target") is None
    client.publish(volume, None if inline else staging, home / "target")
    client.publish(volume, None if inline else staging, home / "target", readonly=False)
    assert is_view(home / "target"), "a published volume keeps its kind"


def test_an_inline_volume_gets_a_view_too(driver: AllInOne, staged: Staged, url: str, home: Path) -> None:
    client, _ = staged()
    context = {"url": url, "csi.storage.k8s.io/ephemeral": "true"}
    inline = csi_pb2.Volume(volume_id="csi-0123", volume_context=context)
    for target in (home / "one", home / "two"):
        client.node.NodePublishVolume(publish_request(inline, None, target), timeout=30)
        assert is_view(target)
    client.unpublish("csi-0123", home / "one")
    assert tree(home / "two") == CONTENT
    assert not client.stats("csi-0123", home / "two").volume_condition.abnormal
    client.unpublish("csi-0123", home / "two")
    until(lambda: views(driver) == [], "views are removed")
    assert list((driver.cache / "inline").iterdir()) == []


def test_a_view_shows_the_selection_of_its_volume(staged: Staged, url: str, home: Path) -> None:
    client, _ = staged()
    selected = csi_pb2.Volume(volume_id="selected", volume_context={"url": url, "include": "train/*.jpg"})
    (home / "other").mkdir()
    client.stage(selected, home / "other")
    client.publish(selected, home / "other", home / "target")
    assert is_view(home / "target")
    assert set(tree(home / "target")) == {b"train/0.jpg", b"train/1.jpg"}


# -- other mounts of a view --------------------------------------------------------------------------------------------


@pytest.mark.promise("S245")
def test_a_view_stays_while_a_directory_of_it_is_mounted(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    part = home / "volume-subpaths"
    part.mkdir()
    subprocess.run(["mount", "--bind", home / "target" / "train", part], check=True)
    client.unpublish(volume.volume_id, home / "target")
    assert not (home / "target").exists()
    assert (part / "0.jpg").read_bytes() == CONTENT[b"train/0.jpg"]
    restart_cache(driver)
    assert (part / "1.jpg").read_bytes() == CONTENT[b"train/1.jpg"]
    client.unstage(volume.volume_id, staging)
    subprocess.run(["umount", part], check=True)
    client.unpublish(volume.volume_id, home / "target")
    nothing_is_left(driver)


@pytest.mark.promise("S245")
@pytest.mark.parametrize("part", ["", "train/deep"])
def test_a_view_stays_while_it_is_mounted_in_another_mount_namespace(
    driver: AllInOne, staged: Staged, staging: Path, home: Path, part: str
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    (home / "data-of-the-container").mkdir()
    subprocess.run(["mount", "--bind", home / "target" / part, home / "data-of-the-container"], check=True)
    with copied_mounts(home) as root:
        subprocess.run(["umount", home / "data-of-the-container"], check=True)
        client.unpublish(volume.volume_id, home / "target")
        shown = root / (home / "data-of-the-container").relative_to("/")
        prefix = os.fsencode(f"{part}/" if part else "")
        expected = {name[len(prefix) :]: data for name, data in CONTENT.items() if name.startswith(prefix)}
        assert tree(shown) == expected
        restart_cache(driver)
        assert tree(shown) == expected
    client.unstage(volume.volume_id, staging)
    client.unpublish(volume.volume_id, home / "target")
    nothing_is_left(driver)


# -- view: materialised -----------------------------------------------------------------------------------


@pytest.mark.promise("S105")
def test_a_volume_that_must_be_materialised_is_warmed_up_first(staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged(warm=False, view="materialised")
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target")
    assert tree(home / "target") == CONTENT


@pytest.mark.promise("S105")
def test_a_wait_that_times_out_says_so_and_a_retry_resumes_it(staged: Staged, staging: Path, home: Path) -> None:
    slow = {"warmup": "background", "warmupBandwidth": "1MiB/s"}
    client, volume = staged(warm=False, view="materialised", **slow)
    request = publish_request(volume, staging, home / "target")
    with refused(Code.ABORTED) as found:
        client.node.NodePublishVolume(request, timeout=4)
    assert found[0].class_name == "WarmupUnfinished"
    assert "is not warm yet" in found[0].message
    assert MountTable.read().at(home / "target") is None
    client.node.NodePublishVolume(request, timeout=60)
    assert is_view(home / "target")


@pytest.mark.promise("S261")
@pytest.mark.parametrize(("bandwidth", "expected"), [("4MiB/s", True), ("64KiB/s", False)], ids=["soon", "late"])
def test_a_volume_that_a_warmup_completes_within_seconds_is_waited_for(
    staged: Staged, staging: Path, home: Path, bandwidth: str, expected: bool
) -> None:
    """5 MiB, at once or within 80 s."""
    client, volume = staged(warm=False, warmup="background", warmupBandwidth=bandwidth)
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target") is expected
    assert tree(home / "target") == CONTENT


def test_a_volume_whose_warmup_is_waited_for_can_be_unpublished(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    slow = {"warmup": "background", "warmupBandwidth": "64KiB/s"}
    client, volume = staged(warm=False, view="materialised", **slow)
    with refused(Code.ABORTED):
        client.node.NodePublishVolume(publish_request(volume, staging, home / "target"), timeout=3)
    client.unpublish(volume.volume_id, home / "target")
    assert not (home / "target").exists()
    client.unstage(volume.volume_id, staging)
    nothing_is_left(driver)


# -- death of a process ------------------------------------------------------------------------------------------------


def restart_cache(driver: AllInOne) -> None:
    before = driver.children()["cache"]
    os.kill(before, signal.SIGKILL)
    until(lambda: driver.children().get("cache") not in (None, before), "the cache is started again")
    until(driver.is_ready, "the driver is ready again")


@pytest.mark.promise("S108")
def test_a_view_survives_the_daemon_and_is_removed_by_the_next_one(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    with (home / "target" / "a.bin").open("rb") as opened:
        restart_cache(driver)
        assert opened.read() == CONTENT[b"a.bin"]
    assert tree(home / "target") == CONTENT
    assert len(views(driver)) == 1
    client.publish(volume, staging, home / "second")
    assert mounted(home / "second").root == mounted(home / "target").root
    client.unpublish(volume.volume_id, home / "target")
    client.unpublish(volume.volume_id, home / "second")
    client.unstage(volume.volume_id, staging)
    nothing_is_left(driver)


def test_a_view_that_was_mounted_before_the_node_plugin_died_is_found(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    (home / "target").mkdir()
    daemon = DaemonClient(driver.run_directory() / "cache.sock")
    assert daemon.publish(volume.volume_id, str(home / "target"))
    assert daemon.publish(volume.volume_id, str(home / "target"))
    client.publish(volume, staging, home / "target")
    assert [entry.mount_point for entry in MountTable.read().below(home)].count(str(home / "target")) == 1
    client.unpublish(volume.volume_id, home / "target")
    assert not (home / "target").exists()
    daemon.unpublish(volume.volume_id, str(home / "target"))
    daemon.close()
    until(lambda: views(driver) == [], "views are removed")


def test_a_view_of_another_volume_or_a_foreign_mount_is_left_alone(
    driver: AllInOne, staged: Staged, url: str, staging: Path, home: Path
) -> None:
    client, volume = staged()
    other = csi_pb2.Volume(volume_id="other", volume_context={"url": url})
    (home / "other").mkdir()
    client.stage(other, home / "other")
    client.publish(volume, staging, home / "target")
    with refused(Code.FAILED_PRECONDITION):
        client.publish(other, home / "other", home / "target")
    with refused(Code.NOT_FOUND):
        client.stats("other", home / "target")
    foreign = home / "foreign"
    (foreign / "views" / "hayloft").mkdir(parents=True)
    (home / "bound").mkdir()
    subprocess.run(["mount", "--bind", str(foreign / "views" / "hayloft"), str(home / "bound")], check=True)
    with refused(Code.FAILED_PRECONDITION):
        client.unpublish(volume.volume_id, home / "bound")
    assert MountTable.read().at(home / "bound") is not None


@pytest.mark.promise("S108")
def test_a_view_whose_target_is_unmounted_while_no_daemon_runs_is_swept(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    os.kill(driver.children()["cache"], signal.SIGKILL)
    client.unpublish(volume.volume_id, home / "target")
    assert not (home / "target").exists()
    until(driver.is_ready, "the driver is ready again")
    until(lambda: views(driver) == [], "the next daemon sweeps")


def test_the_remains_of_an_unfinished_view_are_swept(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    (name,) = views(driver)
    half = driver.cache / "views" / f".building-{name}"
    shutil.copytree(driver.cache / "views" / name, half)
    restart_cache(driver)
    until(lambda: views(driver) == [name], "the half view is removed, and the mounted one is not")
    assert tree(home / "target") == CONTENT


def test_an_unmounted_view_is_not_trusted_by_the_next_daemon(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    (name,) = views(driver)
    os.kill(driver.children()["cache"], signal.SIGKILL)
    client.unpublish(volume.volume_id, home / "target")
    (driver.cache / "views" / name / "stray").write_text("foreign")
    until(driver.is_ready, "the driver is ready again")
    client.publish(volume, staging, home / "target")
    assert tree(home / "target") == CONTENT


def test_a_view_whose_fuse_mount_died_with_its_daemon_stays_readable(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    bind_mounts.unmount(staging)
    daemon = DaemonClient(driver.run_directory() / "cache.sock")
    until(lambda: daemon.report().mounts == 0, "the daemon sees that the mount is gone")
    daemon.close()
    assert tree(home / "target") == CONTENT
    assert not client.stats(volume.volume_id, home / "target").volume_condition.abnormal
    client.unpublish(volume.volume_id, home / "target")
    client.unstage(volume.volume_id, staging)
    nothing_is_left(driver)


def test_a_cache_on_a_separate_disk_that_is_reached_through_a_link(
    driver: AllInOne, staged: Staged, staging: Path, home: Path
) -> None:
    image = home / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    (home / "disk").mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(home / "disk")], check=True)
    driver.cache.rmdir()
    driver.cache.symlink_to(home / "disk")
    client, volume = staged("--free-floor=0")
    client.publish(volume, staging, home / "target")
    client.publish(volume, staging, home / "target")
    assert is_view(home / "target")
    assert mounted(home / "target").root.count("/") == 2, "the root is that of the disk"
    assert tree(home / "target") == CONTENT
    client.unpublish(volume.volume_id, home / "target")
    until(lambda: views(driver) == [], "views are removed")


def test_a_clean_shutdown_unmounts_views(driver: AllInOne, staged: Staged, staging: Path, home: Path) -> None:
    client, volume = staged()
    client.publish(volume, staging, home / "target")
    assert driver.end(signal.SIGTERM) == 0
    assert MountTable.read().below(home) == ()
    assert [name for name in views(driver) if not name.startswith(".gone")] == []
