"""The flags of the commands, each defined once. Every flag can be set in the environment too: ``--cache-dir`` is
``HAYLOFT_CACHE_DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _flag(flag: str, text: str, *more: str, panel: str | None = None) -> Any:
    variable = "HAYLOFT_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, *more, envvar=variable, help=text, rich_help_panel=panel, show_envvar=False)


Endpoint = Annotated[str, _flag("--endpoint", "Socket where CSI is spoken, such as unix:///csi/csi.sock.")]
NodeId = Annotated[str, _flag("--node-id", "What this node is called in the cluster.")]
DaemonSocket = Annotated[Path, _flag("--daemon-socket", "Socket of `hayloft cache` on this node.")]
Socket = Annotated[Path, _flag("--socket", "Socket to serve on; it gets mode 0600.")]
KeeperSocket = Annotated[
    Path | None, _flag("--keeper-socket", "Socket of `hayloft keeper`; without it a restart ends all mounts.")
]
KubeletDirectory = Annotated[
    Path | None, _flag("--kubelet-dir", "Kubelet's directory; paths that do not lie below it are refused.")
]
StateDirectory = Annotated[Path, _flag("--state-dir", "Directory for manifests and open tables.")]
CacheDirectory = Annotated[Path, _flag("--cache-dir", "Existing directory for cached bytes, on a local disk.")]
CacheLimit = Annotated[
    str, _flag("--cache-limit", "Most bytes to keep: 500GiB, 2TB, or a share of the disk such as 80%.")
]
FreeFloor = Annotated[str, _flag("--free-floor", "Free space that is always left on the disk: 10GiB, 5%.")]
ScrubRate = Annotated[
    str, _flag("--scrub-rate", "Most bytes a second that cached files are checked with, once a week; 0: never.")
]
CacheHighWatermark = Annotated[
    str, _flag("--cache-high-watermark", "Share of the limit from which room is made in the background.")
]
CacheLowWatermark = Annotated[str, _flag("--cache-low-watermark", "Share of the limit down to which room is made.")]
Registry = Annotated[
    str, _flag("--registry", "Directory, or URL such as s3://bucket/prefix, where volumes are recorded.")
]
RegistryEndpoint = Annotated[
    str | None, _flag("--registry-endpoint", "Base URL of the registry's S3 service, if it is not the provider's.")
]
RegistryDirectory = Annotated[Path, _flag("--registry", "Directory where volumes are recorded; made if missing.")]
AllowedEndpoints = Annotated[
    list[str] | None,
    _flag("--allowed-endpoint", "Endpoint URL that volumes may name; give it once for each. Without it: any."),
]
AllowFileUrls = Annotated[
    bool, _flag("--allow-file-urls/--no-allow-file-urls", "Whether volumes may show directories of the node itself.")
]
MetricsPort = Annotated[int, _flag("--metrics-port", "Port of Prometheus metrics; 0: none.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], _flag("--log-level", "Least level that is logged.", panel="Logging")
]
LogFormat = Annotated[
    Literal["text", "json"], _flag("--log-format", "One line, or one object, a record.", panel="Logging")
]

_TUNING = "Tuning"
SmallObjectFetcher = Annotated[
    int, _flag("--small-fetches", "Requests to S3 under way for objects of up to 1 MiB.", panel=_TUNING)
]
FetchThreads = Annotated[int, _flag("--fetch-threads", "Connections to the store.", panel=_TUNING)]
SmallObject = Annotated[
    str, _flag("--small-object", "Objects up to this size are fetched whole when they are opened.", panel=_TUNING)
]
FetchChunks = Annotated[int, _flag("--fetch-chunks", "Longest fetch of a sequential reader, in MiB.", panel=_TUNING)]
ReadaheadFetches = Annotated[
    int, _flag("--readahead-fetches", "How many long fetches a sequential reader is kept ahead.", panel=_TUNING)
]
WarmupFetches = Annotated[
    int, _flag("--warmup-fetches", "Fetches of warmups at a time, all volumes together.", panel=_TUNING)
]
WriteBack = Annotated[
    str,
    _flag("--write-queue", "Most bytes that wait in memory for a slow cache disk; more is not cached.", panel=_TUNING),
]
FuseThreads = Annotated[int, _flag("--fuse-threads", "Threads that answer the kernel, for each mount.", panel=_TUNING)]
Passthrough = Annotated[
    bool, _flag("--passthrough/--no-passthrough", "Let the kernel read complete files by itself.", panel=_TUNING)
]
Openless = Annotated[
    bool,
    _flag(
        "--openless/--no-openless",
        "Let the kernel open files by itself where they are small and fit into memory.",
        panel=_TUNING,
    ),
]
ReadAheadKib = Annotated[int, _flag("--read-ahead-kib", "Read-ahead of the kernel for each mount.", panel=_TUNING)]
EntryTimeout = Annotated[
    int, _flag("--entry-timeout", "Seconds for which the kernel believes names and attributes.", panel=_TUNING)
]

Include = Annotated[list[str] | None, _flag("--include", "Glob of paths to show; give it once for each.")]
Exclude = Annotated[list[str] | None, _flag("--exclude", "Glob of paths to leave out; give it once for each.")]
StoreEndpoint = Annotated[
    str | None, _flag("--store-endpoint", "Base URL of the object store's service.", "--endpoint")
]
Region = Annotated[str | None, _flag("--region", "Region of the bucket; found by itself where possible.")]
AddressingStyle = Annotated[
    Literal["auto", "path", "virtual"], _flag("--addressing-style", "Where the bucket's name goes in S3 requests.")
]
Anonymous = Annotated[bool, _flag("--anonymous/--no-anonymous", "Ask without credentials.")]
RequesterPays = Annotated[bool, _flag("--requester-pays/--no-requester-pays", "Accept to pay for the requests.")]
CaBundle = Annotated[Path | None, _flag("--ca-bundle", "File with certificates to trust as well, in PEM form.")]
Backend = Annotated[Literal["auto", "obstore", "s3fs"], _flag("--backend", "Library that reads the store.")]
Json = Annotated[bool, _flag("--json/--no-json", "Print JSON.")]

Volume = Annotated[str, _flag("--volume", "Id of a volume that is mounted on this node.")]
WarmInclude = Annotated[list[str] | None, _flag("--include", "Glob of paths to fetch; give it once for each.")]
RateLimit = Annotated[str, _flag("--bandwidth", "Most bytes a second: 200MiB/s, 2Gbit/s; 0: as the volume says.")]
Concurrency = Annotated[int, _flag("--concurrency", "Fetches at a time; 0: as the volume says.")]
Wait = Annotated[bool, _flag("--wait/--no-wait", "Stay until it has ended, and show how far it is.")]
Status = Annotated[bool, _flag("--status/--no-status", "Start nothing; say how far it is.")]
Cancel = Annotated[bool, _flag("--cancel/--no-cancel", "End it; what was fetched stays.")]

Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
