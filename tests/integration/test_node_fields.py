"""Each call of the node with each field missing, empty, too long, or of the wrong kind: the right code, the name of the
field, and nothing changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import (
    URL,
    CsiClient,
    Mode,
    block_capability,
    mount_capability,
    publish_request,
    refused,
    serving,
    stage_request,
)
from tests.support.data_planes import MountingDataPlane

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode
VOLUME = csi_pb2.Volume(volume_id="v-1", volume_context={"url": URL, "cacheReservation": "1GiB"})
LONG = "x" * 5000
NUL = "/a\x00b"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-csi-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    yield plane
    plane.close(home)


@pytest.fixture(scope="module")
def driver(home: Path, plane: MountingDataPlane) -> Iterator[CsiClient]:
    """With a volume that is staged and published."""
    with serving(home / "csi.sock", plane, kubelet_directory=home) as client:
        (home / "staging").mkdir()
        client.stage(VOLUME, home / "staging")
        client.publish(VOLUME, home / "staging", home / "pods" / "a")
        yield client


def group(text: str) -> csi_pb2.VolumeCapability:
    capability = mount_capability()
    capability.mount.volume_mount_group = text
    return capability


def capacity(required: int = 0, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


BAD_IDS: list[tuple[str, Any, grpc.StatusCode]] = [
    ("volume_id", "", Code.INVALID_ARGUMENT),
    ("volume_id", LONG, Code.INVALID_ARGUMENT),
    ("volume_id", "a\nb", Code.INVALID_ARGUMENT),
]
BAD_CAPABILITIES: list[tuple[str, Any, grpc.StatusCode]] = [
    ("volume_capability", None, Code.INVALID_ARGUMENT),
    ("volume_capability", csi_pb2.VolumeCapability(), Code.INVALID_ARGUMENT),
    ("volume_capability", block_capability(), Code.INVALID_ARGUMENT),
    ("volume_capability", mount_capability(Mode.UNKNOWN), Code.INVALID_ARGUMENT),
    ("volume_capability", mount_capability(99), Code.INVALID_ARGUMENT),
    ("volume_capability", mount_capability(fs_type=LONG), Code.INVALID_ARGUMENT),
    ("volume_capability", mount_capability(Mode.SINGLE_NODE_WRITER, "no such flag"), Code.INVALID_ARGUMENT),
    *(("volume_capability", group(text), Code.INVALID_ARGUMENT) for text in ("staff", "-1", "4294967295", LONG, " 7")),
]


def bad_paths(name: str) -> list[tuple[str, Any, grpc.StatusCode]]:
    return [
        (name, "", Code.INVALID_ARGUMENT),
        (name, "relative/path", Code.INVALID_ARGUMENT),
        (name, "/outside/of/kubelet", Code.INVALID_ARGUMENT),
        (name, f"/{LONG}", Code.INVALID_ARGUMENT),
        (name, NUL, Code.INVALID_ARGUMENT),
    ]


def asked_paths(name: str) -> list[tuple[str, Any, grpc.StatusCode]]:
    """Of a path that is asked about, and not changed."""
    return [
        (name, "", Code.INVALID_ARGUMENT),
        (name, "relative/path", Code.NOT_FOUND),
        (name, "/nothing/there", Code.NOT_FOUND),
        (name, f"/{LONG}", Code.INVALID_ARGUMENT),
        (name, NUL, Code.INVALID_ARGUMENT),
    ]


BAD: dict[str, list[tuple[str, Any, grpc.StatusCode]]] = {
    "NodeStageVolume": [*BAD_IDS, *bad_paths("staging_target_path"), *BAD_CAPABILITIES],
    "NodeUnstageVolume": [*BAD_IDS, *bad_paths("staging_target_path")],
    "NodePublishVolume": [
        *BAD_IDS,
        *bad_paths("target_path"),
        ("staging_target_path", "", Code.FAILED_PRECONDITION),
        *bad_paths("staging_target_path")[1:],
        *BAD_CAPABILITIES,
    ],
    "NodeUnpublishVolume": [*BAD_IDS, *bad_paths("target_path")],
    "NodeGetVolumeStats": [*BAD_IDS, *asked_paths("volume_path")],
    "NodeGetVolumeHealth": [*BAD_IDS, *asked_paths("volume_publish_path")[1:]],
    "NodeExpandVolume": [
        *BAD_IDS,
        *asked_paths("volume_path"),
        *BAD_CAPABILITIES[1:],
        ("capacity_range", capacity(-1), Code.INVALID_ARGUMENT),
        ("capacity_range", capacity(0, -1), Code.INVALID_ARGUMENT),
        ("capacity_range", capacity(1 << 40, 1 << 39), Code.OUT_OF_RANGE),
        ("capacity_range", capacity(0, 1), Code.OUT_OF_RANGE),
    ],
}
CASES = [
    pytest.param(call, *case, id=f"{call}-{case[0]}-{number}") for call in BAD for number, case in enumerate(BAD[call])
]


def good(call: str, home: Path) -> Any:
    """A request that succeeds. Those that would end the volume are of one that does not exist."""
    staging, target = str(home / "staging"), str(home / "pods" / "a")
    return {
        "NodeStageVolume": stage_request(VOLUME, home / "staging"),
        "NodePublishVolume": publish_request(VOLUME, home / "staging", home / "pods" / "a"),
        "NodeUnstageVolume": csi_pb2.NodeUnstageVolumeRequest(volume_id="v-2", staging_target_path=f"{staging}-2"),
        "NodeUnpublishVolume": csi_pb2.NodeUnpublishVolumeRequest(volume_id="v-2", target_path=f"{target}-2"),
        "NodeGetVolumeStats": csi_pb2.NodeGetVolumeStatsRequest(volume_id="v-1", volume_path=target),
        "NodeGetVolumeHealth": csi_pb2.NodeGetVolumeHealthRequest(volume_id="v-1", volume_publish_path=target),
        "NodeExpandVolume": csi_pb2.NodeExpandVolumeRequest(
            volume_id="v-1", volume_path=target, capacity_range=capacity(1 << 31), volume_capability=mount_capability()
        ),
    }[call]


def everything(home: Path, plane: MountingDataPlane) -> object:
    """Mounts, names and reservations. Nothing below a mount: no daemon answers there."""
    names = {str(directory): sorted(os.listdir(directory)) for directory in (home, home / "pods")}
    mounts = [(entry.mount_point, entry.device) for entry in MountTable.read().below(home)]
    return mounts, names, plane.reserved.copy()


@pytest.mark.parametrize("call", BAD)
def test_the_request_without_a_mistake_succeeds(driver: CsiClient, home: Path, call: str) -> None:
    for _ in range(2):
        getattr(driver.node, call)(good(call, home), timeout=30)


@pytest.mark.promise("S353")
@pytest.mark.parametrize(("call", "name", "value", "code"), CASES)
def test_a_mistake_is_named_and_changes_nothing(
    driver: CsiClient, plane: MountingDataPlane, home: Path, call: str, name: str, value: Any, code: grpc.StatusCode
) -> None:
    request = good(call, home)
    request.ClearField(name)
    if value is not None and isinstance(value, str):
        setattr(request, name, value)
    elif value is not None:
        getattr(request, name).CopyFrom(value)
    before = everything(home, plane)
    with refused(code) as found:
        getattr(driver.node, call)(request, timeout=30)
    assert name.split(".")[0] in found[0].message
    assert len(found[0].message) < 1000
    assert everything(home, plane) == before
