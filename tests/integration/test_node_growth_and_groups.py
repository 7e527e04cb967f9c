"""NodeExpandVolume, the group of a pod, and one pod for a single writer, with real mounts and no daemon."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.model.errors import CacheOvercommitted, DaemonUnavailable
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2, health_pb2
from csi_driver.volumes.data_plane import VolumeReport
from tests.support.csi_calls import (
    URL,
    CsiClient,
    Mode,
    mount_capability,
    publish_request,
    refused,
    serving,
)
from tests.support.data_planes import InMemoryDataPlane, MountingDataPlane

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode
GIB = 1 << 30
VOLUME = csi_pb2.Volume(volume_id="v-1", volume_context={"url": URL})
RESERVING = csi_pb2.Volume(volume_id="v-1", volume_context={"url": URL, "cacheReservation": "4GiB"})


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-csi-"))
    (path / "staging").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    plane.reports_attributes = True
    yield plane
    plane.close(home)


@pytest.fixture
def driver(home: Path, plane: MountingDataPlane) -> Iterator[CsiClient]:
    with serving(home / "csi.sock", plane, kubelet_directory=home) as client:
        yield client


def capacity(required: int = 0, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


def of_group(text: str, mode: int = Mode.MULTI_NODE_READER_ONLY) -> csi_pb2.VolumeCapability:
    capability = mount_capability(mode)
    capability.mount.volume_mount_group = text
    return capability


@pytest.mark.promise("S354")
def test_the_size_of_the_claim_becomes_the_reservation(driver: CsiClient, plane: MountingDataPlane, home: Path) -> None:
    driver.stage(RESERVING, home / "staging")
    driver.publish(RESERVING, home / "staging", home / "a")
    for path in (home / "a", home / "staging", home / "a"):
        assert driver.expand("v-1", path, capacity_range=capacity(8 * GIB)) == 8 * GIB
    assert plane.reserved == {"v-1": 8 * GIB}
    assert driver.expand("v-1", home / "a", capacity_range=capacity(GIB)) == 8 * GIB, "it does not shrink"
    assert driver.expand("v-1", home / "a") == 8 * GIB, "no size: nothing is asked for"
    assert driver.expand("v-1", home / "a", capacity_range=capacity(0, 16 * GIB)) == 8 * GIB
    assert plane.reserved == {"v-1": 8 * GIB}
    with refused(Code.OUT_OF_RANGE):
        driver.expand("v-1", home / "a", capacity_range=capacity(GIB, 2 * GIB))
    driver.stage(RESERVING, home / "staging")


@pytest.mark.promise("S354")
def test_a_volume_that_reserves_nothing_gets_no_reservation_and_no_error(
    driver: CsiClient, plane: MountingDataPlane, home: Path
) -> None:
    driver.stage(VOLUME, home / "staging")
    assert driver.expand("v-1", home / "staging", capacity_range=capacity(8 * GIB)) == 8 * GIB
    assert plane.reserved == {}
    assert driver.expand("v-1", home / "staging", capacity_range=capacity(1)) == 3_000_000_000, "that of the dataset"


@pytest.mark.parametrize(
    ("failure", "code"),
    [(CacheOvercommitted("full"), Code.RESOURCE_EXHAUSTED), (DaemonUnavailable("away"), Code.UNAVAILABLE)],
)
def test_what_may_pass_by_itself_is_retried(
    driver: CsiClient, plane: MountingDataPlane, home: Path, failure: Exception, code: grpc.StatusCode
) -> None:
    driver.stage(RESERVING, home / "staging")

    def fail(volume_id: str, count_bytes: int) -> VolumeReport:
        raise failure

    plane.reserve = fail  # type: ignore[method-assign]
    with refused(code):
        driver.expand("v-1", home / "staging", capacity_range=capacity(8 * GIB))


def test_another_volume_at_the_path_is_not_expanded(driver: CsiClient, home: Path) -> None:
    driver.stage(RESERVING, home / "staging")
    (home / "other").mkdir()
    driver.stage(csi_pb2.Volume(volume_id="v-2", volume_context={"url": URL}), home / "other")
    with refused(Code.NOT_FOUND):
        driver.expand("v-1", home / "other", capacity_range=capacity(8 * GIB))
    with refused(Code.NOT_FOUND):
        driver.expand("v-1", home, capacity_range=capacity(8 * GIB))


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S355")
def test_the_group_of_the_first_pod_is_that_of_the_mount(
    driver: CsiClient, plane: MountingDataPlane, home: Path
) -> None:
    driver.stage(VOLUME, home / "staging", volume_capability=of_group("2000"))
    (request,) = plane.requests
    assert request.mount_group == 2000
    assert request.attributes == {"url": URL}, "a volume is the same whatever pods use it"
    for pod, group in enumerate(("2000", "3000", "")):
        driver.publish(VOLUME, home / "staging", home / f"pod-{pod}", volume_capability=of_group(group))
        driver.publish(VOLUME, home / "staging", home / f"pod-{pod}", volume_capability=of_group(group))


@pytest.mark.promise("S355")
@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"fileMode": "0440", "dirMode": "0550"}, Code.FAILED_PRECONDITION),
        ({"dirMode": "0550"}, Code.FAILED_PRECONDITION),
        ({"fileMode": "0400", "dirMode": "0500"}, None),
        ({"fileMode": "0440", "dirMode": "0550", "gid": "4000"}, None),
        ({}, None),
    ],
    ids=["group alone", "directories of the group alone", "owner alone", "the volume's own group", "all"],
)
def test_a_pod_whose_group_could_not_read_is_refused(
    driver: CsiClient, home: Path, attributes: dict[str, str], code: grpc.StatusCode | None
) -> None:
    volume = csi_pb2.Volume(volume_id="v-1", volume_context={"url": URL, **attributes})
    driver.stage(volume, home / "staging", volume_capability=of_group("2000"))
    driver.publish(volume, home / "staging", home / "a", volume_capability=of_group("2000"))
    if code is None:
        driver.publish(volume, home / "staging", home / "b", volume_capability=of_group("3000"))
        return
    with refused(code) as found:
        driver.publish(volume, home / "staging", home / "b", volume_capability=of_group("3000"))
    assert "fsGroup" in found[0].message
    assert MountTable.read().at(home / "b") is None
    driver.publish(volume, home / "staging", home / "a", volume_capability=of_group("2000"))


def test_an_inline_volume_has_the_group_of_its_pod(driver: CsiClient, plane: MountingDataPlane, home: Path) -> None:
    context = {"url": URL, "csi.storage.k8s.io/ephemeral": "true"}
    capability = of_group("2000", Mode.SINGLE_NODE_WRITER)
    request = publish_request(VOLUME, None, home / "a", volume_context=context, volume_capability=capability)
    driver.node.NodePublishVolume(request)
    assert [request.mount_group for request in plane.requests] == [2000]


# -- a single writer ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("S356")
def test_a_volume_for_a_single_writer_has_one_target(driver: CsiClient, home: Path) -> None:
    single, several = mount_capability(Mode.SINGLE_NODE_SINGLE_WRITER), mount_capability(Mode.SINGLE_NODE_MULTI_WRITER)
    driver.stage(VOLUME, home / "staging", volume_capability=single)
    for _ in range(2):
        driver.publish(VOLUME, home / "staging", home / "a", volume_capability=single)
    with refused(Code.FAILED_PRECONDITION) as found:
        driver.publish(VOLUME, home / "staging", home / "b", volume_capability=single)
    assert str(home / "a") in found[0].message
    assert not (home / "b").exists()
    driver.publish(VOLUME, home / "staging", home / "b", volume_capability=several)
    for name in ("a", "b"):
        driver.unpublish("v-1", home / name)
    driver.publish(VOLUME, home / "staging", home / "b", volume_capability=single)
    entry = MountTable.read().at(home / "b")
    assert entry is not None
    assert entry.is_read_only


# -- node info and health checks ---------------------------------------------------------------------------------------


def test_node_info_has_topology_and_limit_if_they_are_set(tmp_path: Path) -> None:
    zone = {"topology.kubernetes.io/zone": "eu-1a"}
    service = NodeService(NodeConfiguration("n", tmp_path, None, zone, 12), InMemoryDataPlane())
    info = service.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), None)
    assert (dict(info.accessible_topology.segments), info.max_volumes_per_node) == (zone, 12)


@pytest.mark.promise("S358")
def test_grpc_clients_without_csi_are_told_the_same_as_probe(driver: CsiClient, plane: MountingDataPlane) -> None:
    def status(service: str = "") -> int:
        return driver.checks.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status

    assert status() == status("csi.v1.Node") == health_pb2.HealthCheckResponse.SERVING
    with refused(Code.NOT_FOUND):
        status("no.such.Service")
    plane.failure = DaemonUnavailable("away")
    assert status() == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not driver.identity.Probe(csi_pb2.ProbeRequest()).ready.value
