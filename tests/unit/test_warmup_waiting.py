"""Waiting for a warmup, by a call with a deadline and by the command that watches."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry
from rich.console import Console

from csi_driver.cli import warm_command as warm
from csi_driver.model.errors import CacheDiskFull, DaemonUnavailable, WarmupFailed, WarmupUnfinished
from csi_driver.volumes.data_plane import MountRequest, WarmupReport, WarmupState
from csi_driver.volumes.warmup_waiting import progress_text, size_text, wait_until_warm, warm_whole_volume
from csi_driver.wiring.metrics import DaemonCollector
from tests.support.data_planes import RememberingDataPlane

GIB = 1 << 30
RUNNING = WarmupReport("v", WarmupState.RUNNING, (), 4 * GIB, 10, GIB, 3, GIB, 0, 500e6, 6.4)
COMPLETE = replace(RUNNING, state=WarmupState.COMPLETE, done_bytes=4 * GIB, done_files=10, rate_bytes=0.0, eta_s=None)


@pytest.fixture
def plane() -> RememberingDataPlane:
    made = RememberingDataPlane()
    made.wishes.append(MountRequest("v", "/m", {}))
    return made


def test_waiting_ends_when_it_is_complete(plane: RememberingDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            plane.warmups["v"] = COMPLETE

    assert wait_until_warm(plane, "v", 1000, pause) == COMPLETE
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5]


def test_time_that_is_over_leaves_one_look(plane: RememberingDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    with pytest.raises(WarmupUnfinished, match=r"1\.0 GiB of 4\.0 GiB, 3 of 10 files, about 6 s left; ask again"):
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
def test_an_end_that_is_not_complete_is_an_error(
    plane: RememberingDataPlane, state: WarmupState, error: type[Exception]
) -> None:
    plane.warmups["v"] = replace(RUNNING, state=state, message="as it was")
    with pytest.raises(error, match="as it was"):
        wait_until_warm(plane, "v", 10)


def test_the_whole_volume_is_asked_for_unless_it_is_on_its_way(plane: RememberingDataPlane) -> None:
    def complete(seconds: float) -> None:
        plane.warmups["v"] = replace(plane.warmups["v"], state=WarmupState.COMPLETE)

    assert warm_whole_volume(plane, "v", 10, complete).include == ()
    plane.warmups["v"] = replace(RUNNING, total_bytes=5)
    assert warm_whole_volume(plane, "v", 10, complete).total_bytes == 5, "that one was waited for"
    plane.warmups["v"] = replace(RUNNING, include=("part/*",))
    assert warm_whole_volume(plane, "v", 10, complete).include == ()


def test_progress_is_told_in_a_line() -> None:
    assert progress_text(WarmupReport("v", WarmupState.RUNNING)) == "counting files"
    failing = replace(RUNNING, failed_files=2, eta_s=None, message="the store is gone")
    assert progress_text(failing) == "1.0 GiB of 4.0 GiB, 3 of 10 files, 2 failed (the store is gone)"
    sizes = [size_text(0), size_text(999), size_text(1000), size_text(1 << 20), size_text(5 << 40), size_text(1 << 60)]
    assert sizes == ["0 B", "999 B", "1.0 KiB", "1.0 MiB", "5.0 TiB", "1048576.0 TiB"]


def test_watching_outlasts_a_daemon_that_is_replaced(plane: RememberingDataPlane) -> None:
    plane.warmups["v"] = RUNNING
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    looks = 0

    def pause(seconds: float) -> None:
        nonlocal looks
        looks += 1
        plane.failure = DaemonUnavailable("gone") if looks in (2, 3) else None
        if looks == 6:
            plane.warmups["v"] = COMPLETE

    assert warm.watch(plane, RUNNING, console, pause=pause) == COMPLETE
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "3 of 10 files" in shown
    assert "476.8 MiB/s" in shown


def test_metrics_tell_of_warmups(plane: RememberingDataPlane) -> None:
    registry = CollectorRegistry()
    registry.register(DaemonCollector(plane))
    text = generate_latest(registry).decode()
    assert "hayloft_warmups 0.0" in text
    assert "hayloft_warmup_bytes_total 0.0" in text
