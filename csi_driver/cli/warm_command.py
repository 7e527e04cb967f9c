"""``hayloft warm``: starts, monitors or cancels the warmup of a mounted volume through the daemon on this node."""

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
from csi_driver.volumes.warmup_waiting import human_size, progress_text

_POLL_S = 0.5
_DAEMON_TIMEOUT_S = 60.0
"""How long polls are retried while no daemon answers: a daemon that is replaced resumes the warmup within seconds."""

_SUCCESS = (WarmupState.RUNNING, WarmupState.COMPLETE)


@dataclass(frozen=True, slots=True)
class WarmOptions:
    """The values of the flags."""

    volume_id: str
    include: tuple[str, ...]
    bandwidth: str
    concurrency: int
    wait: bool
    status: bool
    cancel: bool
    as_json: bool


def run_warm(socket: Path, options: WarmOptions, console: Console | None = None) -> int:
    """The exit code: 0 if the warmup is complete (or, with ``--no-wait``, runs; or was cancelled with ``--cancel``);
    1 if it ended otherwise. Raises HayloftError."""
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
        request = WarmupRequest(options.volume_id, options.include, bandwidth_bytes, options.concurrency)
        report = data_plane.start_warmup(request)
        if options.wait:
            report = monitor(data_plane, report, console, quiet=options.as_json)
    _show(report, options, console)
    success = report.state in _SUCCESS or (options.status and report.state is WarmupState.NONE)
    if not success and not options.as_json:
        complain(f"volume {report.volume_id}: warmup is {report.state}. {report.message}")
    return 0 if success else 1


def monitor(
    data_plane: DataPlane,
    report: WarmupReport,
    console: Console,
    *,
    quiet: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> WarmupReport:
    """Shows progress until the warmup has ended. Returns the last report. Raises VolumeNotFound, DaemonUnavailable."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    unavailable_since: float | None = None
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(report.volume_id, total=None, facts="")
        while report.state is WarmupState.RUNNING:
            bars.update(bar, total=report.total_bytes or None, completed=report.done_bytes, facts=_facts(report))
            pause(_POLL_S)
            try:
                report = data_plane.warmup(report.volume_id)
                unavailable_since = None
            except DaemonUnavailable:
                unavailable_since = unavailable_since or time.monotonic()
                if time.monotonic() - unavailable_since > _DAEMON_TIMEOUT_S:
                    raise
    return report


def _facts(report: WarmupReport) -> str:
    rate = f", {human_size(int(report.rate_bytes))}/s" if report.rate_bytes else ""
    return progress_text(report) + rate


def _show(report: WarmupReport, options: WarmOptions, console: Console) -> None:
    if options.as_json:
        console.print(Text(json.dumps(asdict(report), indent=2)), soft_wrap=True)
    elif report.state in (WarmupState.RUNNING, WarmupState.COMPLETE, WarmupState.CANCELLED):
        console.print(Text(f"volume {report.volume_id}: {report.state}, {_facts(report)}"), soft_wrap=True)
    elif report.state is WarmupState.NONE:
        console.print(Text(f"volume {report.volume_id}: no warmup was requested"), soft_wrap=True)
