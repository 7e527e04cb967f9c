"""The goals of Hayloft, and whether the figures reach them. Pure functions of results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hayloft_bench.results.data_path_goals import AIMS, NODE_AIMS, ON_A_NODE, RAW
from hayloft_bench.results.model import Phase, Results
from hayloft_bench.results.noise import best_peer, case_verdict, ratio, verdict
from hayloft_bench.results.noise import paired_ratios as paired
from hayloft_bench.results.row_selection import (
    SMALL_FILES,
    WITHOUT_DATA,
    Case,
    cases,
    hayloft_of,
    limit_of,
    middle,
    of_kind,
    phases_of,
    targets_of,
    workload_facts,
    workloads_of,
)

NEAR_LOCAL, SMALL_HOT, COLD, ORIGIN = 0.95, 3.0, 1.5, 1.02
WARM: tuple[Phase, ...] = ("warm", "hot")

Outcome = Literal["holds", "misses", "unsure"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal in one case. ``value`` None: the figures for it are missing."""

    wording: str
    workload: str
    phase: Phase
    target: str
    against: str
    bound: float
    at_least: bool
    value: float | None
    steady: bool
    """False: the repetitions vary too much, or are too few, to judge a value near the bound."""

    @property
    def outcome(self) -> Outcome | None:
        """None without a value."""
        if self.value is None:
            return None
        if not self.steady and abs(self.value / self.bound - 1) < 0.1:
            return "unsure"
        reached = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "holds" if reached else "misses"


def goals(results: Results) -> list[Goal]:
    """All goals that the measured workloads and phases can be judged by, for the volume as a user gets it."""
    found: list[Goal] = []
    for workload in workloads_of(results):
        target = hayloft_of(results, workload)
        if target is not None:
            found += (_aims if workload in RAW | ON_A_NODE else _speeds)(results, workload, target)
            found += _costs(results, workload, target)
    return found


def _aims(results: Results, workload: str, target: str) -> Iterator[Goal]:
    for aim in (aim for aim in (*AIMS, *NODE_AIMS) if aim.workload == workload):
        case = Case(workload, target, aim.phase)
        if aim.phase in phases_of(results, workload) and aim.other in targets_of(results):
            yield _against(results, aim.wording, case, aim.other, aim.bound)


def _speeds(results: Results, workload: str, target: str) -> Iterator[Goal]:
    limit = limit_of(results)
    present = phases_of(results, workload)
    if workload not in WITHOUT_DATA and limit is not None:
        for phase in (phase for phase in WARM if phase in present):
            yield _against(results, "within 5 % of local files", Case(workload, target, phase), limit, NEAR_LOCAL)
    wanted: list[tuple[Phase, str, float]] = []
    if workload in SMALL_FILES:
        wanted.append(("hot", "3 times the best mounted peer on small files", SMALL_HOT))
    if workload not in WITHOUT_DATA:
        wanted.append(("cold", "1.5 times the best mounted peer when cold", COLD))
    for phase, wording, bound in wanted:
        peer = best_peer(results, workload, phase)
        if phase in present and peer is not None:
            yield _against(results, wording, Case(workload, target, phase), peer, bound)


def _against(results: Results, wording: str, case: Case, other: str, bound: float) -> Goal:
    steady = verdict(paired(results, case, other)).is_steady
    value = ratio(results, case, other)
    return Goal(wording, case.workload, case.phase, case.target, other, bound, True, value, steady)


def _costs(results: Results, workload: str, target: str) -> Iterator[Goal]:
    grouped = cases(results)
    for phase in phases_of(results, workload):
        case = Case(workload, target, phase)
        mine = middle(grouped.get(case, []), "cpu_s_per_gb")
        peers = {
            name: value
            for name in of_kind(results, "mount")
            if (value := middle(grouped.get(case._replace(target=name), []), "cpu_s_per_gb"))
        }
        if mine is not None and peers:
            best = min(peers, key=lambda name: peers[name])
            wording = "fewest CPU seconds per GB of all mounted targets"
            steady = case_verdict(results, case).is_steady
            yield Goal(wording, workload, phase, target, best, 1.0, False, mine / peers[best], steady)
    read = middle(grouped.get(Case(workload, target, "cold"), []), "read_amplification")
    if workload_facts(results, workload).reads_whole_files and read is not None:
        wording = "origin bytes at most 1.02 of the need"
        yield Goal(wording, workload, "cold", target, "need", ORIGIN, False, read, True)
