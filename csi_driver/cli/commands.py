"""The commands. Each one builds the settings of its process and imports only the modules that the process needs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from csi_driver import telemetry
from csi_driver.cli import INTERRUPTED, complain
from csi_driver.cli import options as flags
from csi_driver.cli.flag_values import parse_share, parse_size, parse_size_or_share
from csi_driver.model.errors import CacheDirectoryMissing, HayloftError, InvalidParameter, RequestError
from csi_driver.settings import (
    AllInOneSettings,
    CacheDaemonSettings,
    ChunkStoreSettings,
    ControllerSettings,
    FuseSettings,
    NodeSettings,
    PolicySettings,
    ReadingSettings,
    RegistrySettings,
)

app = typer.Typer(
    name="hayloft",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_PROGRAM = "hayloft"

_DAEMON_SOCKET = Path("/var/lib/hayloft/run/cache.sock")
"""The daemon's socket in ``deploy/kubernetes``."""

_READING = ReadingSettings()
_FUSE = FuseSettings()


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code of the process."""
    if not arguments:
        app(["--help"], prog_name=_PROGRAM, standalone_mode=False)
        return 2
    try:
        result = app(list(arguments), prog_name=_PROGRAM, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (RequestError, CacheDirectoryMissing) as error:
        complain(error)
        return 2
    except HayloftError as error:
        complain(error)
        return 1
    except typer.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        usage = _usage_message(error)
        if usage is None:
            raise
        complain(usage)
        return 2


def _usage_message(error: Exception) -> str | None:
    """typer's message about wrong arguments; None for any other exception. typer contains a copy of click whose
    exceptions have no public name, so they are recognised by their attributes."""
    exit_code, format_message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
    if exit_code != 2 or format_message is None:
        return None
    context = getattr(error, "ctx", None)
    hint = f"; `{context.command_path} --help` lists what is allowed" if context is not None else ""
    return f"{format_message().rstrip('.')}{hint}"


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


_FLAG_OF = {"threads": "--fuse-threads", "entry_timeout_s": "--entry-timeout"}


@app.callback(invoke_without_command=True)
def hayloft(show_version: flags.Version = False) -> None:
    """Shows datasets in object stores as directories in pods, at the speed of the node's own disk.

    Every flag can be set in the environment too: --cache-dir is HAYLOFT_CACHE_DIR.
    """
    if show_version:
        version()
        raise typer.Exit


@app.command()
def controller(
    endpoint: flags.Endpoint,
    registry: flags.Registry,
    registry_endpoint: flags.RegistryEndpoint = None,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = False,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve CSI Identity and Controller: creates volumes and their manifests."""
    from csi_driver.wiring import controller_process as wiring

    telemetry.set_up_logging("controller", log_level, log_format)
    wiring.run(
        ControllerSettings(
            endpoint=endpoint,
            registry=RegistrySettings(location=registry, endpoint=registry_endpoint),
            policy=_policy(allowed_endpoint, allow_file_urls),
        )
    )


@app.command()
def node(
    endpoint: flags.Endpoint,
    node_id: flags.NodeId,
    daemon_socket: flags.DaemonSocket,
    kubelet_dir: flags.KubeletDirectory = None,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve CSI Identity and Node: publishes volumes to pods."""
    from csi_driver.wiring import node_process as wiring

    telemetry.set_up_logging("node", log_level, log_format)
    wiring.run(
        NodeSettings(
            endpoint=endpoint, node_id=node_id, daemon_socket=daemon_socket, kubelet_directory=_absolute(kubelet_dir)
        )
    )


@app.command()
def cache(
    socket: flags.Socket,
    state_dir: flags.StateDirectory,
    cache_dir: flags.CacheDirectory,
    registry: flags.Registry,
    keeper_socket: flags.KeeperSocket = None,
    registry_endpoint: flags.RegistryEndpoint = None,
    cache_limit: flags.CacheLimit = "0",
    free_floor: flags.FreeFloor = "1GiB",
    cache_high_watermark: flags.CacheHighWatermark = "98%",
    cache_low_watermark: flags.CacheLowWatermark = "96%",
    scrub_rate: flags.ScrubRate = "16MiB",
    metrics_port: flags.MetricsPort = 0,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = False,
    fetch_threads: flags.FetchThreads = _READING.fetch_threads,
    small_fetches: flags.SmallObjectFetcher = _READING.small_fetches,
    small_object: flags.SmallObject = str(_READING.small_object_bytes),
    fetch_chunks: flags.FetchChunks = _READING.fetch_chunks,
    readahead_fetches: flags.ReadaheadFetches = _READING.readahead_fetches,
    write_queue: flags.WriteBack = str(_READING.write_queue_bytes),
    warmup_fetches: flags.WarmupFetches = _READING.warmup_fetches,
    warm_up_fetches: flags.OldWarmupFetches = None,
    fuse_threads: flags.FuseThreads = _FUSE.threads,
    passthrough: flags.Passthrough = _FUSE.passthrough,
    openless: flags.Openless = _FUSE.openless,
    read_ahead_kib: flags.ReadAheadKib = _FUSE.read_ahead_kib,
    entry_timeout: flags.EntryTimeout = _FUSE.entry_timeout_s,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Run the cache daemon of a node: mounts datasets and caches their bytes."""
    settings = CacheDaemonSettings(
        socket=socket,
        state_directory=state_dir,
        keeper_socket=keeper_socket,
        metrics_port=_port(metrics_port),
        chunk_store=_chunk_store(
            cache_dir,
            cache_limit,
            free_floor,
            (cache_low_watermark, cache_high_watermark),
            parse_size("--scrub-rate", scrub_rate),
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
        policy=_policy(allowed_endpoint, allow_file_urls),
    )
    from csi_driver.wiring import cache_process as wiring

    telemetry.set_up_logging("cache", log_level, log_format)
    wiring.run(settings)


@app.command()
def keeper(socket: flags.Socket, log_level: flags.LogLevel = "info", log_format: flags.LogFormat = "text") -> int:
    """Hold the mounts of a node while the cache daemon is replaced."""
    from csi_driver.cli.keeper_command import serve_keeper

    return serve_keeper(socket, log_level, log_format)


@app.command("all-in-one")
def all_in_one(
    endpoint: flags.Endpoint,
    registry: flags.RegistryDirectory,
    cache_dir: flags.CacheDirectory,
    node_id: flags.NodeId = "",
    kubelet_dir: flags.KubeletDirectory = None,
    cache_limit: flags.CacheLimit = "0",
    free_floor: flags.FreeFloor = "1GiB",
    metrics_port: flags.MetricsPort = 0,
    allowed_endpoint: flags.AllowedEndpoints = None,
    allow_file_urls: flags.AllowFileUrls = True,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> int:
    """Run everything in one process tree, for a laptop or a conformance suite."""
    _chunk_store(cache_dir, cache_limit, free_floor)  # validates before a child fails with the same error
    from csi_driver.wiring import all_in_one as wiring

    telemetry.set_up_logging("all-in-one", log_level, log_format)
    cache_arguments = (
        f"--cache-limit={cache_limit}",
        f"--free-floor={free_floor}",
        f"--metrics-port={_port(metrics_port)}",
    )
    settings = AllInOneSettings(
        endpoint=endpoint,
        node_id=node_id or socket.gethostname(),
        registry_directory=Path(registry).absolute(),
        cache_directory=Path(cache_dir).absolute(),
        kubelet_directory=_absolute(kubelet_dir),
        policy=_policy(allowed_endpoint, allow_file_urls),
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


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="The dataset, such as s3://my-bucket/train.")],
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    store_endpoint: flags.StoreEndpoint = None,
    region: flags.Region = None,
    addressing_style: flags.AddressingStyle = "auto",
    anonymous: flags.Anonymous = False,
    requester_pays: flags.RequesterPays = False,
    ca_bundle: flags.CaBundle = None,
    backend: flags.Backend = "auto",
    json: flags.Json = False,
    log_level: flags.LogLevel = "warning",
    log_format: flags.LogFormat = "text",
) -> None:
    """List a dataset and show which keys are renamed or left out. Credentials come from the environment."""
    from rich.console import Console

    from csi_driver.model.dataset import Credentials, StoreOptions
    from csi_driver.wiring.dataset_inspection import inspect as show

    telemetry.set_up_logging("inspect", log_level, log_format)
    options = StoreOptions(
        endpoint=store_endpoint,
        region=region,
        addressing_style=addressing_style,
        anonymous=anonymous,
        requester_pays=requester_pays,
        ca_bundle_pem=None if ca_bundle is None else _read("--ca-bundle", ca_bundle),
        backend=backend,
    )
    show(url, include or (), exclude or (), options, Credentials(), Console(), as_json=json)


@app.command()
def warm(
    volume: flags.Volume,
    daemon_socket: flags.DaemonSocket = _DAEMON_SOCKET,
    include: flags.WarmInclude = None,
    bandwidth: flags.RateLimit = "0",
    concurrency: flags.Concurrency = 0,
    wait: flags.Wait = True,
    status: flags.Status = False,
    cancel: flags.Cancel = False,
    json: flags.Json = False,
    log_level: flags.LogLevel = "warning",
    log_format: flags.LogFormat = "text",
) -> int:
    """Fetch a mounted volume, or a part of it, onto this node before it is read. Ctrl-C does not stop the warmup."""
    from csi_driver.cli.warm_command import WarmOptions, run_warm

    telemetry.set_up_logging("warm", log_level, log_format)
    options = WarmOptions(
        volume, tuple(include or ()), bandwidth, concurrency, wait=wait, status=status, cancel=cancel, as_json=json
    )
    return run_warm(daemon_socket, options)


_PASS_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""A command of another distribution parses its own arguments, ``--help`` included."""


@app.command(
    context_settings=_PASS_ARGUMENTS,
    short_help="Create a dataset, start a store and the driver, read as training does, and show the throughput.",
)
def demo(context: typer.Context) -> int:
    """See `hayloft demo --help`."""
    from csi_driver.cli.extension_commands import run_extension

    telemetry.set_up_logging("demo", "warning")
    return run_extension("demo", context.args)


@app.command(
    context_settings=_PASS_ARGUMENTS,
    short_help="Measure the read throughput of training, with Hayloft and with its alternatives.",
)
def bench(context: typer.Context) -> int:
    """See `hayloft bench --help`."""
    from csi_driver.cli.extension_commands import run_extension

    telemetry.set_up_logging("bench", "warning")
    return run_extension("bench", context.args)


@app.command()
def version() -> None:
    """Print the version."""
    from csi_driver.wiring.version import hayloft_version

    typer.echo(f"hayloft {hayloft_version()}")


def _policy(allowed_endpoints: list[str] | None, allow_file_urls: bool) -> PolicySettings:
    return PolicySettings(allowed_endpoints=tuple(allowed_endpoints or ()), allow_file_urls=allow_file_urls)


def _chunk_store(
    directory: Path, limit: str, floor: str, marks: tuple[str, str] = ("96%", "98%"), scrub_rate: int = 0
) -> ChunkStoreSettings:
    """The directory must exist: creating a path that was mistyped or not mounted would fill another disk."""
    most, least = parse_size_or_share("--cache-limit", limit), parse_size_or_share("--free-floor", floor)
    low, high = parse_share("--cache-low-watermark", marks[0]), parse_share("--cache-high-watermark", marks[1])
    if low > high:
        raise InvalidParameter("--cache-low-watermark", marks[0], f"at most --cache-high-watermark ({marks[1]})")
    if not directory.is_dir():
        raise CacheDirectoryMissing(f"--cache-dir: {directory} is not an existing directory; create it on a local disk")
    return ChunkStoreSettings(
        directory=directory.absolute(),
        limit_bytes=most.on(directory),
        free_floor_bytes=least.on(directory),
        high_watermark=high,
        low_watermark=low,
        scrub_bytes_per_s=scrub_rate,
    )


def _renamed(warm_up_fetches: int) -> int:
    """The value of ``--warm-up-fetches``, which this release still accepts, with a warning."""
    complain("warning: --warm-up-fetches (HAYLOFT_WARM_UP_FETCHES) is deprecated; use --warmup-fetches")
    return warm_up_fetches


def _port(number: int) -> int:
    if not 0 <= number <= 65535:
        raise InvalidParameter("--metrics-port", number, "0 to 65535")
    return number


def _read(flag: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidParameter(
            flag, str(path), "a readable file in PEM form", f"This one cannot be read: {reason}"
        ) from None


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
