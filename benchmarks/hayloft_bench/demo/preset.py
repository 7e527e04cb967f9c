"""The run that ``hayloft demo`` makes, and the check of its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hayloft_bench.errors import MissingPrerequisite
from hayloft_bench.results.model import Phase, Results, Sizes
from hayloft_bench.results.row_selection import invalid
from hayloft_bench.run.options import Options
from hayloft_bench.targets import TARGETS as ALL_TARGETS
from hayloft_bench.workloads import WORKLOADS as ALL_WORKLOADS

WORKLOADS = ("imagenet", "webdataset", "parquet")
"""Images as single files, images in tar shards, and tables of which half of the columns is read."""
TARGETS = ("plain", "hayloft", "boto3", "s3fs")
"""The limit, the product, and what training code uses without it."""
PHASES: tuple[Phase, ...] = ("cold", "warm")
EPOCHS = 2
"""Warm epochs, after the cold one."""
FULL_SCALE = 0.105
"""The scale of the benchmark at which the three datasets are 700 MB together."""
SEED = 2024


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``scale`` 1 is about 700 MB. All files are made in a new directory below ``directory``, which is removed at the
    end unless ``keep`` is set."""

    scale: float = 1.0
    # Not /tmp, which is often a tmpfs: a cache in memory would show nothing.
    directory: Path = Path("/var/tmp")  # noqa: S108 - a new directory of mode 0700 is made in it
    keep: bool = False
    json_path: Path = Path("demo-results.json")
    picture_path: Path = Path("demo-results.png")


def bench_options(options: DemoOptions) -> Options:
    """Raises MissingPrerequisite for a scale out of range."""
    if not 0.001 <= options.scale <= 100:
        raise MissingPrerequisite(f"--scale {options.scale} is out of range: 0.001 to 100; 1 is about 700 MB")
    return Options(
        workloads=WORKLOADS,
        targets=TARGETS,
        phases=PHASES,
        sizes=Sizes(FULL_SCALE * options.scale, SEED),
        epochs=EPOCHS,
        repetitions=1,
        continuous=True,
        evict_own_files=True,
        directory=options.directory.absolute(),
        keep=options.keep,
    )


def dataset_bytes(options: Options) -> int:
    """About how much the datasets of all workloads take together."""
    return sum(ALL_WORKLOADS[name].dataset_bytes(options.sizes) for name in options.workloads)


def failures(results: Results) -> list[str]:
    """Why figures do not count, each reason once. A workload that a client has no loader for is not a failure."""
    readable = {
        (row.workload, row.target)
        for row in results.measurements
        if ALL_TARGETS[row.target].kind != "client" or row.target in ALL_WORKLOADS[row.workload].access
    }
    reasons = [
        f"{row.workload}, {row.target}, {row.phase}: {row.reason}"
        for row in invalid(results)
        if (row.workload, row.target) in readable
    ]
    return list(dict.fromkeys(reasons))
