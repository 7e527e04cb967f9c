"""What the version before has sent and stored, as it was recorded: this one understands it, and is understood."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.filesystem.open_table import ConnectionState, OpenRecord, OpenTable
from csi_driver.rpc.pb import hayloft_pb2
from csi_driver.volumes.data_plane import WarmupRequest
from tests.support.recorded.record import SNAPSHOT, client_packets, keeper_answers

BEFORE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "support" / "recorded" / "before.json").read_text())
MOUNT_ID = "m-0123456789abcdef"

pytestmark = pytest.mark.promise("S390")


def unpacked(name: str) -> bytes:
    return zlib.decompress(base64.b64decode(BEFORE[name]))


def test_the_keeper_answers_a_daemon_of_before_as_that_of_before_did(tmp_path: Path) -> None:
    sent = tuple((packet, count) for packet, count, _, _ in BEFORE["keeper"])
    assert keeper_answers(tmp_path / "keeper", sent) == BEFORE["keeper"]


def test_the_daemon_asks_a_keeper_of_before_as_that_of_before_did(tmp_path: Path) -> None:
    replies = tuple(reply for _, _, reply in BEFORE["keeper_client"])
    assert client_packets(tmp_path / "keeper", replies) == BEFORE["keeper_client"]


def test_a_record_of_a_mount_of_before_is_read(tmp_path: Path) -> None:
    records = MountRecords(tmp_path)
    (tmp_path / "mounts" / f"{MOUNT_ID}.json").write_text(BEFORE["mount_record"])
    (record,) = records.load()
    attributes = {"url": "s3://bucket/data"}
    assert record == MountRecord(MOUNT_ID, "volume-1", "/a/globalmount", attributes, SNAPSHOT, region="us-east-1")


def record_of_now() -> MountRecord:
    attributes = {"url": "s3://bucket/data"}
    return MountRecord(MOUNT_ID, "volume-1", "/a", attributes, SNAPSHOT, namespace="team-a", inline=True, device="0:1")


def test_a_record_of_a_mount_has_no_field_that_the_version_before_does_not_know(tmp_path: Path) -> None:
    """It would drop the record, and end the mount below its readers."""
    MountRecords(tmp_path).save(record_of_now())
    written = json.loads((tmp_path / "mounts" / f"{MOUNT_ID}.json").read_text())
    assert written.keys() <= json.loads(BEFORE["mount_record"]).keys()
    assert [path.name for path in (tmp_path / "mounts").glob("*.json")] == [f"{MOUNT_ID}.json"]
    assert list(MountRecords(tmp_path).load()) == [record_of_now()]


@pytest.mark.parametrize("what", ["lost", "damaged", "empty"])
def test_a_record_without_its_newer_part_is_none_since_that_says_whom_the_volume_belongs_to(
    tmp_path: Path, what: str
) -> None:
    records = MountRecords(tmp_path)
    records.save(record_of_now())
    more = tmp_path / "mounts" / f"{MOUNT_ID}.more"
    if what == "lost":
        more.unlink()
    else:
        more.write_text(more.read_text().replace("true", "false") if what == "damaged" else "")
    assert list(records.load()) == []
    assert list((tmp_path / "mounts").iterdir()) == []


def test_a_field_of_a_later_version_is_ignored(tmp_path: Path) -> None:
    records = MountRecords(tmp_path)
    fields = {**asdict(record_of_now()), "colour": "blue"}
    records._save(tmp_path / "mounts" / f"{MOUNT_ID}.json", fields)
    assert list(records.load()) == [record_of_now()]


def test_the_open_files_of_a_mount_of_before_are_adopted(tmp_path: Path) -> None:
    (tmp_path / "opens").write_bytes(unpacked("open_table"))
    table = OpenTable.load(tmp_path / "opens", SNAPSHOT)
    cached, passed_through = BEFORE["open_table_handles"]
    assert list(table.records()) == [OpenRecord(cached, 2, 11, 100, 0), OpenRecord(passed_through, 3, 12, 102, 7)]
    assert table.state == ConnectionState(45, 1 << 37 | 1)
    table.close()


def test_a_warmup_of_before_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "warmup").write_text(BEFORE["warmup_record"])
    record = WarmupRecord.load(tmp_path / "warmup")
    assert record == WarmupRecord(WarmupRequest("volume-1", ("*.jpg",), 5 << 20, 2), None)


def fields_of(messages: list[DescriptorProto], prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """By message and number; those of nested messages, which maps are, too."""
    found: dict[str, tuple[Any, ...]] = {}
    for message in messages:
        name = f"{prefix}{message.name}"
        found |= {
            f"{name}.{field.number}": (field.name, field.type, field.label, field.type_name) for field in message.field
        }
        found |= fields_of(list(message.nested_type), f"{name}.")
    return found


def reserved_in(messages: list[DescriptorProto]) -> set[str]:
    """By message and number."""
    ranges = [(message.name, span) for message in messages for span in message.reserved_range]
    return {f"{name}.{number}" for name, span in ranges for number in range(span.start, span.end)}


def test_the_interface_of_the_daemon_has_every_call_and_field_of_before_with_the_same_meaning() -> None:
    """An unknown field is ignored, and one that is not sent any more has its default; but its number must not be that
    of another one."""
    before, now = FileDescriptorProto.FromString(unpacked("hayloft_proto")), FileDescriptorProto()
    hayloft_pb2.DESCRIPTOR.CopyToProto(now)
    fields_now, gone = fields_of(list(now.message_type)), reserved_in(list(now.message_type))
    for number, field in fields_of(list(before.message_type)).items():
        assert number in gone or fields_now.get(number) == field, number
    calls_before = {(call.name, call.input_type, call.output_type) for call in before.service[0].method}
    assert calls_before <= {(call.name, call.input_type, call.output_type) for call in now.service[0].method}
