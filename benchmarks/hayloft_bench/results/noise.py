"""How far a figure can be trusted: spreads, ratios within a repetition, and when a run is too noisy.

The rule: a figure is *steady* when it comes from at least ``LEAST_RUNS`` repetitions and the distance between their
quartiles is at most ``WIDEST`` of the median. Ratios are taken within a repetition, in which the two targets were
measured one after the other, so that a slow minute of the machine affects both; the median of those ratios is
reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hayloft_bench.results.model import Phase, Results
from hayloft_bench.results.row_selection import Case, by_repetition, cases, limit_of, middle, of_kind

LEAST_RUNS = 3
"""Of two values that differ, neither can be called the outlier."""
WIDEST = 0.10
"""Quartiles 5 % to either side of the median: as far as the goal "within 5 % of local files" reaches. With a wider
spread that goal could be neither held nor missed."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several repetitions of one figure, in its own unit."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError without a value."""
        ordered = sorted(values)
        if not ordered:
            raise ValueError("a spread needs at least one value")
        lower, upper = ordered[0], ordered[-1]
        if len(ordered) > 1:
            lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(statistics.median(ordered), lower, upper, ordered[0], ordered[-1], len(ordered))

    @property
    def relative(self) -> float:
        """Distance of the quartiles ÷ median; 0 where the median is."""
        return (self.upper - self.lower) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether repetitions agree. ``reason`` is a sentence without a full stop; empty when they do."""

    kind: Literal["steady", "noisy", "too few"]
    spread: Spread | None
    reason: str = ""

    @property
    def is_steady(self) -> bool:
        return self.kind == "steady"


def verdict(values: Sequence[float]) -> Verdict:
    """By the rule at the top of this module."""
    if not values:
        return Verdict("too few", None, "nothing was measured")
    spread = Spread.of(values)
    if spread.count < LEAST_RUNS:
        runs = "1 repetition" if spread.count == 1 else f"{spread.count} repetitions"
        return Verdict("too few", spread, f"{runs}: at least {LEAST_RUNS} are needed to show how far it varies")
    if spread.relative > WIDEST:
        share = f"{spread.relative:.0%} of the median, more than {WIDEST:.0%}"
        return Verdict("noisy", spread, f"the quartiles of {spread.count} repetitions are apart by {share}")
    return Verdict("steady", spread)


def case_verdict(results: Results, case: Case) -> Verdict:
    """Of the speed of one case."""
    return verdict(list(by_repetition(cases(results).get(case, []), "speed").values()))


def noisy_cases(results: Results) -> list[tuple[Case, Verdict]]:
    """Cases whose speed varies too much, or is known from too few repetitions."""
    judged = [
        (case, verdict(list(by_repetition(rows, "speed").values()))) for case, rows in sorted(cases(results).items())
    ]
    return [(case, one) for case, one in judged if not one.is_steady]


def notes(results: Results) -> list[str]:
    """Notes for the reader of a report: one for all cases with too few repetitions, one for each noisy case."""
    found = noisy_cases(results)
    few = [case for case, one in found if one.kind == "too few"]
    found_notes = [
        f"Too noisy: {case.workload}, {case.target}, {case.phase}: {one.reason}."
        for case, one in found
        if one.kind == "noisy"
    ]
    if few:
        found_notes.append(
            f"{len(few)} of {len(cases(results))} cases have fewer than {LEAST_RUNS} repetitions: "
            "how far they vary is not known."
        )
    return found_notes


def paired_ratios(results: Results, case: Case, other: str, measure: str = "speed") -> list[float]:
    """The case's measure ÷ that of another target in the same workload and phase, per repetition that has both on the
    same dataset."""
    grouped = cases(results)
    mine, theirs = grouped.get(case, []), grouped.get(case._replace(target=other), [])
    if {row.dataset_id for row in mine} != {row.dataset_id for row in theirs}:
        return []
    ours, base = by_repetition(mine, measure), by_repetition(theirs, measure)
    return [ours[number] / base[number] for number in ours if base.get(number)]


def ratio(results: Results, case: Case, other: str | None, measure: str = "speed") -> float | None:
    """The median of the paired ratios; None where nothing can be compared."""
    values = paired_ratios(results, case, other, measure) if other is not None else []
    return statistics.median(values) if values else None


def best_peer(results: Results, workload: str, phase: Phase) -> str | None:
    """The fastest mounted target that is not Hayloft; None if none was measured."""
    grouped = cases(results)
    speeds = {
        name: middle(grouped.get(Case(workload, name, phase), []), "speed") or 0.0 for name in of_kind(results, "mount")
    }
    return max((name for name in speeds if speeds[name]), key=lambda name: speeds[name], default=None)


def ratio_to_limit(results: Results, case: Case) -> float | None:
    """Speed ÷ that of plain local files. A cold figure has no limit of that kind: None, unless it was measured."""
    limit = limit_of(results)
    return None if limit is None or case.target == limit else ratio(results, case, limit)


def ratio_to_best_peer(results: Results, case: Case) -> float | None:
    """Speed ÷ that of the best mounted peer in the same workload and phase."""
    peer = best_peer(results, case.workload, case.phase)
    return None if peer in (None, case.target) else ratio(results, case, peer)
