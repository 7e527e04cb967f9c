"""Selects rows: which target is the limit, which are peers, and which rows belong together."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hayloft_bench.results.model import ALL_RANKS, PHASES, Measurement, Phase, Results, TargetFacts, WorkloadFacts

LIMITS = frozenset({"plain", "local"})
CLIENTS = frozenset({"boto3", "s3fs", "obstore", "s3torchconnector"})
WHOLE_FILES = frozenset({"imagenet", "retinanet", "webdataset", "unet3d", "cosmoflow", "checkpoint"})
SMALL_FILES = frozenset({"imagenet", "retinanet"})
"""Workloads whose samples are files below 1 MiB."""
WITHOUT_DATA = frozenset({"metadata"})
"""Workloads that read names and sizes alone: goals about data do not apply to them."""
ORDER = ("limit", "hayloft", "mount", "path", "client")
"""In which kinds of targets are shown."""


class Case(NamedTuple):
    """What is measured several times."""

    workload: str
    target: str
    phase: Phase


def target_facts(results: Results, target: str) -> TargetFacts:
    """As recorded, else judged by the name."""
    known = results.targets.get(target)
    if known is not None:
        return known
    if target in LIMITS:
        return TargetFacts("plain local files", "limit")
    if target.partition("-")[0] == "hayloft":
        return TargetFacts(target, "hayloft")
    if target in CLIENTS:
        return TargetFacts(target, "client")
    return TargetFacts(target, "path" if target.startswith(("/", "path")) else "mount")


def workload_facts(results: Results, workload: str) -> WorkloadFacts:
    """As recorded, else judged by the name."""
    return results.workloads.get(workload) or WorkloadFacts(workload, workload in WHOLE_FILES)


def targets_of(results: Results) -> list[str]:
    """All targets that have rows: the limit, Hayloft, peers, clients; within a kind as they were asked for."""
    named = list(dict.fromkeys(row.target for row in results.measurements))
    return sorted(named, key=lambda name: ORDER.index(target_facts(results, name).kind))


def workloads_of(results: Results) -> list[str]:
    """All workloads that have rows, in the order of the rows."""
    return list(dict.fromkeys(row.workload for row in results.measurements))


def phases_of(results: Results, workload: str | None = None) -> list[Phase]:
    """Phases that have rows, coldest first."""
    present = {row.phase for row in results.measurements if workload in (None, row.workload)}
    return [phase for phase in PHASES if phase in present]


def of_kind(results: Results, *kinds: str) -> list[str]:
    """Targets of the given kinds, in the order of ``targets_of``."""
    return [name for name in targets_of(results) if target_facts(results, name).kind in kinds]


def limit_of(results: Results) -> str | None:
    """The target that is the upper limit: plain local files."""
    return next(iter(of_kind(results, "limit")), None)


def hayloft_of(results: Results, workload: str | None = None) -> str | None:
    """The volume as a user gets it: ``hayloft`` or ``hayloft-auto`` if it was measured, else the first variant."""
    named = of_kind(results, "hayloft")
    if workload is not None:
        measured = {row.target for row in results.measurements if row.workload == workload}
        named = [name for name in named if name in measured]
    return next((name for name in ("hayloft", "hayloft-auto") if name in named), next(iter(named), None))


def whole(rows: Iterable[Measurement]) -> list[Measurement]:
    """Rows for the complete run: of a single rank, or those for all ranks together."""
    return [row for row in rows if row.ranks == 1 or row.rank == ALL_RANKS]


def is_emulated(row: Measurement) -> bool:
    """Whether an accelerator set the pace: such a row does not show how fast the target can be."""
    return row.accelerators is not None


def cases(results: Results) -> dict[Case, list[Measurement]]:
    """The valid rows of each case without accelerators; without those of single ranks where there are several, and
    those of the workload ``tenants``, which ``tenants.py`` compares with each other."""
    grouped: dict[Case, list[Measurement]] = defaultdict(list)
    for row in whole(results.measurements):
        if row.valid and not is_emulated(row) and not row.attack:
            grouped[Case(row.workload, row.target, row.phase)].append(row)
    return dict(grouped)


def invalid(results: Results) -> list[Measurement]:
    """Rows without a figure that counts."""
    return [row for row in results.measurements if not row.valid]


def speed(row: Measurement) -> float | None:
    """Samples per second, or bytes per second where a workload has no samples."""
    return row.samples_per_s if row.samples_per_s else row.bytes_per_s


def by_repetition(rows: Sequence[Measurement], measure: str) -> dict[int, float]:
    """The median over the epochs of each repetition; repetitions without the measure are left out."""
    gathered: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        value = speed(row) if measure == "speed" else getattr(row, measure)
        if value is not None:
            gathered[row.repetition].append(float(value))
    return {repetition: statistics.median(values) for repetition, values in sorted(gathered.items())}


def middle(rows: Sequence[Measurement], measure: str) -> float | None:
    """The median over repetitions; None if no row has the measure."""
    values = by_repetition(rows, measure).values()
    return statistics.median(values) if values else None
