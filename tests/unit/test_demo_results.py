"""Rows, the table and the picture of the demonstration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from hayloft_bench.demo.crew import Reading
from hayloft_bench.demo.picture import draw
from hayloft_bench.demo.results import Results, Row
from hayloft_bench.demo.table import TARGETS, results_table, sentences
from hayloft_bench.demo.workloads import WORKLOADS

SPEEDS = {"local": 1000, "hayloft": 900, "boto3": 100, "s3fs": 50}


def _row(workload: str, target: str, epoch: int) -> Row:
    slow = 2 if epoch == 1 else 1
    origin = 0 if target == "local" or (target == "hayloft" and epoch > 1) else 1_000_000
    reading = Reading(1_000_000, 10, slow / SPEEDS[target], (0.001, 0.002, 0.004))
    return Row.of(workload, target, epoch, reading, origin)


@pytest.fixture
def results() -> Results:
    return Results([_row(w, t, e) for e in (1, 2, 3) for w in WORKLOADS for t in TARGETS])


def test_rows_have_exactly_the_promised_fields(results: Results, tmp_path: Path) -> None:
    results.write_json(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    fields = ["workload", "target", "epoch", "phase", "bytes", "samples", "seconds", "p50_ms", "p99_ms", "origin_bytes"]
    assert len(rows) == len(WORKLOADS) * len(TARGETS) * 3
    assert all(list(row) == fields for row in rows)


def test_the_first_epoch_is_cold_and_the_others_are_warm() -> None:
    assert [_row("tar", "local", epoch).phase for epoch in (1, 2, 3)] == ["cold", "warm", "warm"]


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    reading = Reading(1, 100, 1.0, tuple(number / 1000 for number in range(100, 0, -1)))
    assert [reading.percentile_ms(percent) for percent in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert Reading(0, 0, 0.0, ()).percentile_ms(99) == 0.0


def test_speeds_are_medians_and_compare_within_a_phase(results: Results) -> None:
    assert results.times("images", "hayloft", "warm", "local") == pytest.approx(0.9, rel=1e-3)
    assert results.times("images", "hayloft", "cold", "boto3") == pytest.approx(9.0, rel=1e-3)
    assert results.times("images", "hayloft", "warm", "nobody") == 0.0


def test_the_share_of_the_store_is_per_byte_read(results: Results) -> None:
    assert results.origin_share("hayloft", "cold") == 1.0
    assert results.origin_share("hayloft", "warm") == 0.0
    assert results.origin_share("s3fs", "warm") == 1.0


def test_an_epoch_takes_the_time_of_all_its_workloads(results: Results) -> None:
    assert results.seconds("boto3", "warm") == pytest.approx(len(WORKLOADS) / 100)


def test_the_table_has_a_line_for_every_workload_and_target(results: Results) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the console
    console.print(results_table(results))
    text = console.export_text()
    console.file.close()
    assert text.count("Hayloft") == text.count("local files") == len(WORKLOADS)
    assert "0.90" in text


def test_two_sentences_read_the_table(results: Results) -> None:
    cold, warm = sentences(results)
    assert "1.00 bytes from the store" in cold
    assert "9 times as fast as by boto3" in warm


def test_the_picture_is_a_png_of_a_readable_size(results: Results, tmp_path: Path) -> None:
    draw(results, tmp_path / "results.png")
    content = (tmp_path / "results.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") >= 1200
