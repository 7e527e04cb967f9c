"""The commands of processes with settings. Each one builds its settings, and imports only the modules that it needs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csi_driver import telemetry
from csi_driver.cli import complain
from csi_driver.cli import options as flags
from csi_driver.cli.flag_values import (
    DiskShare,
    addresses_of,
    parse_address,
    parse_duration,
    parse_port,
    parse_share,
    parse_size,
    parse_size_or_share,
)
from csi_driver.cli.keeper_command import DAEMON_TIMEOUT, serve_keeper
from csi_driver.cli.node_command import absolute
from csi_driver.cli.tier_flags import parse_replicas, parse_tier_timeout, tier_settings
from csi_driver.model.errors import CacheDirectoryMissing, InvalidParameter
from csi_driver.settings import (
    MIB,
    MOST_METRICS_VOLUMES,
    AllInOneSettings,
    CacheCapacity,
    CacheDaemonSettings,
    ChunkStoreSettings,
    ControllerSettings,
    FuseSettings,
    ListingSettings,
    PolicySettings,
    ReadingSettings,
    RegistrySettings,
    TierSettings,
)
from csi_driver.wiring.single_thread import import_without_threads

_KUBELET_DIRECTORY = Path("/var/lib/kubelet")
"""Kubelet's own default."""

_READING = ReadingSettings()
_FUSE = FuseSettings()
_LISTING = ListingSettings()


def _section(section: Callable[..., Any], **values: object) -> Any:
    """A section of the settings. Raises InvalidParameter, which names a value out of range by its flag."""
    try:
        return section(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        flag = _FLAG_OF.get(field, "--" + field.replace("_", "-"))
        allowed = first["msg"].lower().removeprefix("input should be ")
        raise InvalidParameter(flag, first["input"], allowed) from None


_FLAG_OF = {
    "threads": "--fuse-threads",
    "entry_timeout_s": "--entry-timeout",
    "allowed_addresses": "--allowed-address",
    "refused_addresses": "--refused-address",
    "allowed_datasets": "--allowed-dataset",
    "access_check_age_s": "--access-check-age",
    "inline_request_timeout_s": "--inline-request-timeout",
    "inline_deadline_s": "--inline-deadline",
    "processes": "--listings",
    "deadline_s": "--listing-deadline",
    "objects": "--listing-objects",
    "size_bytes": "--cache-capacity",
}


def controller(
    endpoint: flags.Endpoint,
    registry: flags.Registry,
    registry_endpoint: flags.RegistryEndpoint = None,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = False,
    allowed_address: flags.AllowedAddresses = None,
    identity_endpoint: flags.IdentityEndpoints = None,
    allowed_dataset: flags.AllowedDatasets = None,
    identity_namespace: flags.IdentityNamespaces = None,
    listings: flags.Listings = _LISTING.processes,
    listing_deadline: flags.ListingDeadline = "15m",
    listing_objects: flags.ListingObjects = _LISTING.objects,
    cache_capacity: flags.CacheCapacities = None,
    health_port: flags.HealthPort = 0,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve CSI Identity, Controller and GroupController: creates volumes, snapshots and their manifests."""
    import_without_threads()
    from csi_driver.wiring import controller_process as wiring

    telemetry.set_up_logging("controller", log_level, log_format)
    telemetry.change_level_on_signals()
    wiring.run(
        ControllerSettings(
            endpoint=endpoint,
            registry=RegistrySettings(location=registry, endpoint=registry_endpoint),
            policy=_policy(
                allowed_endpoint,
                allow_file_urls,
                allowed_address,
                identity_endpoint,
                allowed_datasets=tuple(allowed_dataset or ()),
                identity_namespaces=tuple(identity_namespace or ()),
            ),
            listing=_listing(listings, listing_deadline, listing_objects),
            cache_capacities=tuple(map(_cache_capacity, cache_capacity or ())),
            health_port=parse_port("--health-port", health_port),
        )
    )


def cache(
    socket: flags.Socket,
    state_dir: flags.StateDirectory,
    cache_dir: flags.CacheDirectory,
    registry: flags.Registry,
    keeper_socket: flags.KeeperSocket = None,
    supervise: flags.Supervise = False,
    standby: flags.Standby = False,
    registry_endpoint: flags.RegistryEndpoint = None,
    kubelet_dir: flags.KubeletDirectoryOfNode = _KUBELET_DIRECTORY,
    cache_limit: flags.CacheLimit = "0",
    free_floor: flags.FreeFloor = "auto",
    cache_high_watermark: flags.CacheHighWatermark = "98%",
    cache_low_watermark: flags.CacheLowWatermark = "96%",
    scrub_rate: flags.ScrubRate = "16MiB",
    node_bandwidth: flags.NodeBandwidth = "0",
    metrics_port: flags.MetricsPort = 0,
    metrics_address: flags.MetricsAddress = "::",
    metrics_volumes: flags.MetricsVolumes = 128,
    node_name: flags.NodeName = "",
    health_port: flags.HealthPort = 0,
    web_port: flags.WebPort = 0,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = False,
    allowed_address: flags.AllowedAddresses = None,
    refused_address: flags.RefusedAddresses = None,
    identity_endpoint: flags.IdentityEndpoints = None,
    allowed_dataset: flags.AllowedDatasets = None,
    identity_namespace: flags.IdentityNamespaces = None,
    trusted_namespace: flags.TrustedNamespaces = None,
    shared_cache_namespace: flags.SharedCacheNamespaces = None,
    access_check_age: flags.AccessCheckAge = "24h",
    inline_request_timeout: flags.InlineRequestTimeout = "60s",
    inline_deadline: flags.InlineDeadline = "5m",
    inline_reservation: flags.InlineReservation = "0",
    listings: flags.Listings = _LISTING.processes,
    listing_deadline: flags.ListingDeadline = "15m",
    listing_objects: flags.ListingObjects = _LISTING.objects,
    fetch_threads: flags.FetchThreads = _READING.fetch_threads,
    small_fetches: flags.SmallObjectFetcher = _READING.small_fetches,
    small_object: flags.SmallObject = str(_READING.small_object_bytes),
    fetch_chunks: flags.FetchChunks = _READING.fetch_chunks,
    readahead_fetches: flags.ReadaheadFetches = _READING.readahead_fetches,
    write_queue: flags.WriteBack = str(_READING.write_queue_bytes),
    warmup_fetches: flags.WarmupFetches = _READING.warmup_fetches,
    warm_up_fetches: flags.OldWarmupFetches = None,
    warmup_memory_percent: flags.WarmupMemoryPercent = _READING.warmup_memory_percent,
    fuse_threads: flags.FuseThreads = _FUSE.threads,
    passthrough: flags.Passthrough = _FUSE.passthrough,
    openless: flags.Openless = _FUSE.openless,
    read_ahead_kib: flags.ReadAheadKib = _FUSE.read_ahead_kib,
    entry_timeout: flags.EntryTimeout = _FUSE.entry_timeout_s,
    tier: flags.Tier = None,
    tier_service: flags.TierService = "",
    tier_key: flags.TierKey = None,
    tier_ca: flags.TierCa = None,
    tier_cert: flags.TierCert = None,
    tier_cert_key: flags.TierCertKey = None,
    tier_server_name: flags.TierServerName = "",
    tier_size: flags.TierSize = "0",
    tier_zone: flags.TierZone = "",
    tier_cross_zone: flags.TierCrossZone = False,
    tier_timeout: flags.TierTimeout = "10s",
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> int:
    """Run the cache daemon of a node: mounts datasets and caches their bytes."""
    from csi_driver.volumes.parameter_text import read_bandwidth

    if not 0 <= metrics_volumes <= MOST_METRICS_VOLUMES:
        raise InvalidParameter("--metrics-volumes", metrics_volumes, f"a number from 0 to {MOST_METRICS_VOLUMES}")
    settings = CacheDaemonSettings(
        socket=socket,
        state_directory=state_dir,
        keeper_socket=keeper_socket,
        metrics_port=parse_port("--metrics-port", metrics_port),
        metrics_address=parse_address("--metrics-address", metrics_address),
        metrics_volumes=metrics_volumes,
        health_port=parse_port("--health-port", health_port),
        web_port=parse_port("--web-port", web_port),
        chunk_store=_chunk_store(
            cache_dir,
            cache_limit,
            free_floor,
            (cache_low_watermark, cache_high_watermark),
            parse_size("--scrub-rate", scrub_rate),
            kubelet_dir,
            standby,
        ),
        reading=_section(
            ReadingSettings,
            fetch_threads=fetch_threads,
            small_fetches=small_fetches,
            small_object_bytes=parse_size("--small-object", small_object),
            fetch_chunks=fetch_chunks,
            readahead_fetches=readahead_fetches,
            write_queue_bytes=parse_size("--write-queue", write_queue),
            warmup_fetches=warmup_fetches if warm_up_fetches is None else _renamed(warm_up_fetches),
            warmup_memory_percent=warmup_memory_percent,
            bandwidth_bytes=read_bandwidth("--node-bandwidth", node_bandwidth.strip()),
        ),
        fuse=_section(
            FuseSettings,
            threads=fuse_threads,
            passthrough=passthrough,
            openless=openless,
            read_ahead_kib=read_ahead_kib,
            entry_timeout_s=entry_timeout,
        ),
        registry=RegistrySettings(location=registry, endpoint=registry_endpoint),
        policy=_policy(
            allowed_endpoint,
            allow_file_urls,
            allowed_address,
            identity_endpoint,
            refused_addresses=addresses_of("--refused-address", refused_address or ()),
            allowed_datasets=tuple(allowed_dataset or ()),
            identity_namespaces=tuple(identity_namespace or ()),
            trusted_namespaces=tuple(trusted_namespace or ()),
            shared_cache_namespaces=tuple(shared_cache_namespace or ()),
            access_check_age_s=parse_duration("--access-check-age", access_check_age),
            inline_request_timeout_s=parse_duration("--inline-request-timeout", inline_request_timeout),
            inline_deadline_s=parse_duration("--inline-deadline", inline_deadline),
            inline_reservation_bytes=parse_size("--inline-reservation", inline_reservation),
        ),
        listing=_listing(listings, listing_deadline, listing_objects),
        tier=tier_settings(
            TierSettings(
                replicas=parse_replicas("--tier", tier or ()),
                service=tier_service,
                key_file=tier_key,
                ca_file=tier_ca,
                certificate_file=tier_cert,
                certificate_key_file=tier_cert_key,
                server_name=tier_server_name,
                replica_bytes=parse_size("--tier-size", tier_size),
                zone=tier_zone,
                cross_zone=tier_cross_zone,
                timeout_s=parse_tier_timeout("--tier-timeout", tier_timeout),
            )
        ),
    )
    import_without_threads()
    from csi_driver.wiring import cache_process as wiring

    def run() -> int:
        telemetry.set_up_logging("cache", log_level, log_format, node=node_name)
        telemetry.change_level_on_signals()
        wiring.run(settings)
        return 0

    if not supervise:
        return run()
    from csi_driver.wiring.supervisor import supervise as run_supervised

    telemetry.set_up_logging("supervisor", log_level, log_format, node=node_name)
    return run_supervised(run, prepare=lambda: wiring.prepare(settings))


def keeper(
    socket: flags.Socket,
    daemon_timeout: flags.DaemonTimeout = DAEMON_TIMEOUT,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> int:
    """Hold the mounts of a node while the cache daemon is replaced."""
    return serve_keeper(socket, log_level, log_format, daemon_timeout)


def all_in_one(
    endpoint: flags.Endpoint,
    registry: flags.RegistryDirectory,
    cache_dir: flags.CacheDirectory,
    node_id: flags.NodeId = "",
    kubelet_dir: flags.KubeletDirectory = None,
    cache_limit: flags.CacheLimit = "0",
    free_floor: flags.FreeFloor = "auto",
    metrics_port: flags.MetricsPort = 0,
    web_port: flags.WebPort = 0,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = True,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> int:
    """Run everything in one process tree, for a laptop or a conformance suite."""
    _chunk_store(cache_dir, cache_limit, free_floor)  # validates before a child fails with the same error
    import_without_threads()
    from csi_driver.wiring import all_in_one as wiring

    telemetry.set_up_logging("all-in-one", log_level, log_format)
    cache_arguments = (
        f"--cache-limit={cache_limit}",
        f"--free-floor={free_floor}",
        f"--metrics-port={parse_port('--metrics-port', metrics_port)}",
        f"--web-port={parse_port('--web-port', web_port)}",
        *(() if kubelet_dir is None else (f"--kubelet-dir={kubelet_dir.absolute()}",)),
    )
    settings = AllInOneSettings(
        endpoint=endpoint,
        node_id=node_id or socket.gethostname(),
        registry_directory=Path(registry).absolute(),
        cache_directory=Path(cache_dir).absolute(),
        kubelet_directory=absolute(kubelet_dir),
        policy=_policy(allowed_endpoint, allow_file_urls, trusted_namespaces=("*",)),
        cache_arguments=cache_arguments,
        child_arguments=(f"--log-level={log_level}", f"--log-format={log_format}"),
    )
    try:
        wiring.run(settings)
    except wiring.ChildFailed as failed:
        if not failed.has_reported:
            complain(failed)
        return failed.exit_code
    return 0


def _policy(
    allowed_endpoints: list[str] | None,
    allow_file_urls: bool,
    allowed_addresses: list[str] | None = None,
    identity_endpoints: list[str] | None = None,
    **more: object,
) -> Any:
    """Raises InvalidParameter, which names the flag."""
    return _section(
        PolicySettings,
        allowed_endpoints=tuple(allowed_endpoints or ()),
        allow_file_urls=allow_file_urls,
        allowed_addresses=tuple(allowed_addresses or ()),
        identity_endpoints=tuple(identity_endpoints or ()),
        **more,
    )


def _cache_capacity(text: str) -> CacheCapacity:
    """``2TiB``, or ``topology.kubernetes.io/zone=eu-1a:2TiB`` with segments separated by commas. Raises
    InvalidParameter."""
    topology, _, size = text.rpartition(":")
    segments = dict(part.split("=", 1) for part in topology.split(",") if "=" in part)
    if len(segments) != len(topology.split(",") if topology else ()) or not all({**segments, "x": "x"}.values()):
        raise InvalidParameter("--cache-capacity", text, "a size, or TOPOLOGY-KEY=VALUE:SIZE")
    size_bytes = parse_size("--cache-capacity", size)
    return _section(CacheCapacity, size_bytes=size_bytes, topology=segments)  # type: ignore[no-any-return]


def _listing(processes: int, deadline: str, objects: int) -> Any:
    deadline_s = parse_duration("--listing-deadline", deadline)
    return _section(ListingSettings, processes=processes, deadline_s=deadline_s, objects=objects)


def _chunk_store(
    directory: Path,
    limit: str,
    floor: str,
    marks: tuple[str, str] = ("96%", "98%"),
    scrub_rate: int = 0,
    kubelet_directory: Path | None = None,
    standby: bool = False,
) -> ChunkStoreSettings:
    """The directory must exist: creating a path that was mistyped or not mounted would fill another disk."""
    most = parse_size_or_share("--cache-limit", limit)
    least = None if floor == "auto" else parse_size_or_share("--free-floor", floor)
    low, high = parse_share("--cache-low-watermark", marks[0]), parse_share("--cache-high-watermark", marks[1])
    if low > high:
        raise InvalidParameter("--cache-low-watermark", marks[0], f"at most --cache-high-watermark ({marks[1]})")
    if not directory.is_dir():
        raise CacheDirectoryMissing(f"--cache-dir: {directory} is not an existing directory; create it on a local disk")
    limit_bytes = most.on(directory)
    if 0 < limit_bytes < MIB:
        raise InvalidParameter("--cache-limit", limit, "1MiB or more, such as 500GiB or 80%; 0: 90% of the disk")
    floor_bytes = None if least is None else least.on(directory)
    disk_bytes = DiskShare(share=1.0).on(directory)
    if floor_bytes is not None and floor_bytes > disk_bytes - MIB:
        raise InvalidParameter(
            "--free-floor", floor, f"less than the file system of {directory} has ({disk_bytes} bytes), such as 5%"
        )
    return ChunkStoreSettings(
        directory=directory.absolute(),
        limit_bytes=limit_bytes,
        free_floor_bytes=floor_bytes,
        kubelet_directory=kubelet_directory,
        standby=standby,
        high_watermark=high,
        low_watermark=low,
        scrub_bytes_per_s=scrub_rate,
    )


def _renamed(warm_up_fetches: int) -> int:
    """The value of ``--warm-up-fetches``, which this release still accepts, with a warning."""
    complain("warning: --warm-up-fetches (HAYLOFT_WARM_UP_FETCHES) is deprecated; use --warmup-fetches")
    return warm_up_fetches
