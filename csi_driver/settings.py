"""All settings, by section. ``cli`` fills them from flags and environment; each part of the program gets its own
section and does not read the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from csi_driver.model.addresses import parse_network
from csi_driver.model.replica import Replica
from csi_driver.model.tenant import Tenant

GIB = 1 << 30
MIB = 1 << 20


class Section(BaseModel):
    """Frozen; rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkStoreSettings(Section):
    """The cache on disk."""

    directory: Path
    limit_bytes: int = Field(default=0, ge=0)
    """Hard limit; 0: 90 % of the file system, or less if the free floor leaves less."""
    free_floor_bytes: int | None = Field(default=None, ge=0)
    """Free space that is always left on the file system; None: as ``cache/free_floor.py`` determines it."""
    kubelet_directory: Path | None = None
    """Where this is on the same file system, or the container images are, the cache leaves more room."""
    standby: bool = False
    """Wait for the end of another daemon that uses the directory, and take over from it."""
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
    readahead_fetches: int = Field(default=12, ge=0, le=64)
    """Long fetches ahead of a sequential reader: as many as there are fetch threads, without those that are left to
    waiting reads. S3 sends 90 MB/s on a connection. Over 50 ms and 10 Gbit/s one reader gets 285 MB/s with 12, 252 with
    8 and 198 with 4; on loopback no less than with 4 (two cores)."""
    warmup_fetches: int = Field(default=16, ge=1, le=64)
    """Fetches of warmups in flight, all volumes together: as many as readers may have. Over 50 ms and 10 Gbit/s 1 GiB
    takes 2.8 s with 16 of a volume, and 6.3 s with 4; on loopback there is no difference (two cores)."""
    warmup_memory_percent: int = Field(default=50, ge=1, le=100)
    """Of the available memory, in percent: what warmups of ``warmup: memory`` may have in the page cache, all volumes
    together. The rest is for the programs that read: pages that are read in beyond what is free evict each other."""
    bandwidth_bytes: int = Field(default=0, ge=0)
    """Bytes a second that the node requests from stores, for readers and warmups of all volumes; 0: no limit."""


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
    """Whether a dataset of small files is read without OPEN and RELEASE: files in the page cache are then opened and
    read without a request, where passthrough has two for each file. ``io.open`` of Python sends one of its own."""
    read_ahead_kib: int = Field(default=4096, ge=128, le=65536)
    entry_timeout_s: int = Field(default=86_400, ge=0)


class RegistrySettings(Section):
    """The registry of volumes and manifests."""

    location: str
    """A directory, or a URL such as s3://bucket/prefix."""
    endpoint: str | None = None


def _check_network(text: str) -> str:
    try:
        parse_network(text)
    except ValueError:
        raise PydanticCustomError("network", "a network such as 10.1.0.0/16 or fd00:1::/64") from None
    return text


Network = Annotated[str, AfterValidator(_check_network)]

_NAMESPACE_URL = re.compile(r"(?:\*|[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)=(?:\*|[a-z][a-z0-9+.-]*://[^\s?#@]+)\Z")


def _check_namespace_url(text: str) -> str:
    if not _NAMESPACE_URL.match(text):
        raise PydanticCustomError(
            "namespace_url", "NAMESPACE=URL such as team-a=s3://team-a-data/train; each of the two may be *"
        )
    return text


NamespaceUrl = Annotated[str, AfterValidator(_check_namespace_url)]


class PolicySettings(Section):
    """What volumes may request."""

    allowed_endpoints: tuple[str, ...] = ()
    """Prefixes of the endpoint URLs that a volume may name; empty: any. A listed endpoint may have any address."""
    allow_file_urls: bool = False
    """Whether a volume may show directories of the node itself (``file://``). Off, because every user who may create a
    pod may write its volume attributes; ``all-in-one``, which serves one user on a laptop, enables it."""
    allowed_addresses: tuple[Network, ...] = ()
    """Networks such as 10.1.0.0/16 that an inline volume's endpoint may resolve to although they are not public."""
    refused_addresses: tuple[Network, ...] = ()
    """Networks that an inline volume's endpoint may not resolve to although they are public: of nodes and services that
    have public addresses. Private ones, and those of this pod, are refused without being listed."""
    identity_endpoints: tuple[str, ...] = ()
    """Prefixes of endpoint URLs, besides the provider's own service, that the node's own identity may be sent to.
    Empty: only signed requests to S3 may go elsewhere, for administrators; nothing that another could use again."""
    allowed_datasets: tuple[NamespaceUrl, ...] = ()
    """``NAMESPACE=URL``: what volumes of a namespace may name. Empty: anything. Else datasets and endpoints that a URL
    of their own namespace, or of ``*``, covers; the URL ``*`` covers all."""
    identity_namespaces: tuple[str, ...] = ()
    """Namespaces whose volumes may be read with the driver's own identity. Empty: claims of every namespace, and inline
    volumes of trusted ones. ``*``: every namespace, inline volumes included."""
    trusted_namespaces: tuple[str, ...] = ()
    """Namespaces whose inline volumes are treated as those that an administrator made: any address, the node's own
    identity, materialised views, no limits of inline volumes. ``*``: every namespace."""
    shared_cache_namespaces: tuple[str, ...] = ()
    """Namespaces whose volumes read cached bytes of each other's credentials without asking the store. ``*``: all."""
    access_check_age_s: float = Field(default=24 * 3600, ge=60)
    """How long the store's answer that a credential may read an object version is remembered."""
    inline_request_timeout_s: float = Field(default=60, ge=1)
    """The longest ``requestTimeout`` of an inline volume."""
    inline_deadline_s: float = Field(default=300, ge=1)
    """The longest ``deadline`` of an inline volume."""
    inline_reservation_bytes: int = Field(default=0, ge=0)
    """What the inline volumes of one namespace may reserve of the cache, all together."""
    inline_manifest_bytes: int = Field(default=GIB, ge=MIB)
    """The manifests of the mounted inline volumes of one namespace, all together: on disk, and mapped into the daemon.
    """
    registry: RegistrySettings | None = None
    """The driver's own registry, which no volume may show."""
    own_directories: tuple[Path, ...] = ()
    """The driver's own directories, which no volume may show."""

    def protecting(self, registry: RegistrySettings, *directories: Path) -> Self:
        """The same policy, for a process that uses this registry and these directories."""
        return self.model_copy(update={"registry": registry, "own_directories": (*self.own_directories, *directories)})

    def trusts(self, tenant: Tenant) -> bool:
        """Whether the author of the volume is trusted as an administrator is."""
        return not tenant.inline or _lists(self.trusted_namespaces, tenant.namespace)

    def lends_identity(self, tenant: Tenant) -> bool:
        """Whether the volume may be read with the driver's own identity."""
        if not self.identity_namespaces:
            return self.trusts(tenant)
        by_administrator = not tenant.inline and not tenant.namespace
        return by_administrator or _lists(self.identity_namespaces, tenant.namespace)

    def shares_cache(self, tenant: Tenant) -> bool:
        """Whether the volume reads cached bytes without the proof that its credential may read them."""
        return _lists(self.shared_cache_namespaces, tenant.namespace)


LEAST_MEMORY_BYTES = GIB // 4
"""Enough for 900,000 objects."""


class ListingSettings(Section):
    """Listings of datasets. Each runs in a process of its own."""

    processes: int = Field(default=8, ge=1, le=64)
    """Listings that run at a time."""
    of_one_namespace: int = Field(default=4, ge=1)
    """At the most; the more listings run, the fewer (``volumes/listing_admission.py``)."""
    of_one_store: int = Field(default=6, ge=1)
    """Of one endpoint and bucket; one namespace has at most half of them."""
    deadline_s: float = Field(default=900, ge=1)
    """The longest time of one listing; the time-outs of callers are shorter as a rule."""
    objects: int = Field(default=20_000_000, ge=1)
    """The most objects that a store may list. While they are listed, 20 million take about 4 GB of the disk of the
    manifests (210 bytes each)."""
    page_bytes: int = Field(default=32 * MIB, ge=MIB)
    """The longest page of a listing, after decompression. A page of 1,000 keys has about 400 KB, 3 MB at the most."""
    memory_bytes: int = Field(default=8 * GIB, ge=LEAST_MEMORY_BYTES)
    """Private writable memory of the process of a listing beyond what it has at its start; less while less is
    available."""


def _lists(namespaces: tuple[str, ...], namespace: str) -> bool:
    return "*" in namespaces or (bool(namespace) and namespace in namespaces)


MOST_METRICS_VOLUMES = 4096
"""Ten metrics of each, and a scrape of them takes a second."""


class TierSettings(Section):
    """The cluster's cache, which nodes ask before the bucket. Without replicas and service there is none."""

    replicas: tuple[Replica, ...] = ()
    """A fixed list."""
    service: str = ""
    """``namespace/name`` of a headless Service, whose EndpointSlices list the replicas."""
    key_file: Path | None = None
    """At least 32 random bytes, the same on all nodes: they name what is cached, and sign requests without TLS."""
    ca_file: Path | None = None
    """The authority of the replicas' certificates. None: plain HTTP."""
    certificate_file: Path | None = None
    """Of this node, with its key in ``certificate_key_file``."""
    certificate_key_file: Path | None = None
    server_name: str = ""
    """In the replicas' certificate; empty: the host of each."""
    replica_bytes: int = Field(default=0, ge=0)
    """What each replica can hold; 0: not known."""
    zone: str = ""
    """Of this node."""
    cross_zone: bool = False
    """Whether replicas of another zone are asked before the bucket."""
    timeout_s: float = Field(default=10.0, gt=0)
    """A replica that has sent no byte for so long has failed."""

    @property
    def enabled(self) -> bool:
        """Whether there is one."""
        return bool(self.replicas or self.service)


class CacheDaemonSettings(Section):
    """``hayloft cache``."""

    socket: Path
    state_directory: Path
    keeper_socket: Path | None = None
    metrics_port: int = Field(default=0, ge=0, le=65535)
    metrics_address: str = "::"
    """An IPv4 or IPv6 address; ``::`` is all of both: Prometheus scrapes pods from elsewhere."""
    metrics_volumes: int = Field(default=128, ge=0, le=MOST_METRICS_VOLUMES)
    """Volumes that the metrics tell apart; others are added up. 128: more than the pods that kubelet allows on a node
    by default. 0: none is named."""
    health_port: int = Field(default=0, ge=0, le=65535)
    """Of /healthz and /readyz; 0: none."""
    web_port: int = Field(default=0, ge=0, le=65535)
    """Of the web page, on loopback; 0: none."""
    chunk_store: ChunkStoreSettings
    reading: ReadingSettings = ReadingSettings()
    fuse: FuseSettings = FuseSettings()
    registry: RegistrySettings
    policy: PolicySettings = PolicySettings()
    listing: ListingSettings = ListingSettings()
    tier: TierSettings = TierSettings()

    @property
    def volume_policy(self) -> PolicySettings:
        """The policy, which also protects what this daemon stores itself."""
        return self.policy.protecting(self.registry, self.state_directory, self.chunk_store.directory)


class CacheCapacity(Section):
    """The size of the cache of each node in a topology, as the operator names it."""

    size_bytes: int = Field(ge=1)
    topology: dict[str, str] = {}
    """Segments such as ``topology.kubernetes.io/zone``; none: all nodes that no other one names."""


class ControllerSettings(Section):
    """``hayloft controller``."""

    endpoint: str
    registry: RegistrySettings
    policy: PolicySettings = PolicySettings()
    listing: ListingSettings = ListingSettings()
    cache_capacities: tuple[CacheCapacity, ...] = ()
    """Reported by GetCapacity; none: the driver does not claim that call."""
    health_port: int = Field(default=0, ge=0, le=65535)
    """Of /healthz and /readyz; 0: none."""


class AllInOneSettings(Section):
    """``hayloft all-in-one``. Its two child processes get their settings as flags of their own commands."""

    endpoint: str
    node_id: str
    registry_directory: Path
    cache_directory: Path
    kubelet_directory: Path | None = None
    policy: PolicySettings = PolicySettings(allow_file_urls=True, trusted_namespaces=("*",))
    cache_arguments: tuple[str, ...] = ()
    """Further arguments of ``hayloft cache``."""
    child_arguments: tuple[str, ...] = ()
    """Further arguments of both children, such as those for logging."""
