"""The tables of ``docs/which-storage.md``: what a dataset costs a month and an epoch, of the prices in
``storage_prices.toml`` and of requests and rates that a kept run of the benchmark has measured."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from hayloft_bench.results import files
from hayloft_bench.results.model import Measurement

PRICES = Path("tools/storage_prices.toml")
RUN = Path("benchmarks/results/training")

DATASET_GB = 1000.0
NODES = 8
WORKLOADS = {"imagenet": "images of 110 kB, a file each", "webdataset": "shards of images, read in order"}
_NOT_FOUND = "not found"
_UNMEASURED = "not measured here"


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a kept run: requests for each GB of the dataset in a first epoch, and rates."""

    requests_per_gb: float
    cold_mb_s: float
    warm_mb_s: float | None


def table(repository: Path) -> str:
    """What a month and an epoch cost."""
    prices = tomllib.loads((repository / PRICES).read_text())
    with_hayloft = {workload: measured(repository, workload, "hayloft") for workload in WORKLOADS}
    clients = {workload: measured(repository, workload, "boto3") for workload in WORKLOADS}
    s3 = prices["s3"]
    month = s3["per_gb_month"] * DATASET_GB
    first = {name: _gets(one, s3) for name, one in with_hayloft.items()}
    each = {name: NODES * _gets(one, s3) for name, one in clients.items()}
    rows = [
        ("S3 + Hayloft", _money(month), _pair({k: NODES * v for k, v in first.items()}), "0", "bucket, once for all"),
        (
            "S3 + Hayloft with the cluster's cache",
            f"{_money(month)}, and the disks of the replicas",
            _pair(first),
            "0",
            "the same",
        ),
        (
            "S3 by a client without a cache (boto3)",
            _money(month),
            *[_pair(each)] * 2,
            "bucket",
        ),
        _copied(prices["gp3"], NODES, "a volume for each node; only one node may write"),
        _metered(prices["efs"]),
        _copied(prices["fsx"], 1, "one file system for all; at least 1,200 GB"),
        _copied(prices["instance_store"], NODES, "a copy on each node, gone with the node"),
    ]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    head = "| storage | a month | the first epoch | each further epoch | what is paid for |\n|---|---|---|---|---|\n"
    return f"{_caption(prices)}\n\n{head}{lines}"


def rates(repository: Path) -> str:
    """What was measured, and what is to be measured elsewhere."""
    lines = ["| storage | workload | first epoch | later epochs |\n|---|---|---|---|\n"]
    for target, name in (("hayloft", "S3 + Hayloft"), ("boto3", "S3 by boto3"), ("plain", "a local disk")):
        for workload, text in WORKLOADS.items():
            one = measured(repository, workload, target)
            later = one.cold_mb_s if target == "boto3" else one.warm_mb_s
            lines.append(f"| {name} | {text} | {one.cold_mb_s:.0f} MB/s | {later or 0:.0f} MB/s |\n")
    for name, mount in (("EBS gp3", "/mnt/gp3"), ("EFS", "/mnt/efs"), ("FSx for Lustre", "/mnt/fsx")):
        command = f"`hayloft bench run --path {mount} --workloads imagenet,webdataset --phases warm,hot`"
        lines.append(f"| {name} | both | {_UNMEASURED} | {command} |\n")
    return "".join(lines)


def sources(repository: Path) -> str:
    """Where each price is from."""
    prices = tomllib.loads((repository / PRICES).read_text())
    rows = [
        f"| {one['name']} | {_listed(one)} | {one.get('missing', '')} | {one['source']} |\n"
        for one in prices.values()
        if isinstance(one, dict)
    ]
    return "".join(["| storage | prices | not found | page |\n|---|---|---|---|\n", *rows])


def measured(repository: Path, workload: str, target: str) -> Measured:
    """Medians of the kept run."""
    found = [row for row in _rows(repository) if (row.workload, row.target) == (workload, target) and row.valid]
    cold = [row for row in found if row.phase == "cold"]
    warm = [row.bytes_per_s / 1e6 for row in found if row.phase == "warm" and row.bytes_per_s]
    requests = [row.origin_requests / row.dataset_bytes * 1e9 for row in cold if row.origin_requests]
    return Measured(
        median(requests) if requests else 0.0,
        median([row.bytes_per_s / 1e6 for row in cold if row.bytes_per_s]),
        median(warm) if warm else None,
    )


@cache
def _rows(repository: Path) -> Sequence[Measurement]:
    return files.read(repository / RUN).measurements


def _gets(one: Measured, price: dict[str, Any]) -> float:
    return float(one.requests_per_gb * DATASET_GB / 1000 * price["per_1000_get"])


def _copied(price: dict[str, Any], copies: int, paid: str) -> tuple[str, str, str, str, str]:
    """Capacity is paid for, and reads are not."""
    month = _money(price["per_gb_month"] * DATASET_GB * copies) if "per_gb_month" in price else _NOT_FOUND
    return price["name"], month, "0", "0", paid


def _metered(price: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Reads are paid by the byte."""
    read = _money(price["per_gb_read"] * DATASET_GB * NODES)
    return price["name"], _money(price["per_gb_month"] * DATASET_GB), read, read, "capacity and bytes read"


def _listed(price: dict[str, Any]) -> str:
    units = {"per_gb_month": "a GB and month", "per_1000_get": "1,000 GET", "per_gb_read": "a GB read"}
    return ", ".join(f"{price[key]:g} for {unit}" for key, unit in units.items() if key in price) or "none"


def _caption(prices: dict[str, Any]) -> str:
    return (
        f"{prices['currency']}, at list prices of {prices['region']} that were looked up on {prices['looked_up']}; "
        f"{DATASET_GB:,.0f} GB, {NODES} nodes that each read all of it in every epoch. Two figures: images as files, "
        "and in shards."
    )


def _pair(values: dict[str, float]) -> str:
    return " / ".join(_money(values[name]) for name in WORKLOADS)


def _money(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"
