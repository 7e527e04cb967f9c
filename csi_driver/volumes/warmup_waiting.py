"""Waits for warmups on behalf of a call that has a deadline, and says how far they are when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from csi_driver.model.errors import CacheDiskFull, WarmupFailed, WarmupUnfinished
from csi_driver.volumes.data_plane import DataPlane, WarmupReport, WarmupRequest, WarmupState

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
"""A small volume is warm at once; for one that takes minutes half a second is nothing."""


def wait_until_warm(
    data_plane: DataPlane, volume_id: str, timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> WarmupReport:
    """Blocks until the warmup is complete; at least one look, whatever the time-out.

    Raises WarmupUnfinished (it goes on; the text says how far it is), CacheDiskFull, WarmupFailed (also when it was
    cancelled, or there is none), VolumeNotFound, DaemonUnavailable.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        report = data_plane.warmup(volume_id)
        if report.state is WarmupState.COMPLETE:
            return report
        _raise_if_ended(report)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise WarmupUnfinished(f"volume {volume_id} is not warm yet: {progress_text(report)}; ask again")
        pause(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def warm_whole_volume(
    data_plane: DataPlane, volume_id: str, timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> WarmupReport:
    """Sees to it that the whole volume is on the node: goes along with a warmup of all of it that runs, else starts
    one, and waits. Raises as ``wait_until_warm``."""
    report = data_plane.warmup(volume_id)
    if report.state is not WarmupState.RUNNING or report.include:
        data_plane.start_warmup(WarmupRequest(volume_id))
    return wait_until_warm(data_plane, volume_id, timeout_s, pause)


def progress_text(report: WarmupReport) -> str:
    """Such as ``1.2 GiB of 3.4 GiB, 120 of 300 files, about 40 s left``."""
    if not report.total_files:
        return report.message or "counting files"
    text = (
        f"{size_text(report.done_bytes)} of {size_text(report.total_bytes)}, "
        f"{report.done_files} of {report.total_files} files"
    )
    if report.failed_files:
        text += f", {report.failed_files} failed"
    if report.eta_s is not None:
        text += f", about {report.eta_s:.0f} s left"
    return f"{text} ({report.message})" if report.message else text


def size_text(count_bytes: int) -> str:
    """Such as ``3.4 GiB``."""
    size, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{count_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _raise_if_ended(report: WarmupReport) -> None:
    if report.state is WarmupState.FULL:
        raise CacheDiskFull(f"volume {report.volume_id} cannot be made warm: {report.message}")
    if report.state is not WarmupState.RUNNING:
        what = report.message or f"its warmup is {report.state}"
        raise WarmupFailed(f"volume {report.volume_id} is not warm: {what}; asking again begins anew")
