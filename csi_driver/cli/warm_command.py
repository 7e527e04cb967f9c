"""``hayloft warm``: starts, watches or ends the warmup of a mounted volume through the daemon on this node."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from csi_driver.cli import complain
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import DaemonUnavailable, InvalidParameter
from csi_driver.volumes.data_plane import DataPlane, WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.parameter_text import bandwidth as parse_bandwidth
from csi_driver.volumes.warmup_waiting import progress_text, size_text

_LOOK_S = 0.5
_PATIENCE_S = 60.0
"""A daemon that is replaced is back within seconds, and goes on with the warmup: its silence is no reason to stop."""

_FINE = (WarmupState.RUNNING, WarmupState.COMPLETE)


@dataclass(frozen=True, slots=True)
class WarmOptions:
    """What was asked for."""

    volume_id: str
    include: tuple[str, ...]
    bandwidth: str
    concurrency: int
    wait: bool
    status: bool
    cancel: bool
    as_json: bool


def run_warm(socket: Path, options: WarmOptions, console: Console | None = None) -> int:
    """The exit code: 0 it is complete (or, without waiting, runs; or was cancelled, as asked); 1 it is not and will not
    be. Raises HayloftError."""
    if options.status and options.cancel:
        raise InvalidParameter("--cancel", "with --status", "one of the two")
    client = DaemonClient(socket)
    try:
        return _run(client, options, console or Console())
    finally:
        client.close()


def _run(data_plane: DataPlane, options: WarmOptions, console: Console) -> int:
    if options.cancel:
        report = data_plane.cancel_warmup(options.volume_id)
        _show(report, options, console)
        return 0
    if options.status:
        report = data_plane.warmup(options.volume_id)
    else:
        bandwidth_bytes = parse_bandwidth("--bandwidth", options.bandwidth.strip())
        wish = WarmupRequest(options.volume_id, options.include, bandwidth_bytes, options.concurrency)
        report = data_plane.start_warmup(wish)
        if options.wait:
            report = watch(data_plane, report, console, quiet=options.as_json)
    _show(report, options, console)
    fine = report.state in _FINE or (options.status and report.state is WarmupState.NONE)
    if not fine and not options.as_json:
        complain(f"volume {report.volume_id}: warmup is {report.state}. {report.message}")
    return 0 if fine else 1


def watch(
    data_plane: DataPlane,
    report: WarmupReport,
    console: Console,
    *,
    quiet: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> WarmupReport:
    """Shows progress until the warmup has ended; the last report. Raises VolumeNotFound, DaemonUnavailable."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    silent_since: float | None = None
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(report.volume_id, total=None, facts="")
        while report.state is WarmupState.RUNNING:
            bars.update(bar, total=report.total_bytes or None, completed=report.done_bytes, facts=_facts(report))
            pause(_LOOK_S)
            try:
                report = data_plane.warmup(report.volume_id)
                silent_since = None
            except DaemonUnavailable:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _PATIENCE_S:
                    raise
    return report


def _facts(report: WarmupReport) -> str:
    rate = f", {size_text(int(report.rate_bytes))}/s" if report.rate_bytes else ""
    return progress_text(report) + rate


def _show(report: WarmupReport, options: WarmOptions, console: Console) -> None:
    if options.as_json:
        console.print(Text(json.dumps(asdict(report), indent=2)), soft_wrap=True)
    elif report.state in (WarmupState.RUNNING, WarmupState.COMPLETE, WarmupState.CANCELLED):
        console.print(Text(f"volume {report.volume_id}: {report.state}, {_facts(report)}"), soft_wrap=True)
    elif report.state is WarmupState.NONE:
        console.print(Text(f"volume {report.volume_id}: no warmup was asked for"), soft_wrap=True)
