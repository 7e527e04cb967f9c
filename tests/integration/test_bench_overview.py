"""A run at a glance: the table, the sentences and the picture; tables in Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hayloft_bench.demo.preset import failures
from hayloft_bench.errors import ResultsError
from hayloft_bench.report import markdown
from hayloft_bench.report.overview import overview_captions, overview_picture, overview_table
from hayloft_bench.report.plot_style import png
from hayloft_bench.results import files
from hayloft_bench.results.model import Measurement, Phase, Results
from tests.support.bench_results import measurement, results_of

REPOSITORY = Path(__file__).parents[2]
SPEEDS = {"plain": 1000, "hayloft": 900, "boto3": 100, "s3fs": 50}
WORKLOADS = ("imagenet", "webdataset", "parquet")


def _row(workload: str, target: str, phase: Phase, epoch: int) -> Measurement:
    from_store = target != "plain" and phase == "cold"
    return replace(
        measurement("hayloft", phase=phase, epoch=epoch),
        workload=workload,
        target=target,
        bytes=1_000_000,
        samples=10,
        seconds=(2 if phase == "cold" else 1) / SPEEDS[target],
        bytes_per_s=SPEEDS[target] * 1e6 / (2 if phase == "cold" else 1),
        samples_per_s=SPEEDS[target] * 10 / (2 if phase == "cold" else 1),
        origin_bytes=1_000_000 if from_store else None if target == "plain" else 0,
        read_amplification=1.0 if from_store else None if target == "plain" else 0.0,
    )


@pytest.fixture
def results() -> Results:
    rows = [_row(workload, target, "cold", 1) for workload in WORKLOADS for target in SPEEDS]
    rows += [_row(w, t, "warm", epoch) for w in WORKLOADS for t in ("plain", "hayloft") for epoch in (1, 2)]
    return results_of(rows)


def _text(results: Results) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the console
    console.print(overview_table(results))
    console.file.close()
    return console.export_text()


def test_the_table_has_a_line_for_every_workload_and_target(results: Results) -> None:
    text = _text(results)
    assert text.count("Hayloft") == text.count("plain local files") == text.count("boto3") == len(WORKLOADS)
    assert "0.90" in text


def test_two_sentences_read_the_table(results: Results) -> None:
    store, time = overview_captions(results)
    assert "1.00 bytes from the store for each byte that was read, in the later ones 0.00" in store
    assert "boto3 and s3fs cache nothing and take 1.00 and 1.00 in every epoch" in store
    assert "an epoch of imagenet, webdataset and parquet through Hayloft (auto) takes 3.33 ms" in time
    assert "plain local files 3.00 ms, boto3 60.0 ms, s3fs 120 ms" in time


def test_an_epoch_is_compared_over_the_workloads_that_all_targets_read(results: Results) -> None:
    rows = [row for row in results.measurements if (row.workload, row.target) != ("parquet", "boto3")]
    assert "an epoch of imagenet and webdataset through" in overview_captions(results_of(rows))[1]


def test_a_run_of_one_phase_has_a_table_and_no_sentence_about_later_epochs(results: Results) -> None:
    cold = results_of([row for row in results.measurements if row.phase == "cold"])
    assert overview_captions(cold) == []
    assert "warm" not in _text(cold)


def test_the_picture_is_a_png_of_a_readable_size(results: Results) -> None:
    content = png(overview_picture(results))
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") >= 1200


def test_a_figure_that_does_not_count_fails_the_demonstration_unless_a_client_cannot_read_the_workload(
    results: Results,
) -> None:
    assert failures(results) == []
    wrong = replace(_row("imagenet", "hayloft", "warm", 1), valid=False, reason="wrong bytes: a")
    no_loader = replace(_row("parquet", "boto3", "cold", 1), valid=False, reason="parquet has no loader")
    assert failures(results_of([wrong, wrong, no_loader])) == ["imagenet, hayloft, warm: wrong bytes: a"]


def test_a_markdown_table_has_a_row_per_workload_and_phase_and_a_dash_where_nothing_was_measured(
    results: Results,
) -> None:
    lines = markdown.table(results, "MB/s").splitlines()
    assert lines[0] == "| workload | phase | plain local files | Hayloft (auto) | boto3 | s3fs |"
    assert lines[2] == "| imagenet | cold | 500 | 450 | 50.0 | 25.0 |"
    assert lines[3] == "|  | warm | 1,000 | 900 | – | – |"
    assert len(lines) == 2 + 2 * len(WORKLOADS)


def test_the_tables_of_the_performance_page_are_those_of_the_kept_runs() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text()
    commands = re.findall(r'<!-- hayloft bench report (\S+) --table "(.+?)"(?: --phases (\S+))? -->\n', page)
    assert commands
    for run, measure, phases in commands:
        found = files.read(REPOSITORY / run)
        if phases:
            found = replace(found, measurements=tuple(row for row in found.measurements if row.phase in phases))
        assert markdown.table(found, measure) in page, f'hayloft bench report {run} --table "{measure}" has changed'


def test_targets_without_a_figure_have_no_column_and_an_unknown_measure_is_refused(results: Results) -> None:
    assert "plain" not in markdown.table(results, "origin ÷ need")
    with pytest.raises(ResultsError, match="--table speed: there are MB/s"):
        markdown.table(results, "speed")
    with pytest.raises(ResultsError, match="--table tenants: the workload tenants is not in this run"):
        markdown.table(results, "tenants")
