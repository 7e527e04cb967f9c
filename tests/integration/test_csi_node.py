"""The node service with invalid requests, foreign mounts and a dead daemon. The mount table is real."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.model.conditions import CACHE_DAEMON_UNAVAILABLE
from csi_driver.model.errors import AccessDenied, CredentialsRejected, DaemonUnavailable, EmptyDataset
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import MountRequest, VolumeReport, WarmupReport, WarmupState
from tests.support.csi_calls import (
    URL,
    CsiClient,
    Mode,
    block_capability,
    count_parses,
    mount_capability,
    publish_request,
    refused,
    serving,
    stage_request,
)
from tests.support.data_planes import MountingDataPlane

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode
VOLUME = csi_pb2.Volume(volume_id="static-1", volume_context={"url": URL})
TOKENS = {"csi.storage.k8s.io/serviceAccount.tokens": '{"aud":{"token":"very-secret-token"}}'}
INLINE = {"url": URL, "csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "pod-1", **TOKENS}


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-csi-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data_plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    yield plane
    plane.close(home)


@pytest.fixture
def driver(home: Path, data_plane: MountingDataPlane) -> Iterator[CsiClient]:
    with serving(home / "csi.sock", data_plane, kubelet_directory=home) as client:
        yield client


@pytest.fixture
def staging(home: Path) -> Path:
    path = home / "staging"
    path.mkdir()
    return path


@pytest.fixture
def target(home: Path) -> Path:
    return home / "pods" / "pod-1" / "mount"


# -- inline volumes ----------------------------------------------------------------------------------------------------


def test_an_inline_volume_is_staged_and_published_in_one_call(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, target: Path
) -> None:
    request = publish_request(VOLUME, None, target, volume_context=INLINE, secrets={"key_id": "k", "access_key": "s"})
    driver.node.NodePublishVolume(request)
    driver.node.NodePublishVolume(request)
    (staged,) = data_plane.requests
    assert staged.attributes == {"url": URL}, "keys that Kubernetes added are not passed on, least of all tokens"
    assert staged.secrets == {"key_id": "k", "access_key": "s"}
    assert Path(staged.mount_point).parent == home / "inline"
    assert {entry.mount_point for entry in MountTable.read().below(home)} == {staged.mount_point, str(target)}
    assert driver.stats(VOLUME.volume_id, target).usage
    driver.unpublish(VOLUME.volume_id, target)
    driver.unpublish(VOLUME.volume_id, target)
    assert MountTable.read().below(home) == ()
    assert list((home / "inline").iterdir()) == []
    assert not target.exists()


@pytest.mark.promise("S246")
@pytest.mark.parametrize("kind", ["a copy of the staging mount", "a part that is mounted for a container"])
def test_other_mounts_of_an_inline_volume_do_not_keep_it(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    driver.node.NodePublishVolume(publish_request(VOLUME, None, target, volume_context=INLINE))
    (staged,) = data_plane.requests
    if kind == "a copy of the staging mount":
        source, other = home / "inline", tmp_path / "csi" / "inline"
    else:
        source, other = target, home / "pods" / "pod-1" / "volume-subpaths" / "data" / "main" / "0"
    other.mkdir(parents=True)
    subprocess.run(["mount", "--rbind", "--make-private", source, other], check=True)
    try:
        driver.unpublish(VOLUME.volume_id, target)
        assert MountTable.read().at(staged.mount_point) is None
        assert list((home / "inline").iterdir()) == []
        assert not target.exists()
    finally:
        for entry in reversed(MountTable.read().below(other.parent)):  # no stat, as umount(8) does: no daemon answers
            bind_mounts.unmount(Path(entry.mount_point), lazy=True)


def test_an_inline_volume_that_cannot_be_mounted_leaves_no_directory(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, target: Path
) -> None:
    data_plane.failure = EmptyDataset("s3://bucket/train/: no object; check the prefix")
    with refused(Code.NOT_FOUND) as found:
        driver.node.NodePublishVolume(publish_request(VOLUME, None, target, volume_context=INLINE))
    assert "check the prefix" in found[0].message
    assert not target.exists()
    assert list((home / "inline").iterdir()) == []


# -- capabilities and attributes ---------------------------------------------------------------------------------------


@pytest.mark.promise("S96")
@pytest.mark.parametrize(
    "mode",
    [
        Mode.SINGLE_NODE_WRITER,
        Mode.SINGLE_NODE_SINGLE_WRITER,
        Mode.SINGLE_NODE_MULTI_WRITER,
        Mode.SINGLE_NODE_READER_ONLY,
        Mode.MULTI_NODE_READER_ONLY,
    ],
)
def test_readers_and_the_single_writer_get_a_read_only_mount(
    driver: CsiClient, staging: Path, target: Path, mode: int
) -> None:
    driver.stage(VOLUME, staging, volume_capability=mount_capability(mode, fs_type="ext4"))
    driver.publish(VOLUME, staging, target, volume_capability=mount_capability(mode, fs_type="ext4"))
    entry = MountTable.read().at(target)
    assert entry is not None
    assert entry.is_read_only


@pytest.mark.promise("S96")
@pytest.mark.parametrize("mode", [Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER])
def test_several_writers_are_refused_with_the_allowed_access_modes(driver: CsiClient, staging: Path, mode: int) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.stage(VOLUME, staging, volume_capability=mount_capability(mode))
    assert found[0].class_name == "ReadOnlyVolume"
    assert Mode.Mode.Name(mode) in found[0].message  # type: ignore[arg-type]
    assert "ReadOnlyMany" in found[0].message
    assert MountTable.read().at(staging) is None


def test_a_mount_flag_for_writing_is_refused(driver: CsiClient, staging: Path) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.stage(VOLUME, staging, volume_capability=mount_capability(Mode.SINGLE_NODE_WRITER, "rw"))
    assert found[0].class_name == "ReadOnlyVolume"


@pytest.mark.promise("S97")
def test_a_block_device_or_a_foreign_file_system_is_refused(driver: CsiClient, staging: Path) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.stage(VOLUME, staging, volume_capability=block_capability())
    with refused(Code.INVALID_ARGUMENT):
        driver.stage(VOLUME, staging, volume_capability=mount_capability(fs_type="xfs"))


def test_mount_flags_are_appended_to_their_attribute(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path
) -> None:
    context = {"url": URL, "mountOptions": "noexec"}
    capability = mount_capability(Mode.MULTI_NODE_READER_ONLY, "read_ahead_kb=1024")
    driver.stage(VOLUME, staging, volume_context=context, volume_capability=capability)
    assert data_plane.requests[0].attributes["mountOptions"] == "noexec,read_ahead_kb=1024"


def test_a_call_parses_the_attributes_once_in_the_node_plugin_and_once_in_the_data_plane(
    driver: CsiClient, staging: Path, target: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = count_parses(monkeypatch)
    driver.stage(VOLUME, staging)
    assert len(parsed) == 2
    driver.publish(VOLUME, staging, target)
    assert len(parsed) == 2, "a volume that is staged and served is published without its attributes"
    driver.node.NodePublishVolume(
        publish_request(csi_pb2.Volume(volume_id="inline-1"), None, home / "inline-target", volume_context=INLINE)
    )
    assert len(parsed) == 4


def test_invalid_attributes_are_refused_by_name(driver: CsiClient, staging: Path) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.stage(VOLUME, staging, volume_context={"url": URL, "prefixx": "a"})
    assert "prefixx" in found[0].message


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (AccessDenied("s3://bucket: refused"), Code.PERMISSION_DENIED),
        (CredentialsRejected("s3://bucket: expired"), Code.UNAUTHENTICATED),
        (DaemonUnavailable("no daemon"), Code.UNAVAILABLE),
    ],
)
def test_errors_of_the_daemon_are_passed_to_kubelet(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path, failure: Exception, code: grpc.StatusCode
) -> None:
    data_plane.failure = failure
    with refused(code) as found:
        driver.stage(VOLUME, staging)
    assert (found[0].message, found[0].class_name) == (str(failure), type(failure).__name__)


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["relative", "/somewhere/else", "{home}/../x", "{home}/a/../../etc", "{home}", "/"])
def test_paths_outside_of_kubelets_directory_are_refused(driver: CsiClient, home: Path, path: str) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.stage(VOLUME, Path("/"), staging_target_path=path.format(home=home))
    with refused(Code.INVALID_ARGUMENT):
        driver.node.NodeUnpublishVolume(
            csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path=path.format(home=home))
        )


def test_a_link_that_leads_outside_is_refused(driver: CsiClient, home: Path, tmp_path: Path, staging: Path) -> None:
    (home / "link").symlink_to(tmp_path)
    driver.stage(VOLUME, staging)
    with refused(Code.INVALID_ARGUMENT):
        driver.publish(VOLUME, staging, home / "link" / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_link_is_not_followed(driver: CsiClient, home: Path, tmp_path: Path, staging: Path) -> None:
    (home / "target").symlink_to(tmp_path)
    driver.stage(VOLUME, staging)
    with refused(Code.FAILED_PRECONDITION):
        driver.publish(VOLUME, staging, home / "target")
    assert MountTable.read().at(tmp_path) is None


def test_kubelets_directory_may_be_a_link(
    home: Path, data_plane: MountingDataPlane, tmp_path: Path, staging: Path
) -> None:
    link = tmp_path / "kubelet"
    link.symlink_to(home)
    with serving(home / "second.sock", data_plane, kubelet_directory=link) as driver:
        driver.stage(VOLUME, link / "staging")
        driver.publish(VOLUME, link / "staging", link / "target")
        assert MountTable.read().at(home / "target") is not None
        driver.unpublish(VOLUME.volume_id, link / "target")
        driver.unstage(VOLUME.volume_id, link / "staging")
    assert MountTable.read().below(home) == ()


def test_a_missing_staging_path_fails_a_precondition(driver: CsiClient, home: Path) -> None:
    with refused(Code.FAILED_PRECONDITION) as found:
        driver.stage(VOLUME, home / "not-there")
    assert "not-there" in found[0].message


# -- foreign files and mounts -----------------------------------------------------------------------------------------


def test_unpublish_removes_a_stale_directory_file_or_link(driver: CsiClient, home: Path, tmp_path: Path) -> None:
    target = home / "target"
    for make in (target.mkdir, target.touch, lambda: target.symlink_to(tmp_path)):
        make()
        driver.unpublish(VOLUME.volume_id, target)
        assert "target" not in [entry.name for entry in home.iterdir()]
    assert tmp_path.is_dir()


@pytest.mark.promise("S100")
def test_unpublish_never_deletes_the_files_in_a_directory(driver: CsiClient, home: Path) -> None:
    (home / "target").mkdir()
    (home / "target" / "users.txt").write_text("data")
    with refused(Code.FAILED_PRECONDITION):
        driver.unpublish(VOLUME.volume_id, home / "target")
    assert (home / "target" / "users.txt").read_text() == "data"


@pytest.mark.promise("S100")
def test_a_foreign_mount_is_neither_published_nor_unmounted(
    driver: CsiClient, home: Path, staging: Path, target: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "foreign", str(staging)], check=True)
    with refused(Code.FAILED_PRECONDITION):
        driver.publish(VOLUME, staging, target)
    with refused(Code.FAILED_PRECONDITION):
        driver.unstage(VOLUME.volume_id, staging)
    with refused(Code.FAILED_PRECONDITION):
        driver.unpublish(VOLUME.volume_id, staging)
    with refused(Code.NOT_FOUND):
        driver.stats(VOLUME.volume_id, staging)
    entry = MountTable.read().at(staging)
    assert entry is not None
    assert entry.fs_type == "tmpfs"


def test_another_volume_at_the_target_already_exists(
    driver: CsiClient, home: Path, staging: Path, target: Path
) -> None:
    other_staging, other = home / "staging-2", csi_pb2.Volume(volume_id="static-2", volume_context={"url": URL})
    other_staging.mkdir()
    driver.stage(VOLUME, staging)
    driver.stage(other, other_staging)
    driver.publish(VOLUME, staging, target)
    with refused(Code.ALREADY_EXISTS):
        driver.publish(other, other_staging, target)


# -- a dead daemon -----------------------------------------------------------------------------------------------------


def test_mounts_of_a_dead_daemon_are_unpublished_and_unstaged(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    driver.publish(VOLUME, staging, target)
    data_plane.kill()
    data_plane.failure = DaemonUnavailable("no cache daemon answers")
    driver.unpublish(VOLUME.volume_id, target)
    driver.unstage(VOLUME.volume_id, staging)
    driver.unstage(VOLUME.volume_id, staging)
    assert MountTable.read().below(home) == ()
    assert not target.exists()


def test_a_volume_whose_mount_was_lost_is_mounted_again_when_it_is_published(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    data_plane.kill()
    assert data_plane.requests == []
    driver.publish(VOLUME, staging, target, secrets={"access_key": "s"})
    (again,) = data_plane.requests
    assert (again.mount_point, again.attributes) == (str(staging), {"url": URL})
    assert again.secrets == {"access_key": "s"}
    shown = {entry.mount_point: entry.device for entry in MountTable.read().below(home)}
    assert set(shown) == {str(staging), str(target)}
    assert len(set(shown.values())) == 1


def shown(path: Path) -> str | None:
    """The file system that is mounted at the path."""
    entry = MountTable.read().at(path)
    return None if entry is None else entry.device


@pytest.mark.promise("S248")
def test_a_target_with_a_dead_mount_shows_the_new_one_after_the_next_publication(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    driver.publish(VOLUME, staging, target)
    dead = shown(target)
    data_plane.kill()
    driver.publish(VOLUME, staging, target)
    assert shown(target) == shown(staging) != dead
    second = home / "pods" / "pod-2" / "mount"
    driver.publish(VOLUME, staging, second)
    assert shown(second) == shown(staging)
    for path in (target, second):
        driver.unpublish(VOLUME.volume_id, path)
    driver.unstage(VOLUME.volume_id, staging)
    assert MountTable.read().below(home) == ()


@pytest.mark.promise("S248")
def test_an_inline_volume_with_a_dead_mount_is_published_again(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, target: Path
) -> None:
    request = publish_request(VOLUME, None, target, volume_context=INLINE)
    driver.node.NodePublishVolume(request)
    data_plane.kill()
    driver.node.NodePublishVolume(request)
    (staged,) = data_plane.requests
    assert shown(target) == shown(Path(staged.mount_point))
    driver.unpublish(VOLUME.volume_id, target)
    assert MountTable.read().below(home) == ()


@pytest.mark.promise("S248")
def test_a_target_keeps_an_earlier_mount_of_its_volume_that_lives(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    driver.publish(VOLUME, staging, target)
    (served,) = data_plane.mounts()
    bind_mounts.unmount(staging)
    known = data_plane.mounts
    data_plane.mounts = lambda: (served, *known())  # type: ignore[method-assign]
    data_plane.requests.clear()
    driver.stage(VOLUME, staging)
    before = shown(target)
    driver.publish(VOLUME, staging, target)
    assert shown(target) == before != shown(staging)


@pytest.mark.promise("S249")
def test_stats_name_a_dead_mount(
    driver: CsiClient, data_plane: MountingDataPlane, home: Path, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    driver.publish(VOLUME, staging, target)
    data_plane.kill()
    for _ in range(2):
        condition = driver.stats(VOLUME.volume_id, target).volume_condition
        assert condition.abnormal
        assert "Restart the pod" in condition.message
        assert {entry.status for entry in driver.health(VOLUME.volume_id, target).values()} == {csi_pb2.INACCESSIBLE}
        driver.publish(VOLUME, staging, home / "pods" / "pod-2" / "mount")
    assert not driver.stats(VOLUME.volume_id, home / "pods" / "pod-2" / "mount").volume_condition.abnormal


def test_nothing_is_published_while_the_daemon_does_not_answer(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    data_plane.failure = DaemonUnavailable("no cache daemon answers")
    with refused(Code.UNAVAILABLE):
        driver.publish(VOLUME, staging, target)
    assert not target.exists()


def test_stats_report_a_dead_daemon_and_do_not_hang(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path, target: Path
) -> None:
    driver.stage(VOLUME, staging)
    driver.publish(VOLUME, staging, target)
    data_plane.kill()
    data_plane.failure = DaemonUnavailable("no cache daemon answers")
    answer = driver.stats(VOLUME.volume_id, target)
    assert answer.volume_condition.abnormal
    assert answer.volume_condition.message == CACHE_DAEMON_UNAVAILABLE.message
    assert not answer.usage
    assert set(driver.health(VOLUME.volume_id, target)) == {"CacheDaemonUnavailable"}
    assert driver.storage() == {"CacheDaemonUnavailable": csi_pb2.STORAGE_UNREACHABLE}


@pytest.mark.promise("S99")
def test_a_stage_fails_when_the_daemon_reports_success_without_a_mount(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path
) -> None:
    """This happens when the daemon's mounts are not propagated to the node plugin's mount namespace."""
    driver.stage(VOLUME, staging)
    data_plane.mount = lambda request: data_plane.volume(request.volume_id)  # type: ignore[method-assign]
    bind_mounts.unmount(staging)
    with refused(Code.FAILED_PRECONDITION) as found:
        driver.node.NodeStageVolume(stage_request(VOLUME, staging))
    assert "mountPropagation" in found[0].message


# -- calls that kubelet repeats for pods that run ----------------------------------------------------------------------


class Noting(MountingDataPlane):
    """Notes every call of ``mount``."""

    def __init__(self) -> None:
        super().__init__()
        self.mounted: list[tuple[str, bool]] = []

    def mount(self, request: MountRequest) -> VolumeReport:
        self.mounted.append((request.secrets["access_key"], request.republished))
        return super().mount(request)


@pytest.mark.promise("S263")
def test_a_repeated_publish_brings_the_secret_of_now_waits_for_no_warmup_and_logs_nothing(
    home: Path, staging: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_plane = Noting()

    def publish(path: Path, context: dict[str, str], secret: str, staging: Path | None = None) -> list[str]:
        """The lines of the log about it."""
        caplog.clear()
        with caplog.at_level("INFO"):
            client.publish(VOLUME, staging, path, volume_context=context, secrets={"access_key": secret})
        return [record.getMessage() for record in caplog.records if "Publish" in record.getMessage()]

    context = {**INLINE, "warmup": "wait"}
    try:
        with serving(home / "csi.sock", data_plane, kubelet_directory=home) as client:
            data_plane.warmups[VOLUME.volume_id] = WarmupReport(VOLUME.volume_id, WarmupState.COMPLETE)
            assert publish(target, context, "first") == ["NodePublishVolume"]
            data_plane.warmups[VOLUME.volume_id] = WarmupReport(VOLUME.volume_id, WarmupState.FAILED)
            assert publish(target, context, "second") == []
            assert data_plane.mounted == [("first", False), ("second", True)]
            client.unpublish(VOLUME.volume_id, target)
            client.stage(VOLUME, staging, secrets={"access_key": "third"})
            for secret, lines in (("fourth", ["NodePublishVolume"]), ("fifth", [])):
                assert publish(target, dict(VOLUME.volume_context), secret, staging) == lines
            assert data_plane.mounted[2:] == [("third", False), ("fourth", True), ("fifth", True)]
    finally:
        data_plane.close(home)
