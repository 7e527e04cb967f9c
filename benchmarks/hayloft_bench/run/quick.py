"""``--quick``: a useful subset in less than five minutes on two cores, of what is installed."""

from __future__ import annotations

from dataclasses import replace

from hayloft_bench.results.model import Phase
from hayloft_bench.run.options import WITH_ROUNDS, Options

SCALE = 0.03
WORKLOADS = ("imagenet", "webdataset")
"""Small files, and large ones from front to back."""
TARGETS = ("plain", "hayloft", "juicefs", "rclone", "boto3")
PHASES: tuple[Phase, ...] = ("cold", "warm", "hot")
REPETITIONS = 3
EPOCHS = 1
BUDGET_S = 265.0
"""Leaves half a minute for a last repetition that is slower than the ones before, and for the report."""


def quick(options: Options, *, workloads: bool, targets: bool, phases: bool) -> Options:
    """The options, with those that were not given (False) replaced by small ones; sizes, repetitions and epochs always
    are."""
    own = workloads and WITH_ROUNDS.issuperset(options.workloads)  # whose targets are chosen already
    return replace(
        options,
        workloads=options.workloads if workloads else WORKLOADS,
        targets=options.targets if targets or own else TARGETS,
        phases=options.phases if phases else PHASES,
        sizes=replace(options.sizes, scale=SCALE * options.sizes.scale),
        repetitions=REPETITIONS,
        epochs=EPOCHS,
        budget_s=BUDGET_S,
    )
