"""Tables for the terminal: figures, goals, and rows that do not count, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hayloft_bench.distributed.merged_view import ranks_rows
from hayloft_bench.report import number_format as wording
from hayloft_bench.report.tenants_table import tenants_table
from hayloft_bench.results.goals import Goal, goals
from hayloft_bench.results.model import Measurement, Results
from hayloft_bench.results.noise import Verdict, case_verdict, notes, ratio_to_best_peer, ratio_to_limit
from hayloft_bench.results.row_selection import (
    Case,
    cases,
    invalid,
    is_emulated,
    middle,
    phases_of,
    target_facts,
    targets_of,
    whole,
    workload_facts,
    workloads_of,
)

NOISY = "~"
"""Marks figures that vary too much."""

Figure = tuple[str, Callable[[Results, Case, list[Measurement]], str]]


def _median(measure: str, shown: Callable[[float | None], str], factor: float = 1.0) -> Figure:
    def figure(results: Results, case: Case, rows: list[Measurement]) -> str:
        value = middle(rows, measure)
        return shown(None if value is None else value * factor)

    return measure, figure


COLUMNS: dict[str, Figure] = {
    "samples/s": _median("samples_per_s", wording.significant),
    "MB/s": _median("bytes_per_s", lambda value: wording.significant(value or None), 1e-6),
    "p50": _median("sample_p50_s", wording.seconds),
    "p99": _median("sample_p99_s", wording.seconds),
    "first batch": _median("first_batch_s", wording.seconds),
    "CPU s/GB": _median("cpu_s_per_gb", wording.significant),
    "origin ÷ need": _median("read_amplification", lambda value: wording.NOTHING if value is None else f"{value:.2f}"),
    "÷ limit": ("", lambda results, case, rows: wording.times(ratio_to_limit(results, case))),
    "÷ best peer": ("", lambda results, case, rows: wording.times(ratio_to_best_peer(results, case))),
    "money": _median("money_per_epoch", wording.significant),
}
OPTIONAL = ("money", "origin ÷ need", "CPU s/GB", "first batch", "MB/s")
"""Left out of the table when no row has them."""

EXPENDABLE = ("money", "first batch", "p50", "origin ÷ need", "MB/s", "CPU s/GB", "p99")
"""Left out of the table where the terminal is narrow, in this order."""


def results_table(results: Results, width: int | None = None) -> Group:
    """Everything for the terminal: a table per workload, accelerators, goals, what does not count, notes. Columns that
    do not fit into ``width`` characters are left out, the least important ones first."""
    measured = {row.workload for row in results.measurements if not row.attack}
    parts: list[RenderableType] = [
        workload_table(results, workload, width) for workload in workloads_of(results) if workload in measured
    ]
    more = (
        tenants_table(results),
        utilisation_table(results),
        ranks_table(results),
        goals_table(results),
        invalid_table(results),
    )
    parts += [table for table in more if table]
    remarks = [*results.notes, *(note for note in notes(results) if note not in results.notes)]
    parts += [Padding(Text(f"* {remark}"), (0, 1)) for remark in remarks]
    if not any(row.valid for row in results.measurements):
        parts.append(Text("no figure counts"))
    return Group(*parts)


def show(results: Results, console: Console) -> None:
    """Prints them; a console that is no terminal gets a width at which nothing is cut off."""
    console.print(results_table(results, console.width if console.is_terminal else None))


def workload_table(results: Results, workload: str, width: int | None = None) -> Table:
    """Medians over the repetitions: a row per phase and target. ``~`` marks what is too noisy."""
    columns = _fitting(
        [name for name in COLUMNS if name not in OPTIONAL or _has_figures(results, workload, name)],
        max((len(row.target) for row in results.measurements), default=0),
        width,
    )
    table = Table(title=_title(results, workload), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("phase", "target", *columns):
        table.add_column(name, justify="left" if name in ("phase", "target") else "right", no_wrap=True)
    grouped = cases(results)
    for phase in phases_of(results, workload):
        before = ""
        for target in targets_of(results):
            case = Case(workload, target, phase)
            if case not in grouped:
                continue
            rows = grouped[case]
            figures = [COLUMNS[name][1](results, case, rows) for name in columns]
            figures[0] += _mark(case_verdict(results, case))
            shown = "" if phase == before else phase
            table.add_row(shown, target, *figures, style=_style(target_facts(results, target).kind))
            before = phase
        table.add_section()
    return table


def _fitting(columns: list[str], longest: int, width: int | None) -> list[str]:
    """``longest`` is the length of the longest name of a target; phases have up to 11 characters."""
    kept = list(columns)
    for name in EXPENDABLE:
        if width is None or 11 + longest + 6 + sum(max(len(one), 9) + 3 for one in kept) <= width:
            break
        kept = [one for one in kept if one != name]
    return kept


def _has_figures(results: Results, workload: str, name: str) -> bool:
    rows = [row for row in results.measurements if row.workload == workload and row.valid]
    return any(getattr(row, COLUMNS[name][0]) not in (None, 0, 0.0) for row in rows)


def _title(results: Results, workload: str) -> str:
    facts = workload_facts(results, workload)
    rows = [row for row in whole(results.measurements) if row.workload == workload]
    readers = sorted({row.readers for row in rows if row.readers})
    parts = [f"{workload}: {facts.title}" if facts.title != workload else workload]
    if any(row.dataset_bytes for row in rows):
        parts.append(wording.size(max(row.dataset_bytes for row in rows)))
    if readers:
        parts.append(f"{wording.listed([str(number) for number in readers])} readers")
    return ", ".join(parts)


def _mark(judged: Verdict) -> str:
    return f" {NOISY}" if judged.kind == "noisy" else "  "


def _style(kind: str) -> str:
    return {"hayloft": "bold", "limit": "dim"}.get(kind, "")


def utilisation_table(results: Results) -> Table | None:
    """Per workload, target and phase: the most accelerators that stay fed. None if none were emulated."""
    rows = [row for row in whole(results.measurements) if row.valid and is_emulated(row)]
    if not rows:
        return None
    table = Table(title="Emulated accelerators", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("workload", "phase", "target", "accelerator", "fed", "utilisation"):
        table.add_column(name, justify="right" if name in ("fed", "utilisation") else "left")
    for case, curve in utilisation_curves(results).items():
        threshold = workload_facts(results, case.workload).threshold or 0.9
        fed = [count for count, busy in curve if busy >= threshold]
        most = max(fed, default=0)
        busy = dict(curve).get(most)
        name = next(row.accelerator for row in rows if row.workload == case.workload)
        beyond = "at least " if most == max(count for count, _ in curve) else ""
        style = _style(target_facts(results, case.target).kind)
        table.add_row(
            case.workload, case.phase, case.target, name, f"{beyond}{most}", wording.percent(busy), style=style
        )
    return table


def utilisation_curves(results: Results) -> dict[Case, list[tuple[int, float]]]:
    """Per case: numbers of accelerators and the median utilisation with each."""
    grouped: dict[Case, dict[int, list[Measurement]]] = {}
    for row in whole(results.measurements):
        if row.valid and row.accelerators is not None and row.utilisation is not None:
            curve = grouped.setdefault(Case(row.workload, row.target, row.phase), {})
            curve.setdefault(row.accelerators, []).append(row)
    return {
        case: [(count, middle(rows, "utilisation") or 0.0) for count, rows in sorted(curve.items())]
        for case, curve in grouped.items()
    }


def ranks_table(results: Results) -> Table | None:
    """The ranks together. None for a run of one rank."""
    rows = ranks_rows(results)
    if not rows:
        return None
    table = Table(title="Many ranks", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("workload", "target", "phase", "ranks", "MB/s together", "slowest ÷ median", "slowest rank", "shares"):
        table.add_column(name, justify="left" if name in ("workload", "target", "phase", "shares") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def goals_table(results: Results) -> Table | None:
    """Each goal in each case. None where there is nothing to judge."""
    found = [goal for goal in goals(results) if goal.value is not None]
    if not found:
        return None
    table = Table(title="The goals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("goal", "workload", "phase", "against", "wanted", "is", ""):
        table.add_column(name, justify="right" if name in ("wanted", "is") else "left")
    before = ""
    for goal in sorted(found, key=lambda goal: goal.wording):
        table.add_row("" if goal.wording == before else goal.wording, *goal_cells(goal))
        before = goal.wording
    return table


def goal_cells(goal: Goal) -> list[str | Text]:
    """Workload, phase, against, bound, value, outcome."""
    styles = {"holds": "green", "misses": "red", "unsure": "yellow"}
    sign = "≥" if goal.at_least else "≤"
    outcome = Text(goal.outcome or "", style=styles.get(goal.outcome or "", ""))
    value = wording.NOTHING if goal.value is None else f"{goal.value:.3f}"
    return [goal.workload, goal.phase, goal.against, f"{sign} {goal.bound:g}", value, outcome]


def invalid_table(results: Results) -> Table | None:
    """Rows that do not count, and why; each reason once."""
    found: dict[tuple[str, str, str, str], int] = {}
    for row in invalid(results):
        key = (row.workload, row.target, row.phase, row.reason or "no reason was given")
        found[key] = found.get(key, 0) + 1
    if not found:
        return None
    table = Table(title="Does not count", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("workload", "target", "phase", "rows", "why"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for (workload, target, phase, reason), count in found.items():
        table.add_row(workload, target, phase, str(count), Text(reason))
    return table


def as_text(parts: Sequence[RenderableType], width: int = 140) -> str:
    """Without colours, for logs and tests."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()
