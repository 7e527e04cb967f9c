"""Medians, spreads, paired ratios, and when a run is too noisy to say anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hayloft_bench.results import noise
from hayloft_bench.results.model import ALL_RANKS, Measurement
from hayloft_bench.results.row_selection import Case, cases, hayloft_of, middle, targets_of
from tests.support.bench_results import emulated, made_up, measurement, results_of

HOT = Case("imagenet", "hayloft", "hot")


def rows(*speeds: float, target: str = "hayloft", first: int = 0) -> list[Measurement]:
    return [measurement(target, repetition=first + number, samples_per_s=speed) for number, speed in enumerate(speeds)]


def test_a_spread_knows_median_and_quartiles() -> None:
    spread = noise.Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (spread.median, spread.lower, spread.upper) == (3.0, 2.0, 4.0)
    assert (spread.least, spread.most, spread.count) == (1.0, 5.0, 5)
    assert spread.relative == pytest.approx(2 / 3)


def test_repetitions_that_agree_are_steady() -> None:
    assert noise.verdict([100.0, 101.0, 99.0]).is_steady


def test_repetitions_that_disagree_are_noisy_and_say_by_how_much() -> None:
    judged = noise.verdict([100.0, 150.0, 70.0])
    assert judged.kind == "noisy"
    assert judged.reason == "the quartiles of 3 repetitions are apart by 40% of the median, more than 10%"


def test_two_repetitions_are_too_few_even_when_they_agree() -> None:
    judged = noise.verdict([100.0, 100.0])
    assert judged.kind == "too few"
    assert "2 repetitions" in judged.reason
    assert noise.verdict([]).spread is None


def test_drift_of_the_machine_cancels_in_paired_ratios() -> None:
    """The machine gets slower with every repetition: each speed is noisy, their ratio is exact."""
    results = results_of(rows(900, 450, 225) + rows(1000, 500, 250, target="plain"))
    assert noise.case_verdict(results, HOT).kind == "noisy"
    assert noise.paired_ratios(results, HOT, "plain") == pytest.approx([0.9, 0.9, 0.9])
    assert noise.ratio_to_limit(results, HOT) == pytest.approx(0.9)


def test_repetitions_that_one_side_lacks_are_not_paired() -> None:
    results = results_of(rows(900, 800) + rows(1000, 1000, target="plain", first=1))
    assert noise.paired_ratios(results, HOT, "plain") == pytest.approx([0.8])


def test_figures_of_different_datasets_are_not_compared() -> None:
    other = [replace(row, dataset_id="another") for row in rows(1000, target="plain")]
    assert noise.ratio_to_limit(results_of(rows(900) + other), HOT) is None


def test_invalid_rows_and_rows_paced_by_an_accelerator_do_not_count() -> None:
    import random

    broken = replace(measurement(repetition=1, samples_per_s=1.0), valid=False, reason="made up")
    results = results_of([*rows(900), broken, emulated("hayloft", 1, chance=random.Random(1))])
    assert middle(cases(results)[HOT], "speed") == 900


def test_rows_of_single_ranks_do_not_count_beside_the_row_of_all() -> None:
    one, all_of_them = measurement(samples_per_s=10.0), measurement(samples_per_s=19.0)
    several = [replace(one, ranks=2, rank=rank) for rank in (0, 1)] + [replace(all_of_them, ranks=2, rank=ALL_RANKS)]
    assert middle(cases(results_of(several))[HOT], "speed") == 19.0


def test_epochs_of_a_repetition_become_their_median() -> None:
    epochs = [measurement(epoch=epoch, samples_per_s=speed) for epoch, speed in enumerate((10.0, 20.0, 90.0), 1)]
    assert middle(cases(results_of(epochs))[HOT], "speed") == 20.0


def test_the_best_peer_is_the_fastest_mounted_one_and_never_hayloft_or_a_client() -> None:
    results = made_up()
    assert noise.best_peer(results, "imagenet", "hot") == "juicefs"
    assert noise.best_peer(results, "imagenet", "cold") == "juicefs"
    assert noise.ratio_to_best_peer(results, HOT) == pytest.approx(0.98 / 0.25, rel=0.1)
    assert noise.ratio_to_best_peer(results, HOT._replace(target="juicefs")) is None
    assert noise.best_peer(results_of(rows(1.0)), "imagenet", "hot") is None


def test_notes_name_each_noisy_case_and_count_those_with_few_repetitions() -> None:
    results = results_of(rows(100, 200, 300) + rows(50, 51, target="juicefs"))
    assert noise.notes(results) == [
        "Too noisy: imagenet, hayloft, hot: the quartiles of 3 repetitions are apart by 50% of the median, "
        "more than 10%.",
        "1 of 2 cases have fewer than 3 repetitions: how far they vary is not known.",
    ]
    assert noise.notes(results_of(rows(100, 101, 102))) == []


def test_targets_are_ordered_limit_hayloft_peers_clients() -> None:
    assert targets_of(made_up()) == ["plain", "hayloft", "hayloft-fuse", "juicefs", "rclone", "obstore"]
    assert hayloft_of(made_up()) == "hayloft"


def test_kinds_are_known_by_name_where_results_do_not_tell() -> None:
    results = replace(made_up(), targets={})
    assert targets_of(results)[:2] == ["plain", "hayloft"]
    assert noise.best_peer(results, "imagenet", "hot") == "juicefs"
