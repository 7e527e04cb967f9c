"""The table of the workload ``tenants``: a line for each attack and size of file."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hayloft_bench.report import number_format as wording
from hayloft_bench.results.model import Results
from hayloft_bench.results.tenants import MOST_MOUNT_S, MOST_TIMES_ALONE, READ_PARTS, Case, Figure, tenant_cases

HEADS = ("attack", "files", "cold p99", "× alone", "cached p99", "× alone", "mount", "unmount", "")
TITLE = f"tenants: reads ≤ {MOST_TIMES_ALONE:g} × alone, a mount and an unmount ≤ {MOST_MOUNT_S:g} s"


def tenant_lines(results: Results) -> list[list[str]]:
    """The cells below ``HEADS``; empty if the workload was not run. ≥: a measurement was ended before its work was."""
    return [line for case in tenant_cases(results) for line in _lines(case)]


def tenants_table(results: Results) -> Table | None:
    lines = tenant_lines(results)
    if not lines:
        return None
    table = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in HEADS:
        table.add_column(name, justify="left" if name in ("attack", "files", "") else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def _lines(case: Case) -> list[list[str]]:
    lines = []
    for part in READ_PARTS:
        cells = ["", part]
        for phase in ("cold", "hot"):
            cells.append(_seconds(case.p99_s.get((part, phase))))
            cells.append(wording.times(case.times_alone.get((part, phase))))
        lines.append([*cells, "", "", ""])
    lines[0][0] = case.attack
    verdict = {None: "", True: "holds", False: "misses"}[case.holds]
    lines[0][-3:] = [_seconds(case.mount_s), _seconds(case.unmount_s), verdict]
    return lines


def _seconds(figure: Figure | None) -> str:
    if figure is None:
        return wording.NOTHING
    return f"{'≥ ' if figure.at_least else ''}{wording.seconds(figure.value)}"
