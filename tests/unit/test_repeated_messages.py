"""What kubelet and external-provisioner repeat in events has the same text each time: then Kubernetes merges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import BudgetExceeded, HayloftError, ObjectNotFound
from csi_driver.objects.content_range import check_range_answer
from csi_driver.reading.warmup_progress import WarmupCounts
from csi_driver.rpc.long_calls import LongCalls
from csi_driver.volumes.data_plane import MountRequest, WarmupReport, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm
from tests.support.data_planes import InMemoryDataPlane

RUNNING = WarmupReport("v", WarmupState.RUNNING, (), 1 << 32, 10, 1 << 30, 3, 1 << 30, 0, 500e6, 6.4)


def text_of(action: Callable[[], Any]) -> str:
    with pytest.raises(HayloftError) as raised:
        action()
    return str(raised.value)


@pytest.mark.promise("S290")
def test_the_progress_of_a_warmup_is_no_part_of_the_refusal() -> None:
    plane = InMemoryDataPlane()
    plane.requests.append(MountRequest("v", "/m", {}))
    texts = set()
    for done in (3, 4):
        plane.warmups["v"] = replace(RUNNING, done_files=done, done_bytes=done << 29, eta_s=10.0 - done)
        texts.add(text_of(partial(wait_until_warm, plane, "v", -1)))
    assert len(texts) == 1


@pytest.mark.promise("S290")
@pytest.mark.parametrize("full", [True, False])
def test_how_far_a_warmup_has_come_is_no_part_of_its_end(full: bool) -> None:
    messages = set()
    for files in (1, 2):
        counts = WarmupCounts(lambda: 0.0)
        counts.total(10, 1 << 30)
        counts.part(files << 20)
        counts.failed(ObjectNotFound("gone"), files)
        messages.add(counts.end(full=full, cancelled=False).message)
    assert len(messages) == 1


@pytest.mark.promise("S290")
def test_how_many_bytes_are_missing_is_no_part_of_the_error() -> None:
    texts = set()
    for stop in (140, 150):
        answer = (206, f"bytes 100-{stop}/1000", None, ByteRange(100, 200), "s3://b/k")
        texts.add(text_of(partial(check_range_answer, *answer)))
    assert len(texts) == 1


@pytest.mark.promise("S290")
def test_how_many_calls_are_in_flight_is_no_part_of_the_refusal() -> None:
    texts = set()
    for others in (3, 4):
        calls = LongCalls(most=8, of_one_namespace=4)
        calls._in_flight.update({"other": others, "another": 1, "mine": 2})
        with pytest.raises(BudgetExceeded) as refused:
            calls._begin("NodeStageVolume", "mine")
        texts.add(str(refused.value))
    assert len(texts) == 1
