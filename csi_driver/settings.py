"""All settings, by section. ``cli`` fills them from flags and environment; each part of the program gets its own
section and does not read the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DRIVER_NAME = "csi.hayloft.dev"

GIB = 1 << 30
MIB = 1 << 20


class Section(BaseModel):
    """Frozen; rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkStoreSettings(Section):
    """The cache on disk."""

    directory: Path
    limit_bytes: int = Field(default=0, ge=0, description="hard limit; 0: 90 % of the file system")
    free_floor_bytes: int = Field(default=GIB, ge=0, description="free space that is always left on the file system")
    high_watermark: float = Field(default=0.98, gt=0, le=1)
    """Share of the limit above which the background evicts, down to ``low_watermark``. High, because free space serves
    no hit; at 98 % of 1 TB another 20 GB can be written before a write has to wait for eviction."""
    low_watermark: float = Field(default=0.96, gt=0, le=1)

    @model_validator(mode="after")
    def _marks_in_order(self) -> Self:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark must not be above high_watermark")
        return self

    scrub_bytes_per_s: int = Field(default=16 * MIB, ge=0)
    """Bytes per second that the scrubber reads at most; 0: no scrubbing. It makes one pass a week: 16 MiB/s are 9.6 TiB
    in that time, and 1/200 of what an NVMe disk reads."""


class ReadingSettings(Section):
    """Fetching and readahead."""

    fetch_threads: int = Field(default=16, ge=1, le=256)
    """Bounds the connections to the store and, with the length of a fetch, the bytes in flight. S3 sends about 90 MB/s
    on each connection; more of them hide the latency of a distant store on a node with many cores."""
    small_fetches: int = Field(default=128, ge=8, le=1024)
    """Requests in flight for objects of up to 1 MiB from S3, all on one thread. S3 takes some tens of milliseconds for
    a small object, up to 200 (both by AWS): at 100 ms, 128 requests in flight are 1,280 objects a second."""
    small_object_bytes: int = Field(default=4 * MIB, ge=0)
    """Objects up to this size are fetched completely at OPEN, so that even their first read uses passthrough."""
    fetch_chunks: int = Field(default=8, ge=1, le=16)
    """Longest fetch of a sequential reader, in chunks of 1 MiB."""
    write_queue_bytes: int = Field(default=128 * MIB, ge=0)
    """Fetched bytes that may be pending in memory for a cache disk that is slower than the store; bytes beyond that are
    served and not cached. As much as 16 threads have in flight with fetches of 8 MiB."""
    readahead_fetches: int = Field(default=4, ge=0, le=64)
    """Long fetches ahead of a sequential reader. Four connections of 90 MB/s, which is what S3 sends on each, are 360
    MB/s for every reader; more of them made no reader faster on two cores."""
    warmup_fetches: int = Field(default=8, ge=1, le=64)
    """Fetches of warmups in flight, all volumes together: half as many as readers may have."""


class FuseSettings(Section):
    """FUSE mounts."""

    threads: int = Field(default=1, ge=1, le=64)
    """Threads that answer the kernel, for each mount. They hold the interpreter lock nearly all the time, so a second
    one slows both down: warm opens of small files were 25,600 a second with one, 15,200 with two, 13,300 with four.
    Work that blocks on disk or network runs on the fetch threads. With 1, mounts without opens (below) have no thread
    of their own: the event loop, which fetches small objects, reads their requests too."""
    passthrough: bool = True
    resend: bool = True
    """False: as on a kernel before 6.9, which cannot resend requests that a daemon read before it died."""
    openless: bool = True
    """Whether a dataset of small files is read without OPEN and RELEASE. Files in the page cache are then opened and
    read without a request: 49,200 to 74,800 files of 110 kB a second with four readers, where passthrough, with two
    requests for each file, gave 11,100 to 14,400 (same machine, alternating runs)."""
    read_ahead_kib: int = Field(default=4096, ge=128, le=65536)
    entry_timeout_s: int = Field(default=86_400, ge=0)


class RegistrySettings(Section):
    """The registry of volumes and manifests."""

    location: str
    """A directory, or a URL such as s3://bucket/prefix."""
    endpoint: str | None = None


class PolicySettings(Section):
    """What volumes may request."""

    allowed_endpoints: tuple[str, ...] = ()
    """Prefixes of the endpoint URLs that a volume may name; empty: any."""
    allow_file_urls: bool = False
    """Whether a volume may show directories of the node itself (``file://``). Off, because every user who may create a
    pod may write its volume attributes; ``all-in-one``, which serves one user on a laptop, enables it."""


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


class AllInOneSettings(Section):
    """``hayloft all-in-one``. Its two child processes get their settings as flags of their own commands."""

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
