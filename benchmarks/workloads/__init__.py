"""The workloads: what training reads, one file each."""

from __future__ import annotations

from benchmarks.model import Workload
from benchmarks.workloads.checkpoint import Checkpoint
from benchmarks.workloads.cosmoflow import CosmoFlow
from benchmarks.workloads.imagenet import ImageNet
from benchmarks.workloads.metadata import Metadata
from benchmarks.workloads.parquet import Parquet
from benchmarks.workloads.raw import Long, Shards, Shared, Small
from benchmarks.workloads.retinanet import RetinaNet
from benchmarks.workloads.tokens import Tokens
from benchmarks.workloads.unet3d import UNet3D
from benchmarks.workloads.webdataset import WebDataset

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
