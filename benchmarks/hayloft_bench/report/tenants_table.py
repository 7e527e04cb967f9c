"""The table of the workload ``tenants``: a line for each attack and size of file."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hayloft_bench.report import number_format as wording
from hayloft_bench.results.model import Results
from hayloft_bench.results.tenants import MOST_MOUNT_S, MOST_TIMES_ALONE, READ_PARTS, Case, Figure, tenant_cases

HEADS = (
    *("attack", "files", "cold p99", "× alone", "× control", "cached p99", "× alone", "× control"),
    *("mount", "unmount", "calls/s", "requests/s", ""),
)
NUMBERS = tuple(range(2, 12))
"""The columns that are numbers."""
TITLE = f"tenants: reads ≤ {MOST_TIMES_ALONE:g} × alone, a mount and an unmount ≤ {MOST_MOUNT_S:g} s"
NOTE = (
    "control: the same reads, at the same time, of a daemon on the same machine that is not attacked; "
    "machine: beyond the bound, and within the same multiple of the control"
)


def tenant_lines(results: Results) -> list[list[str]]:
    """The cells below ``HEADS``; empty if the workload was not run. ≥: a measurement was ended before its work was."""
    return [line for case in tenant_cases(results) for line in _lines(case)]


def tenants_table(results: Results) -> Table | None:
    lines = tenant_lines(results)
    if not lines:
        return None
    table = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, caption=NOTE)
    for number, name in enumerate(HEADS):
        table.add_column(name, justify="right" if number in NUMBERS else "left", no_wrap=True)
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
            cells.append(wording.times(case.times_control.get((part, phase))))
        lines.append([*cells, "", "", "", "", ""])
    lines[0][0] = case.attack
    lines[0][-5:] = [_seconds(case.mount_s), _seconds(case.unmount_s), *_rates(case), case.verdict or ""]
    return lines


def _rates(case: Case) -> list[str]:
    rates = (case.calls_per_s, case.requests_per_s)
    return [wording.NOTHING if rate is None else f"{rate:.3g}" for rate in rates]


def _seconds(figure: Figure | None) -> str:
    if figure is None:
        return wording.NOTHING
    return f"{'≥ ' if figure.at_least else ''}{wording.seconds(figure.value)}"
