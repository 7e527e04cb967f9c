"""The identity of a rank, and the merged results of several ranks. The processes are tested in tests/integration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hayloft_bench.distributed.gang import PORT, Gang, Rank, join
from hayloft_bench.distributed.merged_view import combined_cases
from hayloft_bench.errors import RankError
from hayloft_bench.report.tables import as_text, results_table
from hayloft_bench.results.merging import merge, pooled
from hayloft_bench.results.model import ALL_RANKS, Measurement, Results, Sizes
from hayloft_bench.results.row_selection import Case, cases, middle
from tests.support.bench_results import measurement, results_of

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "run-7",
}
JOB = {"JOB_COMPLETION_INDEX": "2", "HAYLOFT_BENCH_RANKS": "8", "HAYLOFT_BENCH_ADDRESS": "bench-0.bench"}


def test_the_rank_comes_from_the_environment_of_torchrun_and_uses_the_next_port() -> None:
    assert Rank.from_environment(TORCHRUN) == Rank(3, 4, 1, "node-0", 29501, "run-7")


def test_the_rank_comes_from_the_environment_of_an_indexed_job() -> None:
    given = JOB | {"HAYLOFT_BENCH_PORT": "4000", "HAYLOFT_BENCH_TOKEN": "word"}
    assert Rank.from_environment(given) == Rank(2, 8, 0, "bench-0.bench", 4000, "word")
    assert Rank.from_environment(JOB).port == PORT


@pytest.mark.parametrize("given", [{}, {"JOB_COMPLETION_INDEX": "0"}, {"HAYLOFT_BENCH_RANKS": "4"}])
def test_without_variables_a_process_is_rank_0_of_1(given: dict[str, str]) -> None:
    assert Rank.from_environment(given) == Rank()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**TORCHRUN, "RANK": "4"}, "RANK: '4' is not a whole number from 0 to 3"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK: '-1' is not a whole number"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE: 'many' is not a whole number"),
        ({key: one for key, one in TORCHRUN.items() if key != "MASTER_PORT"}, "MASTER_PORT is not set"),
        ({key: one for key, one in TORCHRUN.items() if key != "MASTER_ADDR"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE is not set"),
        ({**JOB, "HAYLOFT_BENCH_ADDRESS": ""}, "HAYLOFT_BENCH_ADDRESS is not set"),
        ({**JOB, "JOB_COMPLETION_INDEX": "8"}, "JOB_COMPLETION_INDEX: '8' is not a whole number from 0 to 7"),
        ({**JOB, "HAYLOFT_BENCH_PORT": "70000"}, "HAYLOFT_BENCH_PORT: '70000'"),
    ],
)
def test_a_wrong_environment_names_the_variable(given: dict[str, str], message: str) -> None:
    with pytest.raises(RankError) as caught:
        Rank.from_environment(given)
    assert str(caught.value).startswith(message)


def test_the_token_is_not_shown() -> None:
    assert "run-7" not in repr(Rank.from_environment(TORCHRUN))


def test_a_single_rank_connects_to_no_other() -> None:
    with join(Rank(), agreed={}) as gang:
        assert isinstance(gang, Gang)
        assert gang.barrier("start") == {}
        assert gang.barrier("start", obstacle="no disk") == {0: "no disk"}
        results = results_of([measurement()])
        assert gang.gather(results) is results


def rank_results(*rows: Measurement) -> Results:
    return results_of(list(rows))


def total(results: Results) -> Measurement:
    (row,) = (row for row in results.measurements if row.rank == ALL_RANKS)
    return row


def test_bytes_are_summed_and_the_slowest_sets_the_time() -> None:
    slow = replace(measurement(samples_per_s=500.0), first_batch_s=9.0)
    merged = merge([rank_results(measurement(samples_per_s=1000.0)), rank_results(slow)])
    row = total(merged)
    assert row.seconds == slow.seconds
    assert row.bytes == 2 * (slow.bytes or 0)
    assert row.samples_per_s == pytest.approx(1000.0)
    assert row.first_batch_s == 9.0
    assert row.readers == 8
    assert row.cpu_s_per_gb == pytest.approx(slow.cpu_s_per_gb)
    assert row.batch_p99_s is None


def test_the_amplification_of_the_sum_is_weighted_by_needed_bytes() -> None:
    one = replace(measurement(), origin_bytes=100, read_amplification=1.0, bytes=100)
    other = replace(measurement(), origin_bytes=600, read_amplification=2.0, bytes=300)
    row = total(merge([rank_results(one), rank_results(other)]))
    assert row.read_amplification == pytest.approx(700 / 400)
    assert row.hit_ratio == 0.0


def test_tables_show_the_sum_of_the_ranks() -> None:
    merged = merge([rank_results(measurement(samples_per_s=1000.0))] * 2)
    assert middle(cases(merged)[Case("imagenet", "hayloft", "hot")], "speed") == pytest.approx(2000.0)
    assert "2,000" in as_text([results_table(merged)])
    assert "Many ranks" in as_text([results_table(merged)])


def test_a_rank_without_the_figure_makes_the_sum_invalid() -> None:
    both, only = measurement(), measurement(phase="warm")
    merged = merge([rank_results(both, only), rank_results(both)])
    sums = {row.phase: row for row in merged.measurements if row.rank == ALL_RANKS}
    assert sums["hot"].valid
    assert not sums["warm"].valid
    assert sums["warm"].reason == "no figure from rank 1"


def test_an_invalid_rank_and_another_dataset_make_the_sum_invalid() -> None:
    broken = replace(measurement(), valid=False, reason="not cold")
    assert total(merge([rank_results(measurement()), rank_results(broken)])).reason == "rank 1: not cold"
    other = replace(measurement(), dataset_id="another")
    assert "different datasets" in total(merge([rank_results(measurement()), rank_results(other)])).reason


def test_a_figure_that_one_rank_lacks_is_not_summed() -> None:
    lacks = replace(measurement(), origin_bytes=None)
    assert total(merge([rank_results(measurement()), rank_results(lacks)])).origin_bytes is None


def test_ranks_of_other_scales_are_refused() -> None:
    other = replace(rank_results(measurement()), sizes=Sizes(scale=1.0, seed=1))
    with pytest.raises(RankError, match="rank 1 has another scale or seed"):
        merge([rank_results(measurement()), other])


def test_pooled_quantiles_weigh_ranks_by_their_samples() -> None:
    fast = replace(measurement(), sample_latencies_s=(1.0,) * 50, samples=900)
    slow = replace(measurement(), sample_latencies_s=(2.0,) * 50, samples=100)
    values = pooled([fast, slow])
    assert values.count(1.0) / len(values) == pytest.approx(0.9, abs=0.02)
    assert pooled([replace(fast, sample_latencies_s=())]) == ()


def test_stragglers_and_other_machines_are_noted_and_common_notes_stay_single() -> None:
    slow = replace(measurement(samples_per_s=100.0))
    given = [rank_results(measurement(samples_per_s=1000.0))] * 2 + [rank_results(slow)]
    given[1] = replace(given[1], machine=replace(given[1].machine, kernel="other"), notes=(*given[1].notes, "alone"))
    notes = merge(given).notes
    assert notes.count("These figures are made up for a test.") == 1
    assert "Rank 1: alone" in notes
    assert "Rank 1 ran on another machine than rank 0, with another kernel." in notes
    assert any("rank 2 was the slowest" in note for note in notes)


def test_shares_are_of_the_bytes() -> None:
    rows = [replace(measurement(), bytes=amount) for amount in (100, 300)]
    (one,) = combined_cases(merge([rank_results(row) for row in rows]))
    assert one.shares == {0: 0.25, 1: 0.75}
    assert one.ranks == 2
    assert one.straggling == 1.0


def test_an_epoch_that_one_rank_lacks_gives_no_combined_case() -> None:
    broken = replace(measurement(), valid=False, reason="not cold")
    assert combined_cases(merge([rank_results(measurement()), rank_results(broken)])) == []


def test_results_of_one_rank_are_not_changed() -> None:
    results = rank_results(measurement())
    assert merge([results]) is results
