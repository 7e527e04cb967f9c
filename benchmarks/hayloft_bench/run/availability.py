"""``hayloft bench run --list``: all workloads, targets and phases, and which targets this machine can use."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hayloft_bench.results.model import PHASES, Sizes
from hayloft_bench.run.options import OWN_TARGETS
from hayloft_bench.targets import TARGETS
from hayloft_bench.workloads import WORKLOADS


def show(console: Console) -> None:
    for each in (workloads(), targets()):
        console.print(each)
    for workload, names in OWN_TARGETS.items():
        console.print(f"Targets of {workload}: {', '.join(names)}", highlight=False)
    console.print(f"Phases: {', '.join(PHASES)}", highlight=False)


def workloads() -> Table:
    """With the size of their dataset at scale 1."""
    table = Table(title="Workloads", title_justify="left", box=SIMPLE_HEAD)
    for name in ("name", "reads", "readers", "GB at scale 1", "accelerator", "read by"):
        table.add_column(name, justify="right" if name in ("readers", "GB at scale 1") else "left")
    for name, workload in WORKLOADS.items():
        size_bytes = workload.dataset_bytes(Sizes(1.0, 0))
        model = workload.accelerator.name if workload.accelerator else "–"
        by = ", ".join(sorted(workload.access))
        table.add_row(name, workload.title, str(workload.readers), f"{size_bytes / 1e9:.1f}", model, by)
    return table


def targets() -> Table:
    """With the reason why one of them cannot be used here."""
    table = Table(title="Targets", title_justify="left", box=SIMPLE_HEAD)
    for name in ("name", "is", "kind", "phases", "here"):
        table.add_column(name)
    for name, target in TARGETS.items():
        phases = ", ".join(phase for phase in PHASES if phase in target.phases)
        table.add_row(name, target.title, target.kind, phases, target.unavailable() or "yes")
    return table
