"""All settings, defined once, by section. ``cli.py`` fills them from flags and environment; each part of the
program gets its own section and reads no environment itself."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DRIVER_NAME = "csi.hayloft.dev"

GIB = 1 << 30
MIB = 1 << 20


class Section(BaseModel):
    """A frozen section that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkStoreSettings(Section):
    """The cache on disk."""

    directory: Path
    limit_bytes: int = Field(default=0, ge=0, description="hard limit; 0: 90 % of the file system")
    free_floor_bytes: int = Field(default=GIB, ge=0, description="free space that is always left on the file system")
    high_watermark: float = Field(default=0.98, gt=0, le=1)
    """Share of the limit from which room is made in the background, down to ``low_watermark``. High, because what is
    left free hits nothing; at 98 % of 1 TB there are 20 GB left to be written before a write has to wait for room."""
    low_watermark: float = Field(default=0.96, gt=0, le=1)

    @model_validator(mode="after")
    def _marks_in_order(self) -> Self:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark must not be above high_watermark")
        return self

    scrub_rate_bytes: int = Field(default=16 * MIB, ge=0)
    """How fast the scrubber reads, in bytes a second; 0: never. One pass a week: 16 MiB/s are 9.6 TiB in that time, and
    a two-hundredth of what an NVMe disk reads."""


class ReadingSettings(Section):
    """Fetching and readahead."""

    fetch_threads: int = Field(default=16, ge=1, le=256)
    """Bounds the connections to the store and, with the size of a piece, the memory in flight. S3 gives about
    90 MB/s to each; more of them hide the latency of a distant store on a node with many cores."""
    small_fetches: int = Field(default=128, ge=8, le=1024)
    """Requests under way for objects of up to 1 MiB from S3, which need no thread each. S3 takes some tens
    of milliseconds for a small object, up to 200 (AWS says both): at 100 ms, 128 of them are 1,280 objects a second."""
    small_object_bytes: int = Field(default=4 * MIB, ge=0)
    """Objects up to this size are fetched whole at OPEN, so that their first read is passed through already."""
    fetch_chunks: int = Field(default=8, ge=1, le=16)
    """Longest fetch of a sequential reader, in chunks of 1 MiB."""
    write_queue_bytes: int = Field(default=128 * MIB, ge=0)
    """Fetched bytes that may wait in memory for a cache disk that is slower than the store; what comes beyond that is
    served and not cached. As much as 16 threads have in flight with fetches of 8 MiB."""
    readahead_fetches: int = Field(default=4, ge=0, le=64)
    """How many long fetches a sequential reader is kept ahead. Four connections of 90 MB/s, which is what S3 gives
    each, are 360 MB/s for every reader; more of them on two cores only got in each other's way."""
    warmup_fetches: int = Field(default=8, ge=1, le=64)
    """How many fetches of warmups run at a time, all volumes together: half as many as readers may have."""


class FuseSettings(Section):
    """The kernel side."""

    threads: int = Field(default=1, ge=1, le=64)
    """Threads that answer the kernel, for each mount. They need the interpreter for nearly all they do, so that two get
    in each other's way: warm opens of small files were 25,600 a second with one, 15,200 with two, 13,300 with four.
    What would wait for the disk or the network is done by the threads that fetch. Where one suffices, datasets without
    opens (below) have none of their own: the thread that fetches small objects reads their requests too."""
    passthrough: bool = True
    resend: bool = True
    """False: as on a kernel before 6.9, which cannot send again what a daemon that died had read."""
    openless: bool = True
    """Whether a dataset of small files is read without OPEN and RELEASE. What is in the page cache is then opened and
    read without a request: 49,200 to 74,800 files of 110 kB a second with four readers, where passthrough, with two
    requests for each, gave 11,100 to 14,400 (same machine, runs in turns)."""
    read_ahead_kib: int = Field(default=4096, ge=128, le=65536)
    entry_timeout_s: int = Field(default=86_400, ge=0)


class RegistrySettings(Section):
    """Where volumes and manifests are recorded."""

    location: str
    """A directory, or a URL such as s3://bucket/prefix."""
    endpoint: str | None = None


class PolicySettings(Section):
    """What the operator allows volumes to ask for."""

    allowed_endpoints: tuple[str, ...] = ()
    """Prefixes of endpoint URLs a volume may name; empty: any."""
    allow_file_urls: bool = False
    """Whether a volume may show directories of the node itself (``file://``). Off, because whoever may create a pod
    may write its volume attributes; ``all-in-one``, which serves one person on a laptop, switches it on."""


class CacheDaemonSettings(Section):
    """``hayloft cache``."""

    socket: Path
    state_directory: Path
    keeper_socket: Path | None = None
    metrics_port: int = Field(default=0, ge=0, le=65535)
    chunk_store: ChunkStoreSettings
    reading: ReadingSettings = ReadingSettings()
    fuse: FuseSettings = FuseSettings()
    registry: RegistrySettings
    policy: PolicySettings = PolicySettings()


class NodeSettings(Section):
    """``hayloft node``."""

    endpoint: str
    node_id: str
    daemon_socket: Path
    kubelet_directory: Path | None = None
    """If set, staging and target paths must lie below it."""


class ControllerSettings(Section):
    """``hayloft controller``."""

    endpoint: str
    registry: RegistrySettings
    policy: PolicySettings = PolicySettings()


class KeeperSettings(Section):
    """``hayloft keeper``."""

    socket: Path


class AllInOneSettings(Section):
    """``hayloft all-in-one``. What it gives its two child processes are flags of their own commands."""

    endpoint: str
    node_id: str
    registry_directory: Path
    cache_directory: Path
    kubelet_directory: Path | None = None
    policy: PolicySettings = PolicySettings(allow_file_urls=True)
    cache_arguments: tuple[str, ...] = ()
    """Further arguments of ``hayloft cache``."""
    child_arguments: tuple[str, ...] = ()
    """Further arguments of both children, such as those for logging."""
