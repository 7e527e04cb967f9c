"""What the commands for a node print: tables that fit the terminal, and JSON whose fields stay."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from csi_driver.cli import text_tables
from csi_driver.cli.doctor_command import doctor_document, doctor_lines
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.node_commands import directory_lines, verify_document, verify_lines
from csi_driver.cli.status_text import status_lines, volume_lines
from csi_driver.cli.text_tables import Column, duration, middle_left_out, percent, table
from csi_driver.cli.top_command import top_lines
from csi_driver.model import conditions
from csi_driver.model.visible_text import visible
from csi_driver.volumes.status_documents import (
    Rates,
    all_conditions,
    directory_document,
    status_document,
    volume_document,
)
from csi_driver.volumes.volume_ids import readable_part
from csi_driver.wiring.reader_rates import top_document
from tools import command_examples as examples

WIDTHS = (60, 80, 120, 200)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "100%"),
        (0, 10, "0%"),
        (10, 10, "100%"),
        (1, 10_000_000, "<0.1%"),
        (9_999_999, 10_000_000, "99.9%"),
        (1, 3, "33.3%"),
    ],
)
@pytest.mark.promise("S581")
def test_a_share_is_all_or_nothing_only_if_it_is(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_durations_have_two_units() -> None:
    assert [duration(value) for value in (0.4, 59, 61, 3600, 11_530, 90_061)] == [
        *("0 s", "59 s", "1 min 1 s", "1 h 0 min", "3 h 12 min", "1 d 1 h")
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.promise("S581")
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    blocks = [
        status_lines(examples.STATUS, examples.RATES, width),
        volume_lines(examples.STATUS.volumes, width),
        directory_lines(examples.DIRECTORY, width),
        doctor_lines(examples.DOCTOR, width),
        top_lines(examples.USE, width),
    ]
    if width == 60:  # the columns of numbers alone take more
        blocks = [blocks[0], blocks[2], blocks[3]]
    for lines in blocks:
        assert [line for line in lines if len(line) > width] == []


@pytest.mark.promise("S581")
def test_without_a_terminal_nothing_is_shortened() -> None:
    text = "\n".join(volume_lines(examples.STATUS.volumes, 0))
    for one in examples.STATUS.volumes:
        assert readable_part(one.volume.volume_id) in text
        assert one.url in text
    assert "…" not in text


def test_a_name_loses_its_middle_and_keeps_its_ends() -> None:
    assert middle_left_out("pvc-5d0c9a5e-7a0c", 9) == "pvc-…7a0c"
    assert middle_left_out("short", 9) == "short"


def test_a_column_that_is_left_out_gives_its_place_to_the_others() -> None:
    columns = (Column("A", shortened=True), Column("B", optional=1))
    assert table(columns, [("x" * 20, "y" * 30)], 25) == ["A", "x" * 20]
    assert table(columns, [("x" * 20, "y" * 30)], 52)[1] == "x" * 20 + "  " + "y" * 30


@pytest.mark.promise("S581")
def test_no_name_controls_the_terminal() -> None:
    assert visible(b"a\x1b[2Jb\n\xff") == "a\\x1b[2Jb\\n\\xff"


@pytest.mark.promise("S582")
def test_a_status_says_what_is_wrong_and_what_to_do() -> None:
    text = "\n".join(status_lines(examples.STATUS, examples.RATES, 0))
    condition = conditions.OBJECTS_CHANGED
    assert f"tokens: {condition.message} ({condition.reason})" in text
    assert "1 condition, the worst: data loss" in text
    assert "a request of tokens to https://s3.amazonaws.com waits for 4 s" in text
    assert "97.5% of 2.3 TiB opened; 60.0 GiB fetched for readers" in text


@pytest.mark.promise("S582")
def test_a_condition_of_the_node_is_not_repeated_for_its_volumes() -> None:
    full = conditions.CACHE_DISK_FULL
    volume = dataclasses.replace(examples.IMAGENET.volume, conditions=(full,))
    one = dataclasses.replace(examples.IMAGENET, volume=volume)
    status = dataclasses.replace(examples.STATUS, conditions=(full,), volumes=(one,))
    assert all_conditions(status) == [("", full)]


def test_a_daemon_that_was_replaced_has_no_rates() -> None:
    report = dataclasses.replace(examples.STATUS.report, process_id=1, origin_bytes=5)
    after = dataclasses.replace(examples.STATUS, report=report)
    assert Rates.between(examples.STATUS, after, 2.0) == Rates(2.0, 0.0, 0.0, 0.0)


def test_rates_are_differences_by_time() -> None:
    report = dataclasses.replace(examples.STATUS.report, origin_bytes=examples.STATUS.report.origin_bytes + 100)
    after = dataclasses.replace(examples.STATUS, report=report, opened_bytes=examples.STATUS.opened_bytes + 50)
    assert Rates.between(examples.STATUS, after, 2.0) == Rates(2.0, 50.0, 0.0, 25.0)


def test_a_volume_that_is_not_counted_yet_has_no_share() -> None:
    one = dataclasses.replace(examples.IMAGENET, counted=False)
    assert "counting" in volume_lines([one], 0)[1]
    assert volume_document(one)["cached_bytes"] is None


def keys_of(document: Any, prefix: str = "") -> set[str]:
    """The names of all fields; of the first element of a list."""
    found: set[str] = set()
    if isinstance(document, dict):
        for key, value in document.items():
            found |= {f"{prefix}{key}"} | keys_of(value, f"{prefix}{key}.")
    elif isinstance(document, list) and document:
        found |= keys_of(document[0], prefix)
    return found


VOLUME_FIELDS = {
    *("volume_id", "namespace", "inline", "url", "endpoint", "mount_point", "device", "snapshot_id", "files"),
    *("total_bytes", "cached_bytes", "reserved_bytes", "pinned", "passthrough", "store_wait_s", "warmup"),
    *("conditions", "notes", "warmup.state", "warmup.done_bytes", "warmup.total_bytes", "warmup.eta_s"),
}


@pytest.mark.promise("S583")
def test_the_fields_of_the_json_stay() -> None:
    status = keys_of(status_document(examples.STATUS, examples.RATES))
    assert {
        *("healthy", "daemon.version", "daemon.process_id", "daemon.uptime_s", "cache.directory", "cache.file_system"),
        *("reads.opened_bytes", "reads.fetched_for_readers_bytes", "reads.hit_ratio", "rates.fetched_bytes"),
        *("rates.requests", "rates.opened_bytes", "rates.span_s", "counters.origin_bytes", "counters.origin_requests"),
        *("counters.cache_used_bytes", "counters.cache_limit_bytes", "counters.cache_free_bytes", "conditions"),
        *(f"volumes.{name}" for name in VOLUME_FIELDS),
    } <= status
    assert keys_of(directory_document("v", "/a/", examples.DIRECTORY)) == {
        *("volume_id", "path", "total_bytes", "cached_bytes", "files", "entries", "entries.name", "entries.type"),
        *("entries.files", "entries.total_bytes", "entries.cached_bytes"),
    }
    assert keys_of(verify_document("v", "", examples.VERIFY_TOTALS, examples.FINDINGS)) == {
        *("volume_id", "path", "checked_bytes", "checked_files", "compared_files", "findings", "findings.path"),
        *("findings.kind", "findings.bad_chunks", "findings.detail"),
    }
    assert keys_of(doctor_document(examples.DOCTOR)) == {
        *("problems", "warnings", "results", "results.check", "results.level", "results.text", "results.remedy")
    }
    assert {
        *("span_s", "fetched_bytes_per_s", "requests_per_s", "volumes.volume_id", "volumes.open_passed_through"),
        *("volumes.open_served", "volumes.without_opens", "volumes.cached_bytes_per_s", "processes.process_id"),
        *("processes.pod", "processes.command", "processes.passed_through_bytes_per_s", "note"),
        *("processes.served_bytes_per_s", "processes.process_read_bytes_per_s", "processes.volume_id"),
    } <= keys_of(top_document(examples.USE))


@pytest.mark.promise("S583")
def test_every_document_is_json() -> None:
    odd = [(dataclasses.replace(examples.DIRECTORY[0][0], name=b"\xff"), 3)]
    for document in (
        status_document(examples.STATUS, None),
        directory_document("v", "", odd),
        verify_document("v", "", examples.VERIFY_TOTALS, examples.FINDINGS),
        top_document(examples.USE),
    ):
        text = json.dumps(document)
        assert json.dumps(json.loads(text)) == text


def test_totals_of_a_directory_are_those_of_its_entries() -> None:
    document = directory_document("v", "", examples.DIRECTORY)
    assert document["total_bytes"] == sum(entry["total_bytes"] for entry in document["entries"])
    assert document["files"] == 1_281_168
    assert directory_lines(examples.DIRECTORY, 0)[-1].endswith("total of 1,281,168 files")


def test_findings_are_lines_that_name_file_and_kind() -> None:
    lines = verify_lines("tokens", examples.VERIFY_TOTALS, examples.FINDINGS, origin=True)
    assert lines[0].startswith("damaged: shards/00017.bin (1 of its chunks")
    assert lines[1].startswith("changed: shards/00018.bin (another ETag")
    assert lines[-1].endswith("1,024 files compared with the store: 2 findings")


@pytest.mark.promise("S580")
def test_exit_codes_are_never_renumbered() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "SUCCESS": 0,
        "FAILED": 1,
        "WRONG_USAGE": 2,
        "NO_DAEMON": 3,
        "SILENT_DAEMON": 4,
        "OUTDATED_DAEMON": 5,
        "FINDINGS": 6,
    }
    assert all(code.meaning for code in ExitCode)


def test_the_width_of_a_pipe_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert text_tables.terminal_width() == 0
    monkeypatch.setenv("COLUMNS", "97")
    assert text_tables.terminal_width() == 97
