"""The generated code loads with the runtimes of pyproject.toml and is CSI 1.12.

`make lint` checks that it is what proto/generate.sh makes of proto/*.proto.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from csi_driver.rpc.pb import csi_pb2, hayloft_pb2
from tests.architecture.source_tree import REPOSITORY

GENERATED = Path("csi_driver/rpc/pb")


def lower_bound(distribution: str) -> tuple[int, ...]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (found,) = (text for text in project["dependencies"] if re.match(rf"{distribution}[^a-z-]", text))
    bound = re.search(r">=([\d.]+)", found)
    assert bound is not None
    return tuple(int(part) for part in bound[1].split("."))


def test_every_allowed_runtime_is_new_enough_for_the_code() -> None:
    for path in (REPOSITORY / GENERATED).glob("*_pb2.py"):
        made_by = re.search(r"# Protobuf Python Version: ([\d.]+)", path.read_text())
        assert made_by is not None
        assert lower_bound("protobuf") >= tuple(int(part) for part in made_by[1].split("."))
    for path in (REPOSITORY / GENERATED).glob("*_pb2_grpc.py"):
        made_by = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", path.read_text())
        assert made_by is not None
        assert lower_bound("grpcio") >= tuple(int(part) for part in made_by[1].split("."))


def test_csi_has_the_services_and_calls_of_release_1_13() -> None:
    services = {
        name: {method.name for method in service.methods}
        for name, service in csi_pb2.DESCRIPTOR.services_by_name.items()
    }
    assert csi_pb2.DESCRIPTOR.package == "csi.v1"
    assert {name: len(methods) for name, methods in services.items()} == {
        "Identity": 3,
        "Controller": 17,
        "GroupController": 4,
        "SnapshotMetadata": 2,
        "Node": 10,
    }
    assert "GetSnapshot" in services["Controller"]


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        ("CreateVolumeRequest", "mutable_parameters", 8),
        ("NodePublishVolumeRequest", "volume_context", 8),
        ("NodePublishVolumeRequest", "readonly", 6),
        ("NodeStageVolumeRequest", "staging_target_path", 3),
        ("NodeStageVolumeRequest", "volume_context", 6),
        ("NodeGetVolumeStatsResponse", "volume_condition", 2),
        ("NodeGetInfoResponse", "accessible_topology", 3),
        ("Volume", "volume_context", 3),
        ("ValidateVolumeCapabilitiesRequest", "volume_capabilities", 3),
        ("VolumeUsage", "unit", 4),
        ("Snapshot", "group_snapshot_id", 6),
    ],
)
def test_fields_have_the_numbers_of_the_specification(message: str, field: str, number: int) -> None:
    assert csi_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number == number


def test_a_stage_request_is_the_bytes_that_kubelet_sends() -> None:
    """Written by hand from the specification: field 1 "v", field 3 "/s", field 4 with mount (2) and mode 1, field 6."""
    wire = b"\x0a\x01v" + b"\x1a\x02/s" + b"\x22\x06\x12\x00\x1a\x02\x08\x01" + b"\x32\x06\x0a\x01k\x12\x01w"
    request = csi_pb2.NodeStageVolumeRequest.FromString(wire)
    assert (request.volume_id, request.staging_target_path, request.volume_context) == ("v", "/s", {"k": "w"})
    assert request.volume_capability.WhichOneof("access_type") == "mount"
    assert request.volume_capability.access_mode.mode == csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    assert request.SerializeToString(deterministic=True) == wire


def secret_fields() -> list[FieldDescriptor]:
    messages = [
        *csi_pb2.DESCRIPTOR.message_types_by_name.values(),
        *hayloft_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    return [field for message in messages for field in message.fields if field.name == "secrets"]


def test_every_field_of_secrets_is_marked_as_secret() -> None:
    fields = secret_fields()
    assert len(fields) >= 20
    for field in fields:
        options = field.GetOptions()
        assert options.Extensions[csi_pb2.csi_secret] or options.debug_redact, field.full_name
