"""The flags of the commands, each defined once. Every flag can also be set in the environment: ``--cache-dir`` is
``HAYLOFT_CACHE_DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from csi_driver.cli.flag import Flag, Positional


def _flag(flag: str, text: str, *, panel: str | None = None, hidden: bool = False) -> Flag:
    variable = "HAYLOFT_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return Flag(flag, text, variable, panel, hidden)


Endpoint = Annotated[str, _flag("--endpoint", "Socket of the CSI services, such as unix:///csi/csi.sock.")]
NodeId = Annotated[str, _flag("--node-id", "Name of this node in the cluster.")]
NodeName = Annotated[str, _flag("--node-name", "Name of this node, for the lines of the log.")]
OwnDaemonSocket = Annotated[
    Path | None,
    _flag("--daemon-socket", "Socket of `hayloft cache`; without it, that of the one daemon on this machine."),
]
DaemonSocket = Annotated[Path, _flag("--daemon-socket", "Socket of `hayloft cache` on this node.")]
Socket = Annotated[Path, _flag("--socket", "Socket to serve on; it gets mode 0600.")]
DaemonTimeout = Annotated[
    str,
    _flag(
        "--daemon-timeout",
        "How long mounts are held for a cache daemon that is away; then their readers get an error. 0: without limit.",
    ),
]
KeeperSocket = Annotated[
    Path | None, _flag("--keeper-socket", "Socket of `hayloft keeper`; without it all mounts end with the daemon.")
]
KubeletDirectory = Annotated[
    Path | None, _flag("--kubelet-dir", "Kubelet's directory; paths outside of it are refused.")
]
KubeletDirectoryOfNode = Annotated[
    Path, _flag("--kubelet-dir", "Kubelet's directory; where the cache is on its disk, it leaves room for kubelet.")
]
Supervise = Annotated[
    bool,
    _flag(
        "--supervise/--no-supervise",
        "Run the daemon as a child of a small process that starts it again at once when it dies.",
    ),
]
Standby = Annotated[
    bool,
    _flag(
        "--standby/--no-standby",
        "If another process serves already, wait until it ends, and take over, instead of refusing to start.",
    ),
]
StateDirectory = Annotated[Path, _flag("--state-dir", "Directory for manifests and open tables.")]
CacheDirectory = Annotated[Path, _flag("--cache-dir", "Existing directory for cached bytes, on a local disk.")]
CacheLimit = Annotated[
    str, _flag("--cache-limit", "Limit of the cache: 500GiB, 2TB, or a share of the disk such as 80%.")
]
FreeFloor = Annotated[
    str,
    _flag(
        "--free-floor",
        "Free space that the cache always leaves on the disk: 10GiB, 5%. auto: 1 GiB, or 20% beside kubelet or images.",
    ),
]
ScrubRate = Annotated[
    str, _flag("--scrub-rate", "Bandwidth limit of the weekly check of cached files, in bytes a second; 0: no check.")
]
CacheHighWatermark = Annotated[
    str, _flag("--cache-high-watermark", "Share of the limit at which background eviction starts.")
]
CacheLowWatermark = Annotated[
    str, _flag("--cache-low-watermark", "Share of the limit down to which background eviction evicts.")
]
Registry = Annotated[
    str, _flag("--registry", "Directory, or URL such as s3://bucket/prefix, where volumes are recorded.")
]
RegistryEndpoint = Annotated[
    str | None, _flag("--registry-endpoint", "Base URL of the registry's S3 service, unless it is the provider's.")
]
RegistryDirectory = Annotated[Path, _flag("--registry", "Directory where volumes are recorded; created if missing.")]
AllowedEndpoints = Annotated[
    list[str] | None,
    _flag("--allowed-endpoint", "Endpoint URL that volumes may use; repeatable. Without it: any."),
]
AllowFileUrls = Annotated[
    bool, _flag("--allow-file-urls/--no-allow-file-urls", "Whether volumes may show directories of the node itself.")
]

_POLICY = "Policy for volumes"
AllowedAddresses = Annotated[
    list[str] | None,
    _flag(
        "--allowed-address",
        "Network such as 10.1.0.0/16: endpoints of inline volumes may be there although it is not public; repeatable.",
        panel=_POLICY,
    ),
]
RefusedAddresses = Annotated[
    list[str] | None,
    _flag(
        "--refused-address",
        "Network, address or host that endpoints of inline volumes may not have although it is public; repeatable.",
        panel=_POLICY,
    ),
]
IdentityEndpoints = Annotated[
    list[str] | None,
    _flag(
        "--identity-endpoint",
        "Endpoint URL, besides the provider's own, that the node's own identity may be sent to; repeatable.",
        panel=_POLICY,
    ),
]
AllowedDatasets = Annotated[
    list[str] | None,
    _flag(
        "--allowed-dataset",
        "NAMESPACE=URL that volumes of the namespace may name; repeatable; * for all. Without it: any.",
        panel=_POLICY,
    ),
]
IdentityNamespaces = Annotated[
    list[str] | None,
    _flag(
        "--identity-namespace",
        "Namespace whose volumes may be read with the driver's own identity; repeatable; * for all.",
        panel=_POLICY,
    ),
]
TrustedNamespaces = Annotated[
    list[str] | None,
    _flag(
        "--trusted-namespace",
        "Namespace whose inline volumes are trusted as those of an administrator are; repeatable; * for all.",
        panel=_POLICY,
    ),
]
SharedCacheNamespaces = Annotated[
    list[str] | None,
    _flag(
        "--shared-cache-namespace",
        "Namespace whose volumes read cached bytes without asking the store for permission; repeatable; * for all.",
        panel=_POLICY,
    ),
]
AccessCheckAge = Annotated[
    str,
    _flag("--access-check-age", "How long the store's permission to read an object is remembered.", panel=_POLICY),
]
InlineRequestTimeout = Annotated[
    str, _flag("--inline-request-timeout", "Longest requestTimeout of an inline volume.", panel=_POLICY)
]
InlineDeadline = Annotated[str, _flag("--inline-deadline", "Longest deadline of an inline volume.", panel=_POLICY)]
InlineReservation = Annotated[
    str,
    _flag("--inline-reservation", "What inline volumes of one namespace may reserve of the cache.", panel=_POLICY),
]
Listings = Annotated[int, _flag("--listings", "Listings of datasets that run at a time.", panel=_POLICY)]
ListingDeadline = Annotated[str, _flag("--listing-deadline", "Longest time of one listing.", panel=_POLICY)]
ListingObjects = Annotated[int, _flag("--listing-objects", "Most objects that one dataset may have.", panel=_POLICY)]
CacheCapacities = Annotated[
    list[str] | None,
    _flag(
        "--cache-capacity",
        "Reported by GetCapacity as the largest volume of a node: a size, or TOPOLOGY-KEY=VALUE:SIZE; repeatable.",
    ),
]
MetricsAddress = Annotated[
    str, _flag("--metrics-address", "Address that the metrics port listens on; ::, all of IPv4 and IPv6.")
]
MetricsVolumes = Annotated[int, _flag("--metrics-volumes", "Volumes that the metrics tell apart; 0: none is named.")]
MetricsPort = Annotated[int, _flag("--metrics-port", "Port of Prometheus metrics; 0: none.")]
HealthPort = Annotated[
    int, _flag("--health-port", "Port of /healthz (liveness) and /readyz (readiness) over HTTP; 0: none.")
]
WebPort = Annotated[
    int, _flag("--web-port", "Port of the web page for browsers on this machine, on 127.0.0.1 alone; 0: none.")
]
RegistrationDirectory = Annotated[
    Path | None,
    _flag(
        "--registration-dir",
        "Kubelet's plugins_registry: the driver registers itself there. Without it: node-driver-registrar does.",
    ),
]
RegistrationEndpoint = Annotated[
    str,
    _flag(
        "--registration-endpoint",
        "Path of the CSI socket on the host, where that is not the one of --endpoint.",
    ),
]
Topology = Annotated[
    list[str] | None,
    _flag(
        "--topology",
        "Where the node is, such as topology.kubernetes.io/zone=eu-1a; as in its labels, or kubelet refuses the "
        "driver. Repeatable; without a value it is left out.",
    ),
]
RemoveStartupTaint = Annotated[
    bool,
    _flag(
        "--remove-startup-taint/--no-remove-startup-taint",
        "Once kubelet has registered the driver, remove the taint hayloft.dev/agent-not-ready from this Node.",
    ),
]
ReadyCondition = Annotated[
    bool,
    _flag(
        "--ready-condition/--no-ready-condition",
        "Once kubelet has registered the driver, report the condition hayloft.dev/AgentReady at this Node.",
    ),
]
MostVolumes = Annotated[int, _flag("--max-volumes", "Most volumes that pods of this node may use; 0: no limit.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], _flag("--log-level", "Lowest level that is logged.", panel="Logging")
]
LogFormat = Annotated[
    Literal["text", "json"],
    _flag("--log-format", "Each record as a line of text or as a JSON object.", panel="Logging"),
]

_TIER = "The cluster's cache"
Tier = Annotated[
    list[str] | None,
    _flag(
        "--tier",
        "Replica of the cluster's cache that is asked before the bucket: HOST:PORT, or HOST:PORT@ZONE; repeatable.",
        panel=_TIER,
    ),
]
TierService = Annotated[
    str,
    _flag(
        "--tier-service",
        "NAMESPACE/NAME of a headless Service whose EndpointSlices list the replicas, instead of --tier.",
        panel=_TIER,
    ),
]
TierKey = Annotated[
    Path | None,
    _flag(
        "--tier-key", "File with at least 32 random bytes, the same on all nodes: names what is cached.", panel=_TIER
    ),
]
TierCa = Annotated[
    Path | None,
    _flag("--tier-ca", "Authority of the replicas' certificates, in PEM form. Without it: plain HTTP.", panel=_TIER),
]
TierCert = Annotated[
    Path | None, _flag("--tier-cert", "Certificate by which the replicas know this node, in PEM form.", panel=_TIER)
]
TierCertKey = Annotated[Path | None, _flag("--tier-cert-key", "Its key, in PEM form.", panel=_TIER)]
TierServerName = Annotated[
    str, _flag("--tier-server-name", "Name in the replicas' certificates; without it: each one's host.", panel=_TIER)
]
TierSize = Annotated[
    str,
    _flag(
        "--tier-size",
        "What each replica can hold: of a larger dataset a fixed share is asked of them. 0: not known.",
        panel=_TIER,
    ),
]
TierZone = Annotated[
    str, _flag("--tier-zone", "Zone of this node: replicas of others are not asked. Without it: all are.", panel=_TIER)
]
TierCrossZone = Annotated[
    bool,
    _flag(
        "--tier-cross-zone/--no-tier-cross-zone",
        "Whether replicas of other zones are asked after those of the own one, before the bucket.",
        panel=_TIER,
    ),
]
TierTimeout = Annotated[
    str,
    _flag("--tier-timeout", "A replica that sends no byte for so long is left; 10s at least is sensible.", panel=_TIER),
]

ReplicaDirectory = Annotated[Path, _flag("--directory", "Directory of the replica's cache, on its disk.")]
ReplicaOutput = Annotated[Path | None, _flag("--output", "File to write. Without it: the standard output.")]
ReplicaSize = Annotated[str, _flag("--size", "What the cache may hold: 500GiB.")]
ReplicaListen = Annotated[str, _flag("--listen", "Port, or ADDRESS:PORT, for the nodes.")]
ReplicaStatusListen = Annotated[str, _flag("--status-listen", "ADDRESS:PORT of /status (stub_status) and /healthz.")]
ReplicaCert = Annotated[str, _flag("--cert", "Path of the replica's certificate. Without it: plain HTTP.")]
ReplicaCertKey = Annotated[str, _flag("--cert-key", "Path of its key.")]
ReplicaClientCa = Annotated[str, _flag("--client-ca", "Path of the authority of the nodes' certificates.")]
ReplicaKey = Annotated[
    Path | None, _flag("--key", "The file of --tier-key: plain HTTP, with paths that are signed with it.")
]
ReplicaSlice = Annotated[str, _flag("--slice", "Parts in which large objects are fetched and kept.")]
ReplicaValid = Annotated[
    str, _flag("--valid", "After so long the bucket is asked whether the reader may still read what is cached.")
]
ReplicaResolvers = Annotated[
    list[str] | None, _flag("--resolver", "Name server; repeatable. Without it: those of /etc/resolv.conf.")
]
ReplicaOrigins = Annotated[
    list[str] | None, _flag("--origin", "Beginning of the URLs of allowed buckets; repeatable. Without it: any.")
]
ReplicaOriginCa = Annotated[str, _flag("--origin-ca", "Path of the authorities of the buckets' certificates.")]
ReplicaWorkers = Annotated[str, _flag("--workers", "Worker processes of nginx, or auto.")]

_TUNING = "Tuning"
SmallObjectFetcher = Annotated[
    int, _flag("--small-fetches", "Requests in flight for objects of up to 1 MiB.", panel=_TUNING)
]
FetchThreads = Annotated[int, _flag("--fetch-threads", "Connections to the store.", panel=_TUNING)]
SmallObject = Annotated[
    str, _flag("--small-object", "Objects up to this size are fetched completely when they are opened.", panel=_TUNING)
]
FetchChunks = Annotated[int, _flag("--fetch-chunks", "Longest fetch of a sequential reader, in MiB.", panel=_TUNING)]
ReadaheadFetches = Annotated[
    int, _flag("--readahead-fetches", "Long fetches in flight ahead of a sequential reader.", panel=_TUNING)
]
NodeBandwidth = Annotated[
    str,
    _flag(
        "--node-bandwidth",
        "Limit of what this node requests from stores, for readers and warmups of all volumes: 2GiB/s, 10Gbit/s; "
        "0: no limit.",
    ),
]
WarmupFetches = Annotated[
    int, _flag("--warmup-fetches", "Fetches of warmups in flight, all volumes together.", panel=_TUNING)
]
WarmupMemoryPercent = Annotated[
    int,
    _flag(
        "--warmup-memory-percent",
        "Percent of the available memory that warmups into memory may fill, up to 100.",
        panel=_TUNING,
    ),
]
OldWarmupFetches = Annotated[
    int | None, _flag("--warm-up-fetches", "Deprecated name of --warmup-fetches.", panel=_TUNING, hidden=True)
]
WriteBack = Annotated[
    str,
    _flag(
        "--write-queue",
        "Limit in bytes of the write-back queue of a slow cache disk; beyond it, bytes are not cached.",
        panel=_TUNING,
    ),
]
FuseThreads = Annotated[
    int, _flag("--fuse-threads", "Threads for each mount that serve the kernel's requests.", panel=_TUNING)
]
Passthrough = Annotated[
    bool,
    _flag("--passthrough/--no-passthrough", "Let the kernel read complete files without the daemon.", panel=_TUNING),
]
Openless = Annotated[
    bool,
    _flag(
        "--openless/--no-openless",
        "Let the kernel open files without the daemon where they are small and fit into memory.",
        panel=_TUNING,
    ),
]
ReadAheadKib = Annotated[
    int, _flag("--read-ahead-kib", "Readahead of the kernel for each mount, in KiB.", panel=_TUNING)
]
EntryTimeout = Annotated[
    int, _flag("--entry-timeout", "Seconds for which the kernel caches names and attributes.", panel=_TUNING)
]

Include = Annotated[
    list[str] | None, _flag("--include", "Globs of paths to show, as in the parameter include; repeatable.")
]
Exclude = Annotated[
    list[str] | None, _flag("--exclude", "Globs of paths to leave out, as in the parameter exclude; repeatable.")
]
FileList = Annotated[
    str | None, _flag("--manifest", "List of the files of an http(s) dataset, as a path below its URL, or a URL there.")
]
Inventory = Annotated[
    str | None, _flag("--inventory", "URL of the dataset's inventory, as in the parameter inventory: it is not listed.")
]
StoreEndpoint = Annotated[str | None, _flag("--store-endpoint", "Base URL of the object store's service.")]
OldStoreEndpoint = Annotated[str | None, Flag("--endpoint", "Deprecated name of --store-endpoint.", hidden=True)]
Region = Annotated[str | None, _flag("--region", "Region of the bucket; determined automatically where possible.")]
AddressingStyle = Annotated[
    Literal["auto", "path", "virtual"], _flag("--addressing-style", "Position of the bucket's name in S3 requests.")
]
Anonymous = Annotated[bool, _flag("--anonymous/--no-anonymous", "Send requests without credentials.")]
RequesterPays = Annotated[bool, _flag("--requester-pays/--no-requester-pays", "Accept to pay for the requests.")]
CaBundle = Annotated[Path | None, _flag("--ca-bundle", "File with additional trusted certificates, in PEM form.")]
Backend = Annotated[Literal["auto", "obstore", "s3fs"], _flag("--backend", "Library that reads the store.")]
Json = Annotated[bool, _flag("--json/--no-json", "Print JSON.")]

Volume = Annotated[str, _flag("--volume", "Id of a volume that is mounted on this node.")]
WarmInclude = Annotated[
    list[str] | None, _flag("--include", "Globs of paths to fetch, as in the parameter include; repeatable.")
]
RateLimit = Annotated[str, _flag("--bandwidth", "Bandwidth limit: 200MiB/s, 2Gbit/s; 0: that of the volume.")]
Concurrency = Annotated[int, _flag("--concurrency", "Fetches in flight; 0: that of the volume.")]
IntoMemory = Annotated[bool, _flag("--memory/--no-memory", "Read the cached files into memory, too.")]
WarmTrace = Annotated[str, _flag("--trace", "Fetch what a recorded trace names: its path below the dataset's URL.")]
StartAt = Annotated[
    str,
    _flag(
        "--start-at",
        "Where in the dataset to begin: 25%. Nodes that warm it at the same time begin at different places.",
    ),
]
Wait = Annotated[bool, _flag("--wait/--no-wait", "Wait until the warmup has ended, and show its progress.")]
Status = Annotated[bool, _flag("--status/--no-status", "Show the progress of the warmup; start none.")]
Cancel = Annotated[bool, _flag("--cancel/--no-cancel", "Cancel the warmup; fetched bytes stay cached.")]

TraceAction = Annotated[Literal["record"], Positional("record: write down which bytes a program reads.")]
TraceOutput = Annotated[Path, _flag("--output", "The file to be written, such as start.arrow.")]
TraceTime = Annotated[str, _flag("--time", "How long at the most, such as 90s or 5m; Ctrl-C ends it before.")]

Url = Annotated[str, Positional("The dataset, such as s3://my-bucket/train.")]

VolumeName = Annotated[
    str, Positional("A volume: its id or a part of it, the URL of its dataset, or a path in its mount.")
]
PathInVolume = Annotated[str, Positional("A file or directory in the volume; without it, all of the volume.")]
VolumeToWarm = Annotated[str, Positional("The volume, named as for `hayloft ls`.")]
Question = Annotated[str, Positional("An errno (ESTALE or 116), a gRPC code, a condition, or a message in quotes.")]
Watch = Annotated[bool, _flag("--watch/--no-watch", "Show it again and again, until Ctrl-C.")]
Interval = Annotated[str, _flag("--interval", "Time between two looks, such as 2s.")]
Origin = Annotated[
    bool, _flag("--origin/--no-origin", "Compare each file with the store, too: one request for each of them.")
]
UrlToCheck = Annotated[
    str, Positional("A dataset, such as s3://my-bucket/train, that is to be reached from here; without it, none.")
]
CacheDirectoryToCheck = Annotated[
    Path | None, _flag("--cache-dir", "Directory of the cache; without it, that of the daemon, if one runs.")
]
KubeletDirectoryToCheck = Annotated[
    Path, _flag("--kubelet-dir", "Kubelet's directory, for the thresholds of eviction where the cache shares its disk.")
]
