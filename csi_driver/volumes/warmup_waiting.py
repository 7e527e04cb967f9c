"""Waits for a warmup on behalf of a call with a deadline, and reports its progress when the wait times out."""

from __future__ import annotations

import time
from collections.abc import Callable

from csi_driver.model.errors import CacheDiskFull, WarmupFailed, WarmupUnfinished
from csi_driver.rpc import callers
from csi_driver.volumes.data_plane import DataPlane, WarmupReport, WarmupState

_SHORTEST_PAUSE_S = 0.02
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
"""Poll intervals, doubled from the first to the longest: a small volume is warm at once, a large one takes minutes.
Half of the time that is left, if that is shorter: a wait ends with its warmup, and not half a second later."""


def wait_until_warm(
    data_plane: DataPlane, volume_id: str, timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> WarmupReport:
    """Polls until the warmup is complete; at least once, even with a time-out of 0.

    Raises WarmupUnfinished (timed out; the warmup continues), CacheDiskFull,
    WarmupFailed (also when it was cancelled, or there is none), VolumeNotFound, DaemonUnavailable; Interrupted when the
    caller is gone.
    """
    caller = callers.current()
    deadline_s = time.monotonic() + timeout_s
    pause_s, near_s, done_bytes = _FIRST_PAUSE_S, _SHORTEST_PAUSE_S, 0
    while True:
        report = data_plane.warmup(volume_id)
        if report.state is WarmupState.COMPLETE:
            return report
        _raise_if_ended(report)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            # Without the progress, which differs each time: Kubernetes merges events of the same text only.
            raise WarmupUnfinished(
                f"volume {volume_id} is not warm yet; the warmup continues until a retry finds it complete, and "
                f"`hayloft warm --volume {volume_id} --status` on the node shows its progress"
            )
        if report.eta_s is not None:
            # Longer again while nothing moves: the last object may wait for its store, with no byte left to fetch.
            near_s = min(2 * near_s, _LONGEST_PAUSE_S) if report.done_bytes == done_bytes else _SHORTEST_PAUSE_S
            done_bytes = report.done_bytes
            left_s = min(left_s, max(report.eta_s / 2, near_s))
        pause(min(pause_s, left_s))
        callers.require(caller)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def progress_text(report: WarmupReport) -> str:
    """Such as ``1.2 GiB of 3.4 GiB, 120 of 300 files, about 40 s left``."""
    if not report.total_files:
        return report.message or "counting files"
    text = (
        f"{human_size(report.done_bytes)} of {human_size(report.total_bytes)}, "
        f"{report.done_files} of {report.total_files} files"
    )
    if report.failed_files:
        text += f", {report.failed_files} failed"
    if report.memory_bytes:
        text += f", {human_size(report.hot_bytes)} of {human_size(report.memory_bytes)} in memory"
    if report.eta_s is not None:
        text += f", about {report.eta_s:.0f} s left"
    return f"{text} ({report.message})" if report.message else text


def human_size(count_bytes: int) -> str:
    """Rounded, such as ``3.4 GiB``."""
    size, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{count_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _raise_if_ended(report: WarmupReport) -> None:
    if report.state is WarmupState.FULL:
        raise CacheDiskFull(f"volume {report.volume_id} does not fit into the cache: {report.message}")
    if report.state is not WarmupState.RUNNING:
        reason = report.message or f"its warmup is {report.state}"
        raise WarmupFailed(f"volume {report.volume_id} is not warm: {reason}; a retry starts the warmup again")
