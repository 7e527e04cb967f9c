"""Waiting for a warmup, by a call with a deadline and by the command that shows the progress."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from csi_driver.cli import warm_command as warm
from csi_driver.daemon.measurements import Measurements
from csi_driver.model.errors import CacheDiskFull, DaemonUnavailable, WarmupFailed, WarmupUnfinished
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.volumes.data_plane import MountRequest, WarmupReport, WarmupState
from csi_driver.volumes.warmup_waiting import human_size, progress_text, wait_until_warm
from csi_driver.wiring.exposition import metrics_page
from csi_driver.wiring.metrics import daemon_values
from tests.support.data_planes import InMemoryDataPlane

GIB = 1 << 30
RUNNING = WarmupReport("v", WarmupState.RUNNING, (), 4 * GIB, 10, GIB, 3, GIB, 0, 500e6, 6.4)
COMPLETE = replace(RUNNING, state=WarmupState.COMPLETE, done_bytes=4 * GIB, done_files=10, rate_bytes=0.0, eta_s=None)


@pytest.fixture
def plane() -> InMemoryDataPlane:
    plane = InMemoryDataPlane()
    plane.requests.append(MountRequest("v", "/m", {}))
    return plane


def test_the_wait_ends_when_the_warmup_is_complete(plane: InMemoryDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            plane.warmups["v"] = COMPLETE

    assert wait_until_warm(plane, "v", 1000, pause) == COMPLETE
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5]


def test_the_end_is_seen_when_it_comes(plane: InMemoryDataPlane) -> None:
    """A pause of half a second was up to a tenth of the time until a dataset of 1 GiB was on a node."""
    now_s = 0.0
    plane.warmups["v"] = replace(RUNNING, eta_s=6.4)

    def pause(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        left = replace(RUNNING, eta_s=6.4 - now_s, done_bytes=int(now_s * 500e6))
        plane.warmups["v"] = COMPLETE if now_s >= 6.4 else left

    assert wait_until_warm(plane, "v", 1000, pause) == COMPLETE
    assert now_s - 6.4 <= 0.021


def test_a_warmup_that_does_not_end_is_not_polled_all_the_time(plane: InMemoryDataPlane) -> None:
    """All bytes are there, and the checksum of the last object is still asked for."""
    plane.warmups["v"] = replace(RUNNING, done_bytes=4 * GIB, eta_s=0.0)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            plane.warmups["v"] = COMPLETE

    wait_until_warm(plane, "v", 1000, pause)
    assert pauses[:5] == [0.02, 0.04, 0.08, 0.16, 0.32]
    assert set(pauses[5:]) == {0.5}


def test_a_pause_does_not_outlast_the_call(plane: InMemoryDataPlane) -> None:
    plane.warmups["v"] = replace(RUNNING, eta_s=0.001)
    paused: list[float] = []
    with pytest.raises(WarmupUnfinished):
        wait_until_warm(plane, "v", 0.015, lambda seconds: (paused.append(seconds), time.sleep(seconds))[1])
    assert all(seconds <= 0.015 for seconds in paused)


def test_a_wait_without_time_left_polls_once(plane: InMemoryDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    with pytest.raises(WarmupUnfinished, match="is not warm yet; the warmup continues"):
        wait_until_warm(plane, "v", -3, lambda seconds: pytest.fail("it waited"))
    plane.warmups["v"] = COMPLETE
    assert wait_until_warm(plane, "v", -3) == COMPLETE


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (WarmupState.FULL, CacheDiskFull),
        (WarmupState.FAILED, WarmupFailed),
        (WarmupState.CANCELLED, WarmupFailed),
        (WarmupState.NONE, WarmupFailed),
    ],
)
def test_a_warmup_that_ended_incomplete_is_an_error(
    plane: InMemoryDataPlane, state: WarmupState, error: type[Exception]
) -> None:
    plane.warmups["v"] = replace(RUNNING, state=state, message="as it was")
    with pytest.raises(error, match="as it was"):
        wait_until_warm(plane, "v", 10)


def test_progress_is_reported_in_one_line() -> None:
    assert progress_text(WarmupReport("v", WarmupState.RUNNING)) == "counting files"
    failing = replace(RUNNING, failed_files=2, eta_s=None, message="the store is gone")
    assert progress_text(failing) == "1.0 GiB of 4.0 GiB, 3 of 10 files, 2 failed (the store is gone)"
    sizes = [
        human_size(0),
        human_size(999),
        human_size(1000),
        human_size(1 << 20),
        human_size(5 << 40),
        human_size(1 << 60),
    ]
    assert sizes == ["0 B", "999 B", "1.0 KiB", "1.0 MiB", "5.0 TiB", "1048576.0 TiB"]


def test_the_progress_display_survives_a_restart_of_the_daemon(plane: InMemoryDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    polls = 0

    def pause(seconds: float) -> None:
        nonlocal polls
        polls += 1
        plane.failure = DaemonUnavailable("gone") if polls in (2, 3) else None
        if polls == 6:
            plane.warmups["v"] = COMPLETE

    with warm.progress_bar(console) as show:
        assert warm.monitor(plane, RUNNING, show, pause=pause) == COMPLETE
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "3 of 10 files" in shown
    assert "476.8 MiB/s" in shown


def test_metrics_report_warmups(plane: InMemoryDataPlane) -> None:
    text = metrics_page(lambda: daemon_values(plane, {}, Measurements, CallCounts()))().body.decode()
    assert "hayloft_warmups 0.0" in text
    assert "hayloft_warmup_bytes_total 0.0" in text
