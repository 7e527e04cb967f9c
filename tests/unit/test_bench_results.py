"""The files of results: written, read back, and refused when they are something else."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hayloft_bench.errors import ResultsError
from hayloft_bench.results import files
from hayloft_bench.results.model import PHASES, SCHEMA_VERSION, Measurement, Results
from hayloft_bench.results.schema import MEANING, markdown_table, parquet_schema
from tests.architecture.source_tree import REPOSITORY
from tests.support.bench_results import made_up, measurement, results_of

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def rows() -> st.SearchStrategy[Measurement]:
    kinds: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(Measurement):
        kind = str(field.type)
        base = {"int": WHOLE, "float": NUMBERS, "str": WORDS, "bool": st.booleans()}.get(kind.partition(" ")[0], WORDS)
        kinds[field.name] = st.none() | base if kind.endswith("None") else base
    kinds |= {
        "schema": st.just(SCHEMA_VERSION),
        "phase": st.sampled_from(PHASES),
        "sample_latencies_s": st.lists(NUMBERS, max_size=5).map(tuple),
    }
    return st.builds(Measurement, **kinds)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(measured=st.lists(rows(), max_size=4), note=WORDS)
def test_written_results_are_read_back(tmp_path: Path, measured: list[Measurement], note: str) -> None:
    results = replace(results_of(measured), notes=(note,))
    files.write(results, tmp_path)
    assert files.read(tmp_path / files.NAME) == results


def test_a_run_is_one_file_and_read_by_its_directory(tmp_path: Path) -> None:
    results = made_up(repetitions=1)
    assert files.write(results, tmp_path) == tmp_path / files.NAME
    assert [path.name for path in tmp_path.iterdir()] == [files.NAME]
    assert files.read(tmp_path) == results


def test_results_pass_through_json_between_ranks() -> None:
    results = made_up(repetitions=1)
    document = json.loads(json.dumps(files.to_document(results)))
    assert files.from_document(document, "rank 1") == results


def test_parquet_has_one_row_for_each_measurement_and_the_machine_in_its_metadata(tmp_path: Path) -> None:
    results = made_up(repetitions=1)
    files.write(results, tmp_path)
    table = pq.read_table(tmp_path / files.NAME)
    assert table.num_rows == len(results.measurements)
    assert table.schema.metadata is None  # would be in the file a second time, in base64
    around = json.loads(pq.read_metadata(tmp_path / files.NAME).metadata[files.METADATA_KEY])
    assert around["machine"]["kernel"] == "0.0-made-up"
    assert around["machine"]["versions"] == results.machine.versions
    assert around["settings"]["juicefs"] == results.settings["juicefs"]
    assert around["sizes"]["scale"] == 0.01
    assert table.schema.field("seconds").metadata[b"description"].decode() == MEANING["seconds"]


def test_every_field_is_described_in_its_order() -> None:
    assert list(MEANING) == [field.name for field in fields(Measurement)] == parquet_schema().names


def test_the_page_about_the_schema_has_the_generated_table() -> None:
    page = (REPOSITORY / "docs" / "benchmark-results.md").read_text()
    assert markdown_table() in page, "python -m hayloft_bench.results.schema prints what belongs there"


def test_figures_that_are_no_numbers_become_null(tmp_path: Path) -> None:
    files.write(results_of([replace(measurement(), samples_per_s=math.inf, seconds=math.nan)]), tmp_path)
    (row,) = files.read(tmp_path).measurements
    assert row.samples_per_s is None
    assert row.seconds is None


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    results = made_up(repetitions=1)
    files.write(results, tmp_path)
    broken = replace(results, settings={"juicefs": {"x": object()}})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        files.write(broken, tmp_path)
    assert files.read(tmp_path) == results
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.NAME]


def document() -> dict[str, Any]:
    return files.to_document(results_of([measurement()]))


def with_row(**changes: Any) -> dict[str, Any]:
    made = document()
    made["measurements"][0] |= changes
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({**document(), "schema": 7}, "schema 7; this version of hayloft bench reads schema 1"),
        ({"rows": []}, "these are no results of hayloft bench"),
        ([], "these are no results of hayloft bench"),
        ({**document(), "colour": "red"}, "rank 1.colour: this version does not know the field"),
        ({key: one for key, one in document().items() if key != "machine"}, "rank 1.machine: missing"),
        ({**document(), "machine": 3}, "rank 1.machine: an object is expected, not 3"),
        (with_row(epoch="first"), "measurements[0].epoch: int is expected, not 'first'"),
        (with_row(valid=1), "measurements[0].valid: bool is expected, not 1"),
        (with_row(phase="lukewarm"), "measurements[0].phase: one of cold, warm, hot, small-cache, restart"),
        (with_row(schema=2), "measurements[0].schema: 2, not 1"),
        (with_row(sample_latencies_s=3), "measurements[0].sample_latencies_s: a list is expected, not 3"),
    ],
)
def test_another_schema_is_refused_with_the_place(made: Any, said: str) -> None:
    with pytest.raises(ResultsError) as caught:
        files.from_document(made, "rank 1")
    assert said in str(caught.value)
    assert str(caught.value).startswith("rank 1")


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    files.write(made_up(repetitions=1), tmp_path)
    path = tmp_path / files.NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultsError, match="cannot be read"):
        files.read(path)


def test_a_place_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"holds no results\.parquet"):
        files.read(tmp_path)
    with pytest.raises(ResultsError, match="no such file"):
        files.read(tmp_path / "elsewhere")


def test_results_of_a_parquet_file_of_something_else_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ResultsError, match="no results of hayloft bench"):
        files.read(tmp_path / "other.parquet")


def test_results_know_their_rows_as_tuples(tmp_path: Path) -> None:
    files.write(made_up(repetitions=1), tmp_path)
    read: Results = files.read(tmp_path)
    assert isinstance(read.measurements, tuple)
    assert isinstance(read.command, tuple)
