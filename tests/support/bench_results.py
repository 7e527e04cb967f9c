"""Made-up results of the benchmark, for tests of what is done with results. Seeded; nothing here was ever measured."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from hayloft_bench.results.model import (
    ALL_RANKS,
    SCHEMA_VERSION,
    Machine,
    Measurement,
    Phase,
    Results,
    Sizes,
    TargetFacts,
    WorkloadFacts,
)

MB = 1e6
TARGETS = {
    "plain": TargetFacts("plain local files", "limit", "-"),
    "hayloft": TargetFacts("Hayloft (auto)", "hayloft", "0.0-test"),
    "hayloft-fuse": TargetFacts("Hayloft (FUSE)", "hayloft", "0.0-test"),
    "juicefs": TargetFacts("JuiceFS", "mount", "0.0-test"),
    "rclone": TargetFacts("rclone", "mount", "0.0-test"),
    "obstore": TargetFacts("obstore", "client", "0.0-test"),
}
WORKLOADS = {
    "imagenet": WorkloadFacts("ImageNet, made up", True, 0.9),
    "webdataset": WorkloadFacts("WebDataset, made up", True),
    "metadata": WorkloadFacts("Metadata, made up", False),
}
SAMPLE_BYTES = {"imagenet": 110_000, "webdataset": 100_000, "metadata": 0}
DATASET_BYTES = {"imagenet": 264 * MB, "webdataset": 572 * MB, "metadata": 0}
SPEED = {"plain": 1.0, "hayloft": 0.98, "hayloft-fuse": 0.93, "juicefs": 0.25, "rclone": 0.14, "obstore": 0.12}
COLD = {"plain": 1.0, "hayloft": 0.2, "hayloft-fuse": 0.19, "juicefs": 0.1, "rclone": 0.08, "obstore": 0.12}
CPU_S_PER_GB = {"plain": 0.3, "hayloft": 0.35, "hayloft-fuse": 0.4, "juicefs": 2.4, "rclone": 3.1, "obstore": 1.9}


def measurement(
    target: str = "hayloft",
    workload: str = "imagenet",
    phase: Phase = "hot",
    *,
    repetition: int = 0,
    epoch: int = 1,
    samples_per_s: float = 10_000.0,
    origin_share: float = 0.0,
    chance: random.Random | None = None,
) -> Measurement:
    """A row whose figures fit each other."""
    chance = chance or random.Random(1)
    size = SAMPLE_BYTES[workload]
    dataset_bytes = int(DATASET_BYTES[workload])
    samples = dataset_bytes // size if size else 100_000
    seconds = samples / samples_per_s
    latencies = tuple(sorted(chance.lognormvariate(math.log(4 / samples_per_s), 0.5) for _ in range(60)))
    origin_bytes = int(dataset_bytes * origin_share)
    cpu_s = CPU_S_PER_GB[target] * dataset_bytes / 1e9
    return Measurement(
        schema=SCHEMA_VERSION,
        run_id="made-up",
        workload=workload,
        target=target,
        phase=phase,
        epoch=epoch,
        repetition=repetition,
        rank=0,
        ranks=1,
        readers=4,
        valid=True,
        reason="",
        started_at=1_700_000_000.0 + repetition,
        dataset_id=f"made-up-{workload}",
        dataset_bytes=dataset_bytes,
        seconds=seconds,
        bytes=dataset_bytes,
        samples=samples,
        samples_per_s=samples_per_s,
        bytes_per_s=dataset_bytes / seconds,
        first_batch_s=0.02,
        sample_p50_s=latencies[30],
        sample_p95_s=latencies[57],
        sample_p99_s=latencies[59],
        batch_p50_s=32 * latencies[30],
        batch_p95_s=32 * latencies[57],
        batch_p99_s=32 * latencies[59],
        sample_latencies_s=latencies,
        cpu_reader_s=cpu_s * 0.6,
        cpu_target_s=cpu_s * 0.4,
        cpu_s_per_gb=CPU_S_PER_GB[target] if dataset_bytes else None,
        peak_reader_bytes=80_000_000,
        peak_target_bytes=120_000_000,
        origin_bytes=origin_bytes,
        origin_requests=samples if origin_bytes else 0,
        read_amplification=origin_share if dataset_bytes else None,
        hit_ratio=max(0.0, 1 - origin_share),
        money_per_epoch=0.0004 * samples / 1000 if origin_bytes else 0.0,
    )


def emulated(target: str, accelerators: int, *, chance: random.Random, repetition: int = 0) -> Measurement:
    """A row in which so many accelerators were kept busy; each wants 2,000 samples per second."""
    capacity = 10_000 * SPEED[target]
    utilisation = min(0.995, capacity / (accelerators * 2_000)) * chance.uniform(0.98, 1.0)
    rate = utilisation * accelerators * 2_000
    row = measurement(target, phase="hot", repetition=repetition, samples_per_s=rate, chance=chance)
    return replace(row, accelerator="made-up-gpu", accelerators=accelerators, utilisation=utilisation)


def made_up(*, seed: int = 1, repetitions: int = 3, noise: float = 0.01, faster: float = 1.0) -> Results:
    """Three workloads, six targets, three phases; ``faster`` is how much faster Hayloft is than it would be."""
    chance = random.Random(seed)
    rows: list[Measurement] = []
    base = {"imagenet": 12_000.0, "webdataset": 20_000.0, "metadata": 80_000.0}
    for repetition in range(repetitions):
        for workload in WORKLOADS:
            for target in TARGETS:
                for phase, speeds, share in (("cold", COLD, 1.0), ("warm", SPEED, 0.0), ("hot", SPEED, 0.0)):
                    client = target == "obstore"
                    if (target == "plain" or client) and (phase == "cold") == (target == "plain"):
                        continue
                    factor = faster if target.startswith("hayloft") else 1.0
                    rate = base[workload] * speeds[target] * factor * chance.gauss(1.0, noise)
                    rate *= 0.8 if phase == "warm" else 1.0
                    amplification = {"juicefs": 1.3, "rclone": 1.1}.get(target, 1.0) * share
                    for epoch in (1, 2) if phase == "hot" else (1,):
                        rows.append(
                            measurement(
                                target,
                                workload,
                                phase,  # type: ignore[arg-type]  # of the tuple above
                                repetition=repetition,
                                epoch=epoch,
                                samples_per_s=rate * (1 + 0.01 * epoch),
                                origin_share=amplification,
                                chance=chance,
                            )
                        )
        for target in ("plain", "hayloft", "juicefs", "rclone"):
            rows += [emulated(target, count, chance=chance, repetition=repetition) for count in (1, 2, 4, 6, 8)]
    rows.append(
        replace(
            measurement("rclone", "webdataset", "warm"),
            valid=False,
            reason="it ended by itself in the middle of the epoch (made up)",
            repetition=repetitions,
            seconds=None,
            samples_per_s=None,
            bytes_per_s=None,
            sample_latencies_s=(),
        )
    )
    return results_of(rows)


def results_of(rows: list[Measurement]) -> Results:
    """The rows with a made-up machine around them."""
    return Results(
        schema=SCHEMA_VERSION,
        run_id="made-up",
        command=("hayloft", "bench", "run", "--made-up"),
        sizes=Sizes(scale=0.01, seed=1),
        machine=Machine(
            kernel="0.0-made-up",
            processors=2,
            memory_bytes=8 << 30,
            python="3.11.0",
            versions={"hayloft": "0.0-test", "juicefs": "0.0-test"},
        ),
        settings={
            "juicefs": {"--cache-size=1G": "made up: the cache holds the dataset"},
            "hayloft": {"viewMode=auto": "made up"},
        },
        measurements=tuple(rows),
        notes=("These figures are made up for a test.",),
        targets=dict(TARGETS),
        workloads=dict(WORKLOADS),
    )


def with_ranks(results: Results, ranks: int, rank: int, slower: float = 1.0) -> Results:
    """The same rows as rank ``rank`` of several would send them; ``slower`` makes it a straggler."""
    rows = [
        replace(
            row,
            rank=rank,
            ranks=ranks,
            seconds=row.seconds * slower if row.seconds else None,
            samples_per_s=row.samples_per_s / slower if row.samples_per_s else None,
            bytes_per_s=row.bytes_per_s / slower if row.bytes_per_s else None,
        )
        for row in results.measurements
    ]
    if any(row.rank == ALL_RANKS for row in rows):
        raise ValueError("already merged")
    return replace(results, measurements=tuple(rows))
