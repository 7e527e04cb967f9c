"""The workloads: the datasets that training reads and the order in which it reads them, one file each. ``WORKLOADS``
holds them by name; a workload writes its dataset from a seed and gives each reader process its share of an epoch."""

from __future__ import annotations

from hayloft_bench.results.model import Workload
from hayloft_bench.workloads.checkpoint import Checkpoint
from hayloft_bench.workloads.cosmoflow import CosmoFlow
from hayloft_bench.workloads.imagenet import ImageNet
from hayloft_bench.workloads.metadata import Metadata
from hayloft_bench.workloads.on_a_node import ModelLoad, Warm, WarmLarge, WarmSmall, WebLarge, WebSmall
from hayloft_bench.workloads.parquet import Parquet
from hayloft_bench.workloads.plain_reads import LongReads, ShardReads, SharedReads, SmallReads
from hayloft_bench.workloads.retinanet import RetinaNet
from hayloft_bench.workloads.tenants import Tenants
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
    LongReads(),
    ShardReads(),
    SmallReads(),
    SharedReads(),
    Tenants(),
    Warm(),
    WarmLarge(),
    WarmSmall(),
    WebLarge(),
    WebSmall(),
    ModelLoad(),
)

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _ALL}
