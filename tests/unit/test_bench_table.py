"""Tables for the terminal say what the figures say, and mark what does not count."""

from __future__ import annotations

import io
import re
from dataclasses import replace

from rich.console import Console

from hayloft_bench.report import number_format as wording
from hayloft_bench.report.tables import as_text, results_table, show, utilisation_curves
from hayloft_bench.results.goals import Goal, goals
from tests.support.bench_results import made_up, measurement, results_of

RESULTS = made_up()


def line(text: str, *words: str) -> str:
    """The first line that has all the words."""
    return next(one for one in text.splitlines() if all(word in one for word in words))


def test_every_workload_phase_and_target_has_a_row() -> None:
    text = as_text([results_table(RESULTS)])
    for name in ("imagenet", "webdataset", "metadata", "cold", "warm", "hot", "juicefs", "rclone", "obstore", "plain"):
        assert name in text


def test_ratios_are_to_the_limit_and_to_the_best_peer() -> None:
    rows = [
        measurement(name, samples_per_s=speed) for name, speed in (("plain", 1000), ("hayloft", 970), ("rclone", 100))
    ]
    text = as_text([results_table(results_of(rows))])
    assert re.search(r"hayloft .* 0\.97 × +9\.70 ×", text)
    assert re.search(r"rclone .* 0\.10 × +– ", text)


def test_noisy_figures_are_marked() -> None:
    rows = [measurement(repetition=number, samples_per_s=speed) for number, speed in enumerate((100, 300, 500))]
    text = as_text([results_table(results_of(rows))])
    assert "300 ~" in line(text, "hayloft")
    assert "Too noisy: imagenet, hayloft, hot" in text


def test_what_does_not_count_is_listed_with_its_reason() -> None:
    text = as_text([results_table(RESULTS)])
    assert "it ended by itself in the middle of the epoch (made up)" in line(text, "webdataset", "rclone", "warm")


def test_a_workload_without_any_figure_that_counts_is_still_named() -> None:
    rows = [replace(measurement(), valid=False, reason="not cold", samples_per_s=None)]
    text = as_text([results_table(results_of(rows))])
    assert "imagenet" in text
    assert "not cold" in text
    assert "no figure counts" in text
    assert "no figure counts" in as_text([results_table(results_of([]))])


def test_columns_without_figures_are_left_out() -> None:
    text = as_text([results_table(RESULTS)])
    metadata = text[text.index("metadata: ") :]
    assert "MB/s" not in metadata.split("Emulated")[0]


def test_a_narrow_terminal_gets_fewer_columns_and_whole_figures() -> None:
    output = io.StringIO()
    show(RESULTS, Console(file=output, width=80, force_terminal=True, color_system=None))
    tables = output.getvalue().split("Emulated")[0]
    assert "…" not in tables
    assert "÷ best peer" in tables
    assert "first batch" not in tables


def test_accelerators_that_stay_fed_are_counted() -> None:
    curve = dict(utilisation_curves(RESULTS)[next(iter(utilisation_curves(RESULTS)))])
    assert set(curve) == {1, 2, 4, 6, 8}
    text = as_text([results_table(RESULTS)]).split("Emulated accelerators")[1]
    assert re.search(r"hayloft +made-up-gpu +4 +9\d %", text)
    assert re.search(r"rclone +made-up-gpu +0 +– ", text)


def outcomes(results: object = RESULTS) -> dict[tuple[str, str, str], str | None]:
    return {(goal.wording.split()[0], goal.workload, goal.phase): goal.outcome for goal in goals(results)}  # type: ignore[arg-type]


def test_goals_are_judged_in_every_workload_that_they_concern() -> None:
    judged = outcomes()
    assert judged["within", "imagenet", "hot"] == "holds"
    assert judged["3", "imagenet", "hot"] == "holds"
    assert judged["1.5", "webdataset", "cold"] == "holds"
    assert judged["fewest", "imagenet", "hot"] == "holds"
    assert judged["origin", "imagenet", "cold"] == "holds"
    assert ("3", "webdataset", "hot") not in judged
    assert not [key for key in judged if key[1] == "metadata"]


def test_goals_are_missed_by_a_slow_volume() -> None:
    judged = outcomes(made_up(faster=0.5))
    assert judged["within", "imagenet", "hot"] == "misses"
    assert judged["3", "imagenet", "hot"] == "misses"
    assert judged["1.5", "imagenet", "cold"] == "misses"


def test_a_noisy_value_near_its_bound_is_not_judged() -> None:
    goal = Goal("", "imagenet", "hot", "hayloft", "plain", 0.95, True, 0.94, steady=False)
    assert goal.outcome == "unsure"
    assert replace(goal, steady=True).outcome == "misses"
    assert replace(goal, value=0.5).outcome == "misses"
    assert replace(goal, value=None).outcome is None


def test_origin_bytes_above_the_need_miss_their_goal() -> None:
    rows = [replace(row, read_amplification=1.3) if row.phase == "cold" else row for row in RESULTS.measurements]
    assert outcomes(results_of(rows))["origin", "imagenet", "cold"] == "misses"


def test_figures_have_three_digits_and_a_unit_that_fits() -> None:
    assert [wording.significant(value) for value in (12345.6, 98.76, 0.01234, 0, None)] == [
        *("12,346", "98.8", "0.0123", "0", "–"),
    ]
    assert [wording.seconds(value) for value in (1.2, 0.0034, 12e-6, 0.0, None)] == [
        *("1.20 s", "3.40 ms", "12.0 µs", "0 µs", "–"),
    ]
    assert [wording.size(value) for value in (264e6, 1.5e12, 12, None)] == ["264 MB", "1.50 TB", "12 B", "–"]
    assert [wording.times(value) for value in (0.984, 12.34, None)] == ["0.98 ×", "12.3 ×", "–"]
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
