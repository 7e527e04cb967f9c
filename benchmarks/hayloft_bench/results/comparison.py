"""``hayloft bench compare A B``: what changed from one run to another beyond noise.

A change is real when it is at least ``LEAST_CHANGE`` and no repetition of one run lies among those of the other. From
``TRIMMED_FROM`` repetitions on, the highest and the lowest of each run are left out of that comparison, so that one bad
moment of the machine does not hide a change. With fewer than ``noise.LEAST_RUNS`` repetitions nothing is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hayloft_bench.errors import NotComparable
from hayloft_bench.report import number_format
from hayloft_bench.results.model import Measurement, Results
from hayloft_bench.results.noise import LEAST_RUNS, Spread
from hayloft_bench.results.row_selection import Case, by_repetition, cases

LEAST_CHANGE = 0.03
"""Smaller changes of the median are ignored, even when they are real."""
TRIMMED_FROM = 6

HIGHER_IS_BETTER = {
    "speed": True,
    "first_batch_s": False,
    "sample_p99_s": False,
    "cpu_s_per_gb": False,
    "read_amplification": False,
}
"""Measures that are compared."""

Kind = Literal["better", "worse", "same", "unsure"]


@dataclass(frozen=True, slots=True)
class Change:
    """One measure of one case in both runs. ``unsure``: too few repetitions."""

    case: Case
    measure: str
    before: Spread
    after: Spread
    kind: Kind

    @property
    def ratio(self) -> float:
        """After ÷ before; infinite if it was 0."""
        return self.after.median / self.before.median if self.before.median else float("inf")


@dataclass(frozen=True, slots=True)
class Comparison:
    """``left_out``: cases that could not be compared, each with the reason."""

    changes: tuple[Change, ...]
    left_out: tuple[tuple[Case, str], ...]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.kind == "worse"]


def compare(before: Results, after: Results) -> list[Change]:
    """All measures of all cases that both have. Raises NotComparable if nothing can be compared."""
    return list(comparison(before, after).changes)


def comparison(before: Results, after: Results) -> Comparison:
    """As ``compare``, with what was left out. Raises NotComparable."""
    if before.sizes.scale != after.sizes.scale:
        raise NotComparable(
            f"the runs have different scales: {before.sizes.scale:g} and {after.sizes.scale:g}; "
            "run both with the same --scale"
        )
    first, second = cases(before), cases(after)
    changes: list[Change] = []
    left_out: list[tuple[Case, str]] = []
    for case in dict.fromkeys([*first, *second]):
        reason = _obstacle(first.get(case, []), second.get(case, []))
        if reason:
            left_out.append((case, reason))
        else:
            changes += _changes(case, first[case], second[case])
    if not changes:
        raise NotComparable(_nothing(before, after, left_out))
    return Comparison(tuple(changes), tuple(left_out))


def _obstacle(before: Sequence[Measurement], after: Sequence[Measurement]) -> str:
    if not before:
        return "only in the second run"
    if not after:
        return "only in the first run"
    for name, what in (("dataset_id", "datasets"), ("readers", "numbers of readers"), ("ranks", "numbers of ranks")):
        if {getattr(row, name) for row in before} != {getattr(row, name) for row in after}:
            return f"different {what}"
    return ""


def _nothing(before: Results, after: Results, left_out: Sequence[tuple[Case, str]]) -> str:
    reasons = sorted({reason for _, reason in left_out})
    if not reasons:
        return "neither run has a figure that counts"
    return f"nothing can be compared ({before.run_id} and {after.run_id}): {'; '.join(reasons)}"


def _changes(case: Case, before: Sequence[Measurement], after: Sequence[Measurement]) -> list[Change]:
    found = []
    for measure, higher_is_better in HIGHER_IS_BETTER.items():
        old, new = (list(by_repetition(rows, measure).values()) for rows in (before, after))
        if old and new and (any(old) or any(new)):
            kind = judge(old, new, higher_is_better=higher_is_better)
            found.append(Change(case, measure, Spread.of(old), Spread.of(new), kind))
    return found


def judge(before: Sequence[float], after: Sequence[float], *, higher_is_better: bool) -> Kind:
    """By the rule at the top of this module."""
    old, new = Spread.of(before), Spread.of(after)
    if old.median and abs(new.median / old.median - 1) < LEAST_CHANGE:
        return "same"
    if min(old.count, new.count) < LEAST_RUNS:
        return "unsure"
    (low, high), (least, most) = _core(before), _core(after)
    if least <= high and low <= most:
        return "same"
    return "better" if (least > high) == higher_is_better else "worse"


def _core(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    if len(ordered) >= TRIMMED_FROM:
        ordered = ordered[1:-1]
    return ordered[0], ordered[-1]


NAMES = {
    "speed": "samples/s",
    "first_batch_s": "first batch",
    "sample_p99_s": "p99",
    "cpu_s_per_gb": "CPU s/GB",
    "read_amplification": "origin ÷ need",
}


def changes_table(compared: Comparison, names: tuple[str, str]) -> Group:
    """What changed, a line that counts the rest, and what was left out."""
    real = [change for change in compared.changes if change.kind in ("better", "worse")]
    parts: list[RenderableType] = []
    if real:
        table = Table(title="Changed beyond noise", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("workload", "target", "phase", "measure"):
            table.add_column(name)
        for name in (*names, "change"):
            table.add_column(name, justify="right")
        table.add_column("")
        for change in sorted(real, key=lambda one: (one.kind != "worse", one.case, one.measure)):
            style = "red" if change.kind == "worse" else "green"
            figures = [_shown(change.measure, spread) for spread in (change.before, change.after)]
            table.add_row(
                *change.case[:2], change.case.phase, NAMES[change.measure], *figures, _percent(change), change.kind,
                style=style,
            )  # fmt: skip
        parts.append(table)
    counted = {kind: sum(change.kind == kind for change in compared.changes) for kind in ("same", "unsure")}
    parts.append(
        Text(
            f"{len(real)} of {len(compared.changes)} figures changed beyond noise; {counted['same']} did not, "
            f"{counted['unsure']} have fewer than {LEAST_RUNS} repetitions on a side."
        )
    )
    parts += [Text(f"left out: {case.workload}, {case.target}, {case.phase}: {why}") for case, why in compared.left_out]
    return Group(*parts)


def _shown(measure: str, spread: Spread) -> str:
    shown = number_format.seconds if measure.endswith("_s") else number_format.significant
    return f"{shown(spread.median)} ({shown(spread.least)} to {shown(spread.most)})"


def _percent(change: Change) -> str:
    return number_format.NOTHING if change.ratio == float("inf") else f"{(change.ratio - 1) * 100:+.1f} %"
