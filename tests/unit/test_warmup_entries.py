"""What a warmup into memory reports between its two parts."""

from __future__ import annotations

from typing import Any

import pytest

from csi_driver.daemon.warmup_jobs import WarmupEntry
from csi_driver.reading.memory_warmup import MemoryProgress
from csi_driver.reading.warmup_progress import Progress
from csi_driver.volumes.data_plane import WarmupRequest, WarmupState


class Running:
    """A part of a warmup that has come so far."""

    def __init__(self, progress: Progress | MemoryProgress) -> None:
        self._progress = progress

    def progress(self) -> Any:
        return self._progress


def entry(state: Any, *, into_memory: bool) -> WarmupEntry:
    progress = Progress(state=state, total_files=1, done_files=1, total_bytes=5, done_bytes=5)
    return WarmupEntry(WarmupRequest("volume-1", into_memory=into_memory), running=Running(progress))  # type: ignore[arg-type]


@pytest.mark.promise("S541")
def test_a_warmup_into_memory_is_not_complete_before_its_second_part_has_ended() -> None:
    """A pod that waits for it would start too early."""
    between = entry("complete", into_memory=True)
    assert between.report().state is WarmupState.RUNNING
    between.memory = Running(MemoryProgress(5, 2, 5))  # type: ignore[assignment]
    found = between.report()
    assert (found.state, found.memory_bytes, found.hot_bytes) == (WarmupState.RUNNING, 5, 2)
    assert found.message == "reading the cached files into memory"


@pytest.mark.parametrize(("state", "into_memory"), [("complete", False), ("failed", True), ("full", True)])
def test_others_report_the_state_of_their_first_part(state: str, into_memory: bool) -> None:
    assert entry(state, into_memory=into_memory).report().state == state
