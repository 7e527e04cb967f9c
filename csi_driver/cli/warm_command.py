"""``hayloft warm``: starts, monitors or cancels the warmup of a mounted volume through the daemon on this node."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csi_driver.cli import complain
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import DaemonUnavailable, InvalidParameter
from csi_driver.volumes.data_plane import DataPlane, WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.parameter_text import bandwidth as parse_bandwidth
from csi_driver.volumes.warmup_waiting import human_size, progress_text

if TYPE_CHECKING:
    from rich.console import Console

Show = Callable[[WarmupReport], None]

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
    memory: bool
    trace: str
    start_at: str
    wait: bool
    status: bool
    cancel: bool
    as_json: bool


def run_warm(socket: Path, options: WarmOptions) -> int:
    """The exit code: 0 if the warmup is complete (or, with ``--no-wait``, runs; or was cancelled with ``--cancel``);
    1 if it ended otherwise. Raises HayloftError."""
    if options.status and options.cancel:
        raise InvalidParameter("--cancel", "with --status", "one of the two")
    client = DaemonClient(socket)
    try:
        return _run(client, options)
    finally:
        client.close()


def _run(data_plane: DataPlane, options: WarmOptions) -> int:
    if options.cancel:
        report = data_plane.cancel_warmup(options.volume_id)
        _print(report, options)
        return 0
    if options.status:
        report = data_plane.warmup(options.volume_id)
    else:
        bandwidth_bytes = parse_bandwidth("--bandwidth", options.bandwidth.strip())
        request = WarmupRequest(
            options.volume_id,
            options.include,
            bandwidth_bytes,
            options.concurrency,
            options.memory,
            options.trace,
            _start_percent(options.start_at),
        )
        report = data_plane.start_warmup(request)
        if options.wait:
            report = _monitored(data_plane, report, options)
    _print(report, options)
    success = report.state in _SUCCESS or (options.status and report.state is WarmupState.NONE)
    if not success and not options.as_json:
        complain(f"volume {report.volume_id}: warmup is {report.state}: {progress_text(report)}")
    return 0 if success else 1


def _start_percent(given: str) -> float:
    """Raises InvalidParameter."""
    found = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,6})?) ?%", given.strip())
    if found is None:
        raise InvalidParameter("--start-at", given, "a share from 0% to below 100%, such as 25%")
    return float(found[1])


def _monitored(data_plane: DataPlane, report: WarmupReport, options: WarmOptions) -> WarmupReport:
    """With a progress bar, if there is a terminal to show it on."""
    if options.as_json or not sys.stdout.isatty():
        return monitor(data_plane, report)
    from rich.console import Console

    with progress_bar(Console()) as show:
        return monitor(data_plane, report, show)


def monitor(
    data_plane: DataPlane,
    report: WarmupReport,
    show: Show = lambda _: None,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> WarmupReport:
    """Shows each report until the warmup has ended. Returns the last one. Raises VolumeNotFound, DaemonUnavailable."""
    unavailable_since: float | None = None
    while report.state is WarmupState.RUNNING:
        show(report)
        pause(_POLL_S)
        try:
            report = data_plane.warmup(report.volume_id)
            unavailable_since = None
        except DaemonUnavailable:
            unavailable_since = unavailable_since or time.monotonic()
            if time.monotonic() - unavailable_since > _DAEMON_TIMEOUT_S:
                raise
    return report


@contextmanager
def progress_bar(console: Console) -> Iterator[Show]:
    """Shows reports on a terminal, until the end of the body."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None, facts="")

        def show(report: WarmupReport) -> None:
            total, done = report.total_bytes or None, report.done_bytes
            bars.update(bar, description=report.volume_id, total=total, completed=done, facts=_facts(report))

        yield show


def _facts(report: WarmupReport) -> str:
    rate = f", {human_size(int(report.rate_bytes))}/s" if report.rate_bytes else ""
    return progress_text(report) + rate


def _print(report: WarmupReport, options: WarmOptions) -> None:
    text = ""
    if options.as_json:
        text = json.dumps(asdict(report), indent=2)
    elif report.state in (WarmupState.RUNNING, WarmupState.COMPLETE, WarmupState.CANCELLED):
        text = f"volume {report.volume_id}: {report.state}, {_facts(report)}"
    elif report.state is WarmupState.NONE:
        text = f"volume {report.volume_id}: no warmup was requested"
    if text:
        print(text)  # noqa: T201  # output of a command
