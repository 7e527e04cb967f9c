"""``hayloft inspect``, ``hayloft warm`` and ``hayloft trace``. Import no settings: see ``application.py``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cli import complain
from csi_driver.cli import options as flags
from csi_driver.model.errors import InvalidParameter, MissingParameter


def inspect(
    url: flags.Url,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    manifest: flags.FileList = None,
    inventory: flags.Inventory = None,
    store_endpoint: flags.StoreEndpoint = None,
    old_store_endpoint: flags.OldStoreEndpoint = None,
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

    from csi_driver.catalog.arrow_alone import import_arrow, use_arrow_alone
    from csi_driver.model.dataset import Credentials, StoreOptions

    use_arrow_alone()
    import_arrow()
    from csi_driver.wiring.dataset_inspection import inspect as show

    telemetry.set_up_logging("inspect", log_level, log_format)
    if old_store_endpoint is not None:
        complain("warning: --endpoint is deprecated here, where it is no socket of CSI; use --store-endpoint")
    options = StoreOptions(
        endpoint=store_endpoint or old_store_endpoint,
        region=region,
        addressing_style=addressing_style,
        anonymous=anonymous,
        requester_pays=requester_pays,
        ca_bundle_pem=None if ca_bundle is None else _read("--ca-bundle", ca_bundle),
        backend=backend,
        manifest=manifest,
    )
    globs = _globs("--include", include), _globs("--exclude", exclude)
    with _announcing_retries(options.deadline_s):
        show(url, *globs, options, Credentials(), Console(), inventory=inventory, as_json=json)


def warm(
    volume_id: flags.VolumeToWarm = "",
    volume: flags.Volume = "",
    daemon_socket: flags.OwnDaemonSocket = None,
    include: flags.WarmInclude = None,
    bandwidth: flags.RateLimit = "0",
    concurrency: flags.Concurrency = 0,
    memory: flags.IntoMemory = False,
    trace: flags.WarmTrace = "",
    start_at: flags.StartAt = "0%",
    wait: flags.Wait = True,
    status: flags.Status = False,
    cancel: flags.Cancel = False,
    json: flags.Json = False,
    log_level: flags.LogLevel = "warning",
    log_format: flags.LogFormat = "text",
) -> int:
    """Fetch a mounted volume, or a part of it, onto this node before it is read. Ctrl-C does not stop the warmup."""
    from csi_driver.cli.daemon_connection import answering, volume_id_of
    from csi_driver.cli.warm_command import WarmOptions, run_warm

    telemetry.set_up_logging("warm", log_level, log_format)
    if bool(volume_id) == bool(volume):
        raise MissingParameter("VOLUME", "Give the id of a volume of this node, once: `hayloft volumes` lists them")
    globs = _globs("--include", include)
    socket = answering(daemon_socket)
    wanted = volume_id_of(socket, volume_id) if volume_id else volume
    options = WarmOptions(
        wanted,
        globs,
        bandwidth,
        concurrency,
        memory=memory,
        trace=trace,
        start_at=start_at,
        wait=wait,
        status=status,
        cancel=cancel,
        as_json=json,
    )
    return run_warm(socket, options)


def trace(
    action: flags.TraceAction,
    volume: flags.Volume,
    output: flags.TraceOutput,
    time: flags.TraceTime = "5m",
    daemon_socket: flags.OwnDaemonSocket = None,
    log_level: flags.LogLevel = "warning",
    log_format: flags.LogFormat = "text",
) -> int:
    """Record which bytes of a mounted volume a program reads when it starts, for warmupTrace."""
    from csi_driver.cli.trace_command import run_record
    from csi_driver.wiring.daemon_sockets import find_daemon

    telemetry.set_up_logging("trace", log_level, log_format)
    return run_record(daemon_socket or find_daemon(), volume, output, time)


class _Announcer(logging.Handler):
    """Prints each error once that a request is retried after."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__()
        self._deadline_s = deadline_s
        self._announced: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._announced:
            self._announced.add(text)
            complain(f"{text}; until {self._deadline_s:g} s have passed without progress")


@contextmanager
def _announcing_retries(deadline_s: float) -> Iterator[None]:
    """Says on standard error what the body waits for."""
    logger, announcer = logging.getLogger("csi_driver.objects.retrying"), _Announcer(deadline_s)
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(announcer)
    try:
        yield
    finally:
        logger.removeHandler(announcer)
        logger.setLevel(level)
        logger.propagate = propagates


def _globs(flag: str, texts: Iterable[str] | None) -> tuple[str, ...]:
    """Each text as the parameter of the same name would be read. Raises InvalidParameter."""
    from csi_driver.volumes.parameter_text import globs

    return tuple(pattern for text in texts or () for pattern in globs(flag, text))


def _read(flag: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidParameter(
            flag, str(path), "a readable file in PEM form", f"This one cannot be read: {reason}"
        ) from None
