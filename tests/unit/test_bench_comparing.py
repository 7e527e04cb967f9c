"""Two runs are compared, and only what is beyond noise is called a change."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hayloft_bench.errors import NotComparable
from hayloft_bench.report.tables import as_text
from hayloft_bench.results.comparison import changes_table, compare, comparison, judge
from hayloft_bench.results.model import Results, Sizes
from tests.support.bench_results import made_up, measurement, results_of


def kinds(before: Results, after: Results, target: str = "hayloft") -> set[str]:
    return {change.kind for change in compare(before, after) if change.case.target == target}


def test_a_run_compared_with_itself_has_not_changed() -> None:
    results = made_up()
    assert {change.kind for change in compare(results, results)} == {"same"}


def test_a_slower_volume_is_a_regression_and_the_others_are_not() -> None:
    compared = comparison(made_up(seed=1, noise=0.005), made_up(seed=2, noise=0.005, faster=0.8))
    slower = {change.case.target for change in compared.regressions if change.measure == "speed"}
    assert slower == {"hayloft", "hayloft-fuse"}


def test_a_faster_volume_is_better() -> None:
    changes = compare(made_up(seed=1, noise=0.005), made_up(seed=2, noise=0.005, faster=1.3))
    speeds = {change.kind for change in changes if (change.case.target, change.measure) == ("hayloft", "speed")}
    assert speeds == {"better"}


def test_noise_is_not_a_change() -> None:
    """400 pairs of runs from one distribution: the rule cries wolf in at most one of ten."""
    chance = random.Random(5)

    def run(count: int) -> list[float]:
        return [chance.gauss(100, 8) for _ in range(count)]

    for count in (3, 5, 9):
        alarms = sum(judge(run(count), run(count), higher_is_better=True) != "same" for _ in range(400))
        assert alarms <= 40, count


def test_one_bad_moment_does_not_hide_a_change() -> None:
    before = [100.0, 101, 99, 100, 102, 98]
    after = [80.0, 81, 79, 80, 82, 101]
    assert judge(before, after, higher_is_better=True) == "worse"


def test_a_change_below_three_percent_is_none() -> None:
    assert judge([100.0, 100, 100], [98.0, 98, 98], higher_is_better=True) == "same"


def test_more_processor_time_is_worse_and_less_is_better() -> None:
    assert judge([1.0, 1, 1], [2.0, 2, 2], higher_is_better=False) == "worse"
    assert judge([2.0, 2, 2], [1.0, 1, 1], higher_is_better=False) == "better"


def test_two_repetitions_decide_nothing() -> None:
    assert judge([100.0, 100], [50.0, 50], higher_is_better=True) == "unsure"


def test_bytes_from_the_store_where_there_were_none_are_worse() -> None:
    assert judge([0.0, 0, 0], [1.0, 1, 1], higher_is_better=False) == "worse"


def test_different_scales_are_refused() -> None:
    other = replace(made_up(), sizes=Sizes(scale=1.0, seed=1))
    with pytest.raises(NotComparable, match=r"different scales: 0\.01 and 1"):
        compare(made_up(), other)


def test_different_datasets_are_refused_when_nothing_else_is_left() -> None:
    one = results_of([measurement()])
    other = results_of([replace(measurement(), dataset_id="another")])
    with pytest.raises(NotComparable, match="different datasets"):
        compare(one, other)


def test_cases_that_cannot_be_compared_are_named() -> None:
    both, gone = measurement(), measurement("juicefs")
    other = replace(measurement("rclone"), readers=16)
    before = results_of([both, gone, measurement("rclone")])
    compared = comparison(before, results_of([both, other, measurement("obstore", phase="cold")]))
    assert {case.target: reason for case, reason in compared.left_out} == {
        "juicefs": "only in the first run",
        "obstore": "only in the second run",
        "rclone": "different numbers of readers",
    }


def test_runs_without_figures_are_refused() -> None:
    with pytest.raises(NotComparable, match="neither run has a figure"):
        compare(results_of([]), results_of([]))


def test_the_table_names_what_became_worse_first() -> None:
    compared = comparison(made_up(seed=1, noise=0.005), made_up(seed=2, noise=0.005, faster=0.8))
    text = as_text([changes_table(compared, ("A", "B"))])
    assert "Changed beyond noise" in text
    assert "-20" in text or "-19" in text
    assert "worse" in text
    assert f"of {len(compared.changes)} figures changed beyond noise" in text
