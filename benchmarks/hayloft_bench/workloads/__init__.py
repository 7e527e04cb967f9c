"""The workloads: what training reads, one file each."""

from __future__ import annotations

from hayloft_bench.results.model import Workload
from hayloft_bench.workloads.checkpoint import Checkpoint
from hayloft_bench.workloads.cosmoflow import CosmoFlow
from hayloft_bench.workloads.imagenet import ImageNet
from hayloft_bench.workloads.metadata import Metadata
from hayloft_bench.workloads.parquet import Parquet
from hayloft_bench.workloads.raw import Long, Shards, Shared, Small
from hayloft_bench.workloads.retinanet import RetinaNet
from hayloft_bench.workloads.tokens import Tokens
from hayloft_bench.workloads.unet3d import UNet3D
from hayloft_bench.workloads.webdataset import WebDataset

_ALL: tuple[Workload, ...] = (
    ImageNet(),
    RetinaNet(),
    WebDataset(),
    Parquet(),
    Tokens(),
    UNet3D(),
    CosmoFlow(),
    Checkpoint(),
    Metadata(),
    Long(),
    Shards(),
    Small(),
    Shared(),
)

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _ALL}
