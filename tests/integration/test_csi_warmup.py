"""``warmup: wait`` as kubelet sees it: the volume is staged when it is warm; until then calls report the progress."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.csi import staging as csi_staging
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import WarmupReport, WarmupState
from tests.support.csi_calls import URL, CsiClient, publish_request, refused, serving, stage_request
from tests.support.data_planes import MountingDataPlane

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode
CONTEXT = {"url": URL, "warmup": "wait"}
VOLUME = csi_pb2.Volume(volume_id="static-1", volume_context=CONTEXT)
RUNNING = WarmupReport("static-1", WarmupState.RUNNING, (), 8 << 30, 100, 2 << 30, 25, rate_bytes=1e9, eta_s=6.4)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-csi-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    yield plane
    plane.close(home)


@pytest.fixture
def driver(home: Path, plane: MountingDataPlane) -> Iterator[CsiClient]:
    with serving(home / "csi.sock", plane, kubelet_directory=home) as client:
        yield client


@pytest.fixture
def staging(home: Path) -> Path:
    path = home / "staging"
    path.mkdir()
    return path


def stage(driver: CsiClient, staging: Path, timeout_s: float = 10.0) -> None:
    driver.node.NodeStageVolume(stage_request(VOLUME, staging), timeout=timeout_s)


@pytest.mark.promise("S82")
def test_a_call_that_times_out_names_the_command_that_shows_the_progress_and_a_retry_resumes_the_wait(
    driver: CsiClient, plane: MountingDataPlane, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csi_staging, "_WARMUP_WAIT_S", 1.2)
    plane.warmups["static-1"] = RUNNING
    with refused(Code.ABORTED) as found:
        stage(driver, staging)
    assert found[0].class_name == "WarmupUnfinished"
    assert "`hayloft warm --volume static-1 --status`" in found[0].message
    assert MountTable.read().at(staging) is not None, "it stays mounted, and is warmed on"
    plane.warmups["static-1"] = WarmupReport("static-1", WarmupState.COMPLETE)
    stage(driver, staging)
    assert len(plane.requests) == 1


def test_the_response_is_sent_before_the_deadline_of_the_call(
    driver: CsiClient, plane: MountingDataPlane, staging: Path
) -> None:
    plane.warmups["static-1"] = RUNNING
    with refused(Code.ABORTED):
        stage(driver, staging, timeout_s=1.5)


@pytest.mark.parametrize(
    ("state", "code"), [(WarmupState.FAILED, Code.UNAVAILABLE), (WarmupState.FULL, Code.RESOURCE_EXHAUSTED)]
)
def test_a_warmup_that_cannot_complete_fails_with_a_status_after_which_kubelet_unstages(
    driver: CsiClient, plane: MountingDataPlane, staging: Path, state: WarmupState, code: grpc.StatusCode
) -> None:
    plane.warmups["static-1"] = WarmupReport("static-1", state, message="3 of 9 files are gone")
    with refused(code) as found:
        stage(driver, staging)
    assert "3 of 9 files are gone" in found[0].message


def test_a_cancelled_warmup_is_not_waited_for(driver: CsiClient, plane: MountingDataPlane, staging: Path) -> None:
    plane.warmups["static-1"] = WarmupReport("static-1", WarmupState.CANCELLED)
    stage(driver, staging)


def test_an_inline_volume_is_published_when_it_is_warm(
    driver: CsiClient, plane: MountingDataPlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csi_staging, "_WARMUP_WAIT_S", 1.2)
    context = {**CONTEXT, "csi.storage.k8s.io/ephemeral": "true"}
    request = publish_request(VOLUME, None, home / "pod" / "mount", volume_context=context)
    plane.warmups["static-1"] = RUNNING
    with refused(Code.ABORTED):
        driver.node.NodePublishVolume(request)
    assert MountTable.read().at(home / "pod" / "mount") is None
    plane.warmups["static-1"] = WarmupReport("static-1", WarmupState.COMPLETE)
    driver.node.NodePublishVolume(request)
    assert MountTable.read().at(home / "pod" / "mount") is not None
    driver.unpublish("static-1", home / "pod" / "mount")
    assert MountTable.read().below(home) == ()
