"""``profile`` sets defaults by one word; each of them can be set otherwise."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.filesystem.fetching import Fetching
from csi_driver.model.errors import InvalidParameter, UnknownParameter
from csi_driver.reading.readahead import WHOLE_FILE_BYTES, Limits
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.parameters import VolumeParameters, parse_changes
from csi_driver.volumes.records import VolumeRecord

MIB = 1 << 20
USUAL = Limits(fetch_chunks=8, window_chunks=32)


def parse(**given: str) -> VolumeParameters:
    return VolumeParameters.parse({"url": "s3://bucket/model", **given})


@pytest.mark.promise("S544")
@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("training", ("none", None, "none")),
        ("inference", ("memory", 128 * MIB, "weights")),
        ("analytics", ("none", 8 * MIB, "none")),
    ],
)
def test_a_profile_sets_warmup_readahead_and_the_intent_of_complete_files(
    profile: str, expected: tuple[object, ...]
) -> None:
    found = parse(profile=profile)
    assert (found.warmup, found.read_ahead_bytes, found.whole_files) == expected
    assert found.to_context() == {"url": "s3://bucket/model/"} | ({} if profile == "training" else {"profile": profile})


def test_a_volume_without_a_profile_is_read_as_before() -> None:
    assert parse() == parse(profile="training")


@pytest.mark.promise("S544")
@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("warmup", "none", "warmup", "none"),
        ("warmup", "background", "warmup", "background"),
        ("readAhead", "0", "read_ahead_bytes", 0),
        ("readAhead", "16MiB", "read_ahead_bytes", 16 * MIB),
        ("wholeFiles", "none", "whole_files", "none"),
        ("wholeFiles", "all", "whole_files", "all"),
    ],
)
def test_each_default_of_a_profile_can_be_set_otherwise(name: str, value: str, field: str, expected: object) -> None:
    found = parse(profile="inference", **{name: value})
    assert getattr(found, field) == expected
    assert VolumeParameters.parse(found.to_context()) == found


@pytest.mark.promise("S544")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("profile", "gaming", "training or inference or analytics"),
        ("profile", "Inference", "Did you mean inference"),
        ("wholeFiles", "weight", "Did you mean weights"),
        ("readAhead", "2GiB", "1MiB to 1GiB"),
        ("readAhead", "1500kB", "complete MiB"),
        ("readAhead", "fast", "a size such as"),
        ("warmup", "ram", "none or background or wait or memory"),
        ("warmupMemoryInclude", "[", "warmupMemoryInclude: "),
        ("warmupTrace", "/start.arrow", "a path below the dataset's URL"),
        ("warmupTrace", "a/../b", "a path below the dataset's URL"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse(**{name: value})
    assert name in str(refused.value)
    assert said in str(refused.value)


def test_other_names_for_a_profile_are_refused_with_the_right_one() -> None:
    with pytest.raises(UnknownParameter, match="use profile"):
        parse(workload="inference")


def test_a_trace_and_globs_of_a_warmup_exclude_each_other() -> None:
    with pytest.raises(InvalidParameter, match="set without warmupInclude"):
        parse(warmupTrace="start.arrow", warmupInclude="*.bin")


def test_a_change_of_a_volume_keeps_a_value_that_is_the_default_of_another_profile() -> None:
    """``warmup: none`` is no default of ``inference``; an empty value gives the profile's default back."""
    volume = parse(profile="inference")
    assert volume.modified_by(parse_changes({"warmup": "none"})).warmup == "none"
    assert volume.modified_by(parse_changes({"warmup": ""})).warmup == "memory"


@pytest.mark.promise("S545")
@pytest.mark.parametrize(
    ("whole_files", "key", "size_bytes", "expected"),
    [
        ("weights", "llama/model-1.safetensors", WHOLE_FILE_BYTES, True),
        ("weights", "llama/MODEL.GGUF", WHOLE_FILE_BYTES, True),
        ("weights", "llama/model.safetensors", WHOLE_FILE_BYTES - 1, False),
        ("weights", "llama/shard.tar", WHOLE_FILE_BYTES, False),
        ("all", "llama/shard.tar", WHOLE_FILE_BYTES, True),
        ("none", "llama/model.safetensors", WHOLE_FILE_BYTES, False),
    ],
)
def test_which_files_are_fetched_completely(whole_files: str, key: str, size_bytes: int, expected: bool) -> None:
    fetching = Fetching(None, whole_files)  # type: ignore[arg-type]
    assert fetching.limits(key, size_bytes, USUAL) == USUAL._replace(whole=expected)


def test_the_readahead_of_a_volume_replaces_that_of_the_daemon() -> None:
    assert Fetching(128 * MIB).limits("a", 1, USUAL).window_chunks == 128
    assert Fetching(0).limits("a", 1, USUAL).window_chunks == 0


# -- records that the version before reads --

NEW = {"url": "s3://bucket/model/", "profile": "inference", "warmup": "memory", "readAhead": "64MiB", "uid": "7"}
OLD_NAMES = {"url", "uid", "warmup"}


@pytest.mark.promise("S546")
def test_the_record_of_a_mount_has_no_parameter_that_the_version_before_would_refuse(tmp_path: Path) -> None:
    record = MountRecord("m-0123456789abcdef", "volume-1", "/a", NEW, "snapshot")
    MountRecords(tmp_path).save(record)
    stored = json.loads((tmp_path / "mounts" / "m-0123456789abcdef.json").read_text())
    assert stored["attributes"] == {"url": "s3://bucket/model/", "warmup": "wait", "uid": "7"}
    assert list(MountRecords(tmp_path).load()) == [record]


@pytest.mark.promise("S546")
def test_the_record_of_a_volume_has_no_parameter_that_the_version_before_would_refuse() -> None:
    record = VolumeRecord(
        volume_id="volume-1",
        name="volume-1",
        dynamic=True,
        parameters=NEW,
        snapshot_id="snapshot",
        total_bytes=1,
        file_count=1,
        created=datetime(2026, 11, 29, tzinfo=UTC),
        modified={"warmup": "memory", "warmupTrace": "start.arrow"},
    )
    stored = json.loads(record.model_dump_json())
    assert stored["parameters"] == {"url": "s3://bucket/model/", "warmup": "wait", "uid": "7"}
    assert stored["modified"] == {"warmup": "wait"}
    assert VolumeRecord.model_validate(stored) == record
    assert record.parsed().read_ahead_bytes == 64 * MIB
    plain = record.model_copy(update={"parameters": {"url": "s3://b/c/"}, "modified": {}})
    assert not [name for name in json.loads(plain.model_dump_json()) if name.endswith("_since")]


@pytest.mark.promise("S546")
def test_the_record_of_a_warmup_has_its_new_fields_where_the_version_before_ignores_them(tmp_path: Path) -> None:
    request = WarmupRequest("volume-1", (), 0, 4, into_memory=True, trace="start.arrow")
    ended = WarmupReport("volume-1", WarmupState.COMPLETE, done_bytes=5, memory_bytes=4, hot_bytes=3)
    WarmupRecord(request, ended).save(tmp_path / "warmup")
    stored = json.loads((tmp_path / "warmup").read_text())
    before = {"state", "message", "total_bytes", "total_files", "done_bytes", "done_files", "failed_files"}
    assert stored["ended"].keys() == before
    assert WarmupRecord.load(tmp_path / "warmup") == WarmupRecord(request, ended)
