"""Eviction policies on recorded traces: run it as ``python -m hayloft_bench.micro.eviction_policies``.

Each trace is replayed against each policy, with a cache of half the bytes that an epoch reads. Hayloft's policy is the
code of the driver (``csi_driver/cache/eviction.py``), called as the daemon calls it. The figures are the bytes that
hit, from the second epoch on (after a change of the dataset: from the second epoch of the new one on), and their share
of the best possible ratio, which is cache ÷ dataset. ``--output FILE`` writes them as JSON; the kept ones are
``benchmarks/results/eviction.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hayloft_bench.micro.eviction_simulator import POLICIES, Policy, SimulatedCache, knowing
from hayloft_bench.micro.eviction_traces import Trace, recorded

CACHE_SHARE = 0.5


@dataclass(frozen=True)
class PolicyOutcome:
    """The figures of one policy on one trace."""

    trace: str
    policy: str
    hit_ratio: float
    of_the_best: float
    left_of_earlier_datasets: float
    """The share of the cache with datasets that were not read in the last two epochs."""


def play(trace: Trace, name: str, policy: Policy) -> PolicyOutcome:
    limit_bytes = int(trace.bytes_of(-1) * CACHE_SHARE)
    cache = SimulatedCache(policy, limit_bytes)
    measured = set(_measured(trace))
    hit_bytes = read_bytes = 0
    for number, epoch in enumerate(trace.epochs):
        for dataset, file in epoch:
            size_bytes = trace.sizes_bytes[dataset, file]
            hit = cache.read((dataset, file, size_bytes))
            if number in measured:
                read_bytes += size_bytes
                hit_bytes += size_bytes * hit
    recent = {dataset for epoch in trace.epochs[-2:] for dataset, _ in epoch}
    left = sum(row.present_bytes for row in cache.rows.values() if row.dataset not in recent)
    ratio = hit_bytes / read_bytes
    return PolicyOutcome(trace.name, name, round(ratio, 3), round(ratio / CACHE_SHARE, 3), round(left / limit_bytes, 3))


def _measured(trace: Trace) -> Sequence[int]:
    """The epochs after the last change of the datasets, without the first one after it."""
    datasets = [{dataset for dataset, _ in epoch} for epoch in trace.epochs]
    steady = [number for number in range(1, len(datasets)) if datasets[number] == datasets[number - 1]]
    last_change = max((number for number in range(1, len(datasets)) if number not in steady), default=0)
    return [number for number in steady if number > last_change]


def outcomes() -> list[PolicyOutcome]:
    """Every policy on every trace."""
    found = []
    for trace in recorded():
        for name, policy in POLICIES.items():
            found.append(play(trace, name, knowing(trace.dataset_bytes()) if name == "hayloft" else policy))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    found = outcomes()
    table = Table("trace", "policy", "hit", "of the best", "left of earlier")
    table.columns[0].no_wrap = True
    for one in found:
        table.add_row(
            *(one.trace, one.policy, f"{one.hit_ratio:.3f}", f"{one.of_the_best:.2f}"),
            f"{one.left_of_earlier_datasets:.1%}",
        )
    Console().print(table)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
