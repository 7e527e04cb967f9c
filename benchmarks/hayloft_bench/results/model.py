"""The terms of the benchmark: workloads, targets, phases, and the row that every measurement becomes.

A *workload* says what training reads and with which loader. A *target* is a way to the dataset: a directory (mounted
or plain) or a client of the store. A *phase* is the state of all caches when the clock starts. One *measurement* is
one epoch of one workload, through one target, in one phase, in one repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

SCHEMA_VERSION = 1
ALL_RANKS = -1
"""The ``rank`` of a row for all ranks together."""

Phase = Literal["cold", "warm", "hot", "small-cache", "restart"]
"""cold: nothing is cached but in the store. warm: on the node's disk, page cache dropped. hot: in the page cache.
small-cache: the cache holds half of the dataset. restart: hot, and the daemon is killed and started meanwhile."""

PHASES: tuple[Phase, ...] = ("cold", "warm", "hot", "small-cache", "restart")


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """One file of a dataset: its path below the dataset's root, size and checksum."""

    path: str
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An emulated accelerator: MLPerf Storage's model of training, where computing is a sleep."""

    name: str
    samples_per_batch: int
    compute_s: float
    """How long one batch keeps it busy."""
    threshold: float
    """The least utilisation that counts as fed: compute time ÷ time of the epoch."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large: ``scale`` 1 is the full size for one node."""

    scale: float
    seed: int
    readers: int | None = None
    """Reader processes; None: as many as the workload has."""


class Workload(Protocol):
    """What training reads. One module each in ``hayloft_bench.workloads``; no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    readers: ClassVar[int]
    """Reader processes by default."""
    reads_whole_files: ClassVar[bool]
    """Whether one epoch needs every byte of the dataset: its origin bytes are then compared with the dataset's."""
    needs: ClassVar[tuple[str, ...]]
    """Packages that its loader imports; where one is missing, the workload is marked with that reason."""
    access: ClassVar[frozenset[str]]
    """Kinds of access its loader can use, of ``directory``, ``boto3``, ``s3fs``, ``obstore``, ``s3torchconnector``."""
    accelerator: ClassVar[Accelerator | None]

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        """Writes the dataset, the same bytes for the same sizes. Files that are missing or differ are made again."""
        ...

    def dataset_bytes(self, sizes: Sizes) -> int:
        """About how much ``make`` will write: checked against the disk before it begins."""
        ...

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        """What each reader process of this node reads in that epoch. A pure function."""
        ...

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        """Bytes that one epoch needs of the store: the denominator of read amplification."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one reader process: ``job`` is ``module:function``, called in that process with ``arguments`` and
    the access to the dataset (see ``Access``) under the key ``access``."""

    job: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Access:
    """How a reader reaches the dataset. ``directory``: ``root``. Clients: endpoint, bucket, prefix and keys."""

    kind: str
    root: str = ""
    endpoint: str = ""
    bucket: str = ""
    prefix: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the reader processes of one node did between the first start and the last end."""

    seconds: float
    read_bytes: int
    samples: int
    first_batch_s: float
    """From the start to the first batch that the slowest reader had."""
    sample_latencies_s: Sequence[float] = field(repr=False)
    batch_latencies_s: Sequence[float] = field(repr=False)
    reader_cpu_s: float
    """User and system time of the reader processes."""
    reader_peak_bytes: int
    """Largest resident memory of one reader process."""
    wrong: Sequence[str] = ()
    """Reads that differ from the dataset: path and range. If there are any, the measurement is invalid."""
    checked: int = 0
    """Samples whose bytes were compared."""
    steady: Sequence[tuple[float, int]] = field(default=(), repr=False)
    """Of each reader: seconds from its first batch to its end, and its samples in all."""
    block_read_bytes: int | None = None
    """Bytes that the kernel read from disks for the readers; None where it does not count them."""


@dataclass(frozen=True, slots=True)
class TargetUsage:
    """Resources that the target's own processes have used since their start, and its cache."""

    cpu_s: float = 0.0
    peak_bytes: int = 0
    cache_bytes: int = 0
    block_read_bytes: int | None = 0
    """Bytes that the kernel read from disks for its processes; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the results. Times in seconds, sizes in bytes, ``None`` where it does not apply."""

    schema: int
    run_id: str
    workload: str
    target: str
    phase: Phase
    epoch: int
    repetition: int
    rank: int
    """Of the node or process that measured it; ``ALL_RANKS`` in the row for all of them."""
    ranks: int
    readers: int
    valid: bool
    reason: str
    """Why it is not valid, or why there is no figure at all; empty otherwise."""
    started_at: float
    """Seconds since 1970."""
    dataset_id: str
    """Hash over paths, sizes and checksums: figures of different datasets are never compared."""
    dataset_bytes: int
    seconds: float | None = None
    bytes: int | None = None
    samples: int | None = None
    samples_per_s: float | None = None
    bytes_per_s: float | None = None
    first_batch_s: float | None = None
    sample_p50_s: float | None = None
    sample_p95_s: float | None = None
    sample_p99_s: float | None = None
    batch_p50_s: float | None = None
    batch_p95_s: float | None = None
    batch_p99_s: float | None = None
    sample_latencies_s: tuple[float, ...] = ()
    """At most 200 quantiles of the latency of a sample, evenly spaced: enough to draw its distribution."""
    accelerator: str = ""
    accelerators: int | None = None
    """How many accelerators were emulated in this measurement; None: none, as fast as it goes."""
    utilisation: float | None = None
    cpu_reader_s: float | None = None
    cpu_target_s: float | None = None
    cpu_s_per_gb: float | None = None
    peak_reader_bytes: int | None = None
    peak_target_bytes: int | None = None
    origin_bytes: int | None = None
    origin_requests: int | None = None
    read_amplification: float | None = None
    """Bytes from the origin ÷ bytes that the epoch needs."""
    hit_ratio: float | None = None
    """1 minus bytes from the origin ÷ bytes read, at least 0."""
    money_per_epoch: float | None = None
    """In the currency of the price list: requests and bytes from the origin."""
    attack: str = ""
    """What another tenant did meanwhile (``results/tenants.py``); empty for all other workloads."""
    part: str = ""
    """The part of the dataset that was read; empty: all of it."""
    control: bool = False
    """Whether it was read from a daemon that was not attacked, on the same machine at the same time."""
    mount_s: float | None = None
    unmount_s: float | None = None
    attack_calls_per_s: float | None = None
    attack_requests_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a run, and all versions."""

    kernel: str
    processors: int
    memory_bytes: int
    python: str
    versions: dict[str, str]
    """Of Hayloft, of every target, and of every package that a loader used."""
    network: str = "loopback"
    """How the path to the store was shaped."""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """The name of a target in reports, and what it is compared as."""

    title: str
    kind: Literal["limit", "hayloft", "mount", "client", "path"]
    version: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """Facts about a workload that its figures are judged by."""

    title: str
    reads_whole_files: bool
    threshold: float | None = None
    """The least utilisation of its accelerator that counts as fed; None: it has no accelerator."""


@dataclass(frozen=True, slots=True)
class Results:
    """All of a run: ``results.parquet``."""

    schema: int
    run_id: str
    command: tuple[str, ...]
    sizes: Sizes
    machine: Machine
    settings: dict[str, dict[str, str]]
    """Per target: each setting, and why it is set."""
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    """Notes for the reader of the figures: noise, what was left out and why."""
    targets: dict[str, TargetFacts] = field(default_factory=dict)
    """By name; a target that is missing here is judged by its name (``row_selection.py``)."""
    workloads: dict[str, WorkloadFacts] = field(default_factory=dict)
    """By name."""


class Target(Protocol):
    """A way to the dataset. One module each in ``hayloft_bench.targets``."""

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Literal["limit", "hayloft", "mount", "client", "path"]]
    settings: ClassVar[dict[str, str]]
    phases: ClassVar[frozenset[Phase]]
    """Phases it can be brought into: a client without a cache is always cold."""

    copies: ClassVar[int]
    """How often the dataset is on the node's disk because of it: in its cache, and in a format of its own."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot be used on this machine, with the remedy; None if it can."""
        ...

    @property
    def version(self) -> str:
        """Of the program or package."""
        ...

    def set_up(self) -> None:
        """Once, before the first start: for example, writes the dataset in a format of its own."""
        ...

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        """Starts it with the present content of its cache."""
        ...

    def clear(self) -> None:
        """Removes everything it cached. It must not run."""
        ...

    def restart_daemon(self) -> None:
        """Kills its daemon with SIGKILL and starts another, while readers read. Raises ProcessFailed."""
        ...

    def usage(self) -> TargetUsage:
        """CPU and memory of its processes so far."""
        ...

    def log_end(self) -> str:
        """The last lines that its processes wrote; empty if there are none."""
        ...

    def stop(self) -> None:
        """Unmounts, and ends its processes; harmless when it does not run."""
        ...
