"""A run at a glance: one table, two sentences and one picture over all workloads."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hayloft_bench.report import number_format as wording
from hayloft_bench.report import plot_style as drawing
from hayloft_bench.report.captions import title
from hayloft_bench.report.plot_style import Draw
from hayloft_bench.report.plots import bar_blocks
from hayloft_bench.results.model import Phase, Results
from hayloft_bench.results.noise import ratio_to_limit
from hayloft_bench.results.row_selection import (
    Case,
    cases,
    hayloft_of,
    limit_of,
    middle,
    of_kind,
    phases_of,
    target_facts,
    targets_of,
    workloads_of,
)

STATES: tuple[Phase, ...] = ("cold", "warm", "hot")
"""Phases that are shown; small-cache and restart are about faults."""
COLUMNS = 4
"""Panels of the picture beside each other."""


def overview_table(results: Results) -> Table:
    """A row per workload and target: speeds in each phase, and in the last one the ratio to plain local files and the
    latency. A dash: not measured, as for clients, which cache nothing and are never warm."""
    phases = _phases(results)
    last = phases[-1]
    table = Table(title="How fast the dataset is read", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("workload", "read from"):
        table.add_column(heading, no_wrap=True)
    headings = [f"{phase}\nMB/s" for phase in phases] + [f"{last}\nsamples/s", f"{last}\n÷ local", f"{last}\np99"]
    for heading in headings + [f"store ÷ need\n{phase}" for phase in phases]:
        table.add_column(heading, justify="right", no_wrap=True)
    grouped = cases(results)
    for workload in workloads_of(results):
        heading = workload
        for target in targets_of(results):
            if not any(Case(workload, target, phase) in grouped for phase in phases):
                continue
            facts = target_facts(results, target)
            speeds = [_median(results, workload, target, phase, "bytes_per_s", 1e-6) for phase in phases]
            store = [_median(results, workload, target, phase, "read_amplification") for phase in phases]
            table.add_row(
                heading,
                facts.title,
                *(wording.significant(speed) for speed in speeds),
                wording.significant(_median(results, workload, target, last, "samples_per_s")),
                wording.times(ratio_to_limit(results, Case(workload, target, last))),
                wording.seconds(_median(results, workload, target, last, "sample_p99_s")),
                *(wording.NOTHING if share is None else f"{share:.2f}" for share in store),
                style="bold" if facts.kind == "hayloft" else None,
            )
            heading = ""
        table.add_section()
    return table


def overview_captions(results: Results) -> list[str]:
    """The table in two sentences: bytes from the store, and the time of an epoch. Fewer where figures are missing."""
    ours, limit, clients = hayloft_of(results), limit_of(results), of_kind(results, "client")
    if ours is None:
        return []
    first, last = _phases(results)[0], _phases(results)[-1]
    return [
        text
        for text in (_store(results, ours, clients, first, last), _time(results, ours, limit, clients, last))
        if text
    ]


def _store(results: Results, ours: str, clients: Sequence[str], first: Phase, last: Phase) -> str:
    shares = [_from_store(results, ours, phase) for phase in (first, last)]
    if first == last or None in shares:
        return ""
    text = (
        f"In the first epoch {title(results, ours)} took {shares[0]:.2f} bytes from the store for each byte that was "
        f"read, in the later ones {shares[1]:.2f}"
    )
    others = {name: share for name in clients if (share := _from_store(results, name, "cold")) is not None}
    if not others:
        return f"{text}."
    names = wording.listed([title(results, name) for name in others])
    taken = wording.listed([f"{share:.2f}" for share in others.values()])
    return f"{text}; {names} cache nothing and take {taken} in every epoch."


def _time(results: Results, ours: str, limit: str | None, clients: Sequence[str], last: Phase) -> str:
    """Over the workloads that all of them can read. A client is as fast in every epoch as in the first."""
    read = {ours: last, **({limit: last} if limit else {}), **dict.fromkeys(clients, STATES[0])}
    grouped = cases(results)
    common = [
        workload
        for workload in workloads_of(results)
        if all(Case(workload, target, phase) in grouped for target, phase in read.items())
    ]
    if not common or last == STATES[0]:
        return ""
    seconds = {target: _sum(results, target, phase, "seconds", common) for target, phase in read.items()}
    others = [f"{title(results, name)} {wording.seconds(value)}" for name, value in seconds.items() if name != ours]
    text = (
        f"Once the dataset is on the node's disk, an epoch of {wording.listed(common)} through {title(results, ours)} "
        f"takes {wording.seconds(seconds[ours])}"
    )
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def overview_picture(results: Results) -> Draw:
    """One panel per workload with a bar for each target and phase, in MB/s."""
    phases = _phases(results)
    panels = [
        (f"{workload}, MB/s", bar_blocks(results, workload, phases, "bytes_per_s", wording.significant, factor=1e-6))
        for workload in workloads_of(results)
    ]
    panels = [(name, blocks) for name, blocks in panels if blocks]
    dashed = f" The dashed line: {title(results, limit)}." if (limit := limit_of(results)) else ""
    caption = f"Medians.{dashed} Store, driver and readers share one machine."
    heading = "Training reads a dataset from an object store"
    return drawing.bar_grid(panels, columns=min(COLUMNS, len(panels)), title=heading, caption=caption)


def _phases(results: Results) -> list[Phase]:
    """Those that Hayloft or another cache was measured in; at least one."""
    present = [phase for phase in STATES if phase in phases_of(results)]
    return present or [STATES[0]]


def _median(
    results: Results, workload: str, target: str, phase: Phase, measure: str, factor: float = 1.0
) -> float | None:
    value = middle(cases(results).get(Case(workload, target, phase), []), measure)
    return None if value is None else value * factor


def _sum(results: Results, target: str, phase: Phase, measure: str, workloads: Sequence[str]) -> float:
    return sum(_median(results, workload, target, phase, measure) or 0.0 for workload in workloads)


def _from_store(results: Results, target: str, phase: Phase) -> float | None:
    """Bytes from the store ÷ bytes read, over all workloads of the target."""
    read_bytes = _sum(results, target, phase, "bytes", workloads_of(results))
    return _sum(results, target, phase, "origin_bytes", workloads_of(results)) / read_bytes if read_bytes else None
