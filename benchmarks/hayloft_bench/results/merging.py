"""Merges the results of several ranks: their rows, and for each measurement one row for all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from hayloft_bench.distributed.merged_view import combined_cases
from hayloft_bench.errors import RankError
from hayloft_bench.results.model import ALL_RANKS, Measurement, Results

MOST_QUANTILES = 200
STRAGGLING = 1.10
"""A rank that takes a tenth longer than the median gets a note."""

T = TypeVar("T")
Key = tuple[str, str, str, int, int, int | None]


def merge(results: Sequence[Results]) -> Results:
    """``results`` in the order of the ranks. Run id, command and machine are those of rank 0; differences become notes.
    Raises RankError for runs that do not belong together."""
    first, ranks = results[0], len(results)
    if ranks == 1:
        return first
    for rank, one in enumerate(results):
        if (one.sizes.scale, one.sizes.seed) != (first.sizes.scale, first.sizes.seed):
            raise RankError(f"rank {rank} has another scale or seed than rank 0")
    rows: list[Measurement] = []
    grouped: dict[Key, list[Measurement]] = defaultdict(list)
    for rank, one in enumerate(results):
        for row in one.measurements:
            mine = replace(row, rank=rank, ranks=ranks, run_id=first.run_id)
            rows.append(mine)
            grouped[row.workload, row.target, row.phase, row.repetition, row.epoch, row.accelerators].append(mine)
    merged = replace(
        first,
        measurements=(*rows, *(_sum(some, ranks) for some in grouped.values())),
        settings=_united(one.settings for one in results),
        targets=_united(one.targets for one in results),
        workloads=_united(one.workloads for one in results),
    )
    return replace(merged, notes=(*_notes(results), *_stragglers(merged)))


def _sum(rows: Sequence[Measurement], ranks: int) -> Measurement:
    """All ranks started together, so the measurement took as long as the slowest."""
    obstacle = _obstacle(rows, ranks)
    base = replace(
        rows[0],
        rank=ALL_RANKS,
        ranks=ranks,
        readers=sum(row.readers for row in rows),
        started_at=min(row.started_at for row in rows),
        valid=not obstacle,
        reason=obstacle,
        batch_p50_s=None,
        batch_p95_s=None,
        batch_p99_s=None,
    )
    seconds = _of(rows, "seconds", max)
    total_bytes, samples = _of(rows, "bytes", sum), _of(rows, "samples", sum)
    cpu_reader_s, cpu_target_s = _of(rows, "cpu_reader_s", sum), _of(rows, "cpu_target_s", sum)
    latencies = pooled(rows)
    busy = [row.utilisation for row in rows if row.utilisation is not None]
    origin_bytes = _of(rows, "origin_bytes", sum)
    needed = [row.origin_bytes / row.read_amplification for row in rows if row.origin_bytes and row.read_amplification]
    return replace(
        base,
        seconds=seconds,
        bytes=_whole(total_bytes),
        samples=_whole(samples),
        samples_per_s=samples / seconds if samples is not None and seconds else None,
        bytes_per_s=total_bytes / seconds if total_bytes is not None and seconds else None,
        first_batch_s=_of(rows, "first_batch_s", max),
        sample_p50_s=_quantile(latencies, 0.50),
        sample_p95_s=_quantile(latencies, 0.95),
        sample_p99_s=_quantile(latencies, 0.99),
        sample_latencies_s=latencies,
        accelerators=_whole(_of(rows, "accelerators", sum)),
        utilisation=sum(busy) / len(busy) if len(busy) == len(rows) else None,
        cpu_reader_s=cpu_reader_s,
        cpu_target_s=cpu_target_s,
        cpu_s_per_gb=(
            ((cpu_reader_s or 0.0) + (cpu_target_s or 0.0)) / total_bytes * 1e9
            if total_bytes and cpu_reader_s is not None
            else None
        ),
        peak_reader_bytes=_whole(_of(rows, "peak_reader_bytes", max)),
        peak_target_bytes=_whole(_of(rows, "peak_target_bytes", max)),
        origin_bytes=_whole(origin_bytes),
        origin_requests=_whole(_of(rows, "origin_requests", sum)),
        read_amplification=(
            origin_bytes / sum(needed)
            if origin_bytes and len(needed) == len(rows)
            else _of(rows, "read_amplification", max)
        ),
        hit_ratio=max(0.0, 1 - origin_bytes / total_bytes) if origin_bytes is not None and total_bytes else None,
        money_per_epoch=_of(rows, "money_per_epoch", sum),
    )


def _obstacle(rows: Sequence[Measurement], ranks: int) -> str:
    """Why a sum over ranks would be meaningless; empty if it is not."""
    missing = sorted(set(range(ranks)) - {row.rank for row in rows})
    if missing:
        return f"no figure from rank {', '.join(map(str, missing))}"
    wrong = [f"rank {row.rank}: {row.reason}" for row in rows if not row.valid]
    if wrong:
        return "; ".join(wrong)
    if len({row.dataset_id for row in rows}) > 1:
        return "the ranks read different datasets"
    return ""


def _of(rows: Sequence[Measurement], name: str, how: Callable[[Iterable[float]], float]) -> float | None:
    """None unless every rank has the figure: a sum without one of them would look like all of them."""
    values = [getattr(row, name) for row in rows]
    return how(values) if all(value is not None for value in values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def pooled(rows: Sequence[Measurement]) -> tuple[float, ...]:
    """Evenly spaced quantiles of all samples together: a rank counts as much as it has samples."""
    weighted = sorted(
        (value, (row.samples or 1) / len(row.sample_latencies_s)) for row in rows for value in row.sample_latencies_s
    )
    if not weighted:
        return ()
    whole = sum(weight for _, weight in weighted)
    count = min(MOST_QUANTILES, len(weighted))
    quantiles, passed, index = [], weighted[0][1], 0
    for step in range(count):
        wanted = whole * (step + 0.5) / count
        while passed < wanted and index < len(weighted) - 1:
            index += 1
            passed += weighted[index][1]
        quantiles.append(weighted[index][0])
    return tuple(quantiles)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def _notes(results: Sequence[Results]) -> list[str]:
    """Each once: without a rank if all have it, else with the ranks that have it."""
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, one in enumerate(results):
        for note in one.notes:
            ranks_of[note].append(rank)
    notes = [
        note if len(ranks) == len(results) else f"Rank {', '.join(map(str, ranks))}: {note}"
        for note, ranks in ranks_of.items()
    ]
    first = results[0].machine
    for rank, one in enumerate(results[1:], 1):
        differ = [
            name for name in ("kernel", "processors", "memory_bytes", "python", "versions", "network")
            if getattr(one.machine, name) != getattr(first, name)
        ]  # fmt: skip
        if differ:
            notes.append(f"Rank {rank} ran on another machine than rank 0, with another {', '.join(differ)}.")
    return notes


def _stragglers(results: Results) -> list[str]:
    return [
        f"{one.case.workload}, {one.case.target}, {one.case.phase}: rank {one.slowest} was the slowest; the slowest "
        f"rank took {one.straggling:.2f} times the median."
        for one in combined_cases(results)
        if one.straggling >= STRAGGLING
    ]


def _united(some: Iterable[dict[str, T]]) -> dict[str, T]:
    united: dict[str, T] = {}
    for one in some:
        united = one | united
    return united
