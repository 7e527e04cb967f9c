"""The one table at the end, and two sentences that read it."""

from __future__ import annotations

from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hayloft_bench.demo.results import Phase, Results, Row
from hayloft_bench.demo.workloads import WORKLOADS

TARGETS = ("local", "hayloft", "boto3", "s3fs")
"""The limit first, then the product, then what people use without it."""

TARGET_TITLES = {"local": "local files", "hayloft": "Hayloft", "boto3": "boto3", "s3fs": "s3fs"}
WORKLOAD_TITLES = {"images": "images", "tar": "tar shards", "parquet": "Parquet"}


def results_table(results: Results) -> Table:
    """Workload × target; speeds of the cold and the warm epochs, and how they compare with plain local files."""
    table = Table(title="One dataset, read epoch by epoch", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("workload", "read from"):
        table.add_column(heading, no_wrap=True)
    headings = ("cold\nMB/s", "warm\nMB/s", "warm\nsamples/s", "× local\nwarm", "p99 warm\nms")
    for heading in (*headings, "store MB\ncold", "store MB\nwarm epoch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for workload in WORKLOADS:
        for target in TARGETS:
            if results.of(workload, target, "cold"):
                style = "bold" if target == "hayloft" else None
                table.add_row(*_cells(results, workload, target), style=style)
        table.add_section()
    return table


def _cells(results: Results, workload: str, target: str) -> tuple[str, ...]:
    warm = results.of(workload, target, "warm")
    return (
        f"{WORKLOAD_TITLES[workload]}" if target == TARGETS[0] else "",
        TARGET_TITLES[target],
        _number(results.rate(workload, target, "cold") / 1e6),
        _number(results.rate(workload, target, "warm") / 1e6),
        _number(median(row.samples_per_s for row in warm)) if warm else "",
        ratio_text(results.times(workload, target, "warm", "local")),
        f"{median(row.p99_ms for row in warm):,.2f}" if warm else "",
        _origin(results, workload, target, "cold"),
        _origin(results, workload, target, "warm"),
    )


def _origin(results: Results, workload: str, target: str, phase: Phase) -> str:
    rows: list[Row] = results.of(workload, target, phase)
    if not rows or target == "local":
        return "–"
    return _number(sum(row.origin_bytes for row in rows) / len(rows) / 1e6)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:,.1f}"


def ratio_text(value: float) -> str:
    """Two digits that say something: 0.94, 0.012."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def sentences(results: Results) -> tuple[str, str]:
    """What the table says, in words."""
    cold = (
        f"In the first epoch Hayloft took {results.origin_share('hayloft', 'cold'):.2f} bytes from the store for each "
        f"byte it was asked for; in the later ones {results.origin_share('hayloft', 'warm'):.2f}, while boto3 and s3fs "
        f"took {results.origin_share('boto3', 'warm'):.2f} and {results.origin_share('s3fs', 'warm'):.2f} again in "
        "every epoch."
    )
    warm = (
        f"A warm epoch through Hayloft takes {results.seconds('hayloft', 'warm'):.2f} s where plain local files take "
        f"{results.seconds('local', 'warm'):.2f} s, boto3 {results.seconds('boto3', 'warm'):.1f} s and s3fs "
        f"{results.seconds('s3fs', 'warm'):.1f} s; its images come "
        f"{results.times('images', 'hayloft', 'warm', 'boto3'):.0f} times as fast as by boto3, and the training code "
        "opens plain files."
    )
    return cold, warm
