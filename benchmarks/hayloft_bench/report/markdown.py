"""Tables for documents, in Markdown: a row per workload and phase, a column per target."""

from __future__ import annotations

from collections.abc import Callable

from hayloft_bench.errors import ResultsError
from hayloft_bench.report import number_format as wording
from hayloft_bench.report.captions import title
from hayloft_bench.report.tenants_table import HEADS, NUMBERS, tenant_lines
from hayloft_bench.results.model import Measurement, Results
from hayloft_bench.results.noise import ratio_to_best_peer, ratio_to_limit
from hayloft_bench.results.row_selection import Case, cases, middle, phases_of, targets_of, workloads_of

Figure = Callable[[Results, Case, list[Measurement]], float | None]


def _median(measure: str) -> Figure:
    return lambda results, case, rows: middle(rows, measure)


MEASURES: dict[str, tuple[Figure, Callable[[float | None], str]]] = {
    "MB/s": (lambda results, case, rows: (middle(rows, "bytes_per_s") or 0.0) / 1e6 or None, wording.significant),
    "samples/s": (_median("samples_per_s"), wording.significant),
    "p99": (_median("sample_p99_s"), wording.seconds),
    "CPU s/GB": (_median("cpu_s_per_gb"), wording.significant),
    "origin ÷ need": (_median("read_amplification"), wording.significant),
    "hit ratio": (_median("hit_ratio"), wording.significant),
    "÷ limit": (lambda results, case, rows: ratio_to_limit(results, case), wording.significant),
    "÷ best peer": (lambda results, case, rows: ratio_to_best_peer(results, case), wording.significant),
}
"""Medians over the repetitions; ratios are taken within each repetition. Without bytes there are no MB/s."""


TENANTS = "tenants"
TABLES = (*MEASURES, TENANTS)
"""What ``--table`` may name: a measure, or the workload that has a table of its own."""


def table(results: Results, measure: str) -> str:
    """Rows and columns without any figure are left out. Raises ResultsError for an unknown measure, and for a run
    without the workload that has a table of its own."""
    if measure == TENANTS:
        return _tenants(results)
    if measure not in MEASURES:
        raise ResultsError(f"--table {measure}: there are {', '.join(TABLES)}")
    figure, shown = MEASURES[measure]
    values = {case: figure(results, case, rows) for case, rows in cases(results).items()}
    targets = [
        name for name in targets_of(results) if any(values[case] is not None for case in values if case.target == name)
    ]
    lines = [
        f"| workload | phase | {' | '.join(title(results, name) for name in targets)} |",
        f"|---|---|{'---|' * len(targets)}",
    ]
    for workload in workloads_of(results):
        heading = workload
        for phase in phases_of(results, workload):
            row = [values.get(Case(workload, name, phase)) for name in targets]
            if any(value is not None for value in row):
                lines.append(f"| {heading} | {phase} | {' | '.join(shown(value) for value in row)} |")
                heading = ""
    return "\n".join(lines) + "\n"


def _tenants(results: Results) -> str:
    lines = tenant_lines(results)
    if not lines:
        raise ResultsError(f"--table {TENANTS}: the workload {TENANTS} is not in this run")
    rules = ["---:" if number in NUMBERS else "---" for number in range(len(HEADS))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (HEADS, rules, *lines))
