"""The combined figures of several ranks for a report: throughput, stragglers, shares."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hayloft_bench.report import number_format as wording
from hayloft_bench.results.model import ALL_RANKS, Measurement, Results
from hayloft_bench.results.row_selection import Case


@dataclass(frozen=True, slots=True)
class CombinedCase:
    """One case over all ranks, as medians over its epochs and repetitions. ``shares`` are parts of the bytes by rank
    (of the samples if no bytes are read)."""

    case: Case
    ranks: int
    bytes_per_s: float | None
    straggling: float
    """Time of the slowest rank ÷ median time of all ranks: 1 if no rank waits for another."""
    slowest: int
    """The rank that was slowest most often."""
    shares: dict[int, float]


def combined_cases(results: Results) -> list[CombinedCase]:
    """One for each case that several ranks measured, from the epochs for which every rank has a valid row."""
    epochs: dict[Case, dict[tuple[int, int, int | None], list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    sums: dict[Case, list[float]] = defaultdict(list)
    for row in results.measurements:
        case = Case(row.workload, row.target, row.phase)
        if row.ranks == 1 or not row.valid or not row.seconds or row.accelerators is not None:
            continue
        if row.rank == ALL_RANKS:
            sums[case].append(row.bytes_per_s or 0.0)
        else:
            epochs[case][row.repetition, row.epoch, row.accelerators].append(row)
    complete = {
        case: [rows for rows in several.values() if len(rows) == rows[0].ranks] for case, several in epochs.items()
    }
    return [_one(case, rows, sums[case]) for case, rows in complete.items() if rows]


def _one(case: Case, epochs: Sequence[Sequence[Measurement]], speeds: Sequence[float]) -> CombinedCase:
    ratios: list[float] = []
    slowest: list[int] = []
    amounts: dict[int, float] = defaultdict(float)
    for rows in epochs:
        times = {row.rank: row.seconds or 0.0 for row in rows}
        slowest.append(max(times, key=lambda rank: times[rank]))
        ratios.append(max(times.values()) / statistics.median(times.values()))
        for row in rows:
            amounts[row.rank] += row.bytes or row.samples or 0
    total = sum(amounts.values()) or 1.0
    return CombinedCase(
        case=case,
        ranks=max(row.ranks for rows in epochs for row in rows),
        bytes_per_s=statistics.median(speeds) if any(speeds) else None,
        straggling=statistics.median(ratios),
        slowest=statistics.mode(slowest),
        shares={rank: amount / total for rank, amount in sorted(amounts.items())},
    )


def ranks_rows(results: Results) -> list[list[str]]:
    """For a table: workload, target, phase, ranks, MB/s together, slowest ÷ median, slowest rank, shares."""
    return [
        [
            *one.case,
            str(one.ranks),
            wording.significant(one.bytes_per_s / 1e6 if one.bytes_per_s else None),
            f"{one.straggling:.2f}",
            str(one.slowest),
            ", ".join(f"{rank}: {wording.percent(share)}" for rank, share in one.shares.items()),
        ]
        for one in combined_cases(results)
    ]
