"""What each line of the log says, how often it is said, and how its level is changed."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from csi_driver import telemetry
from csi_driver.model.log_context import logging_call, new_call_id, pod_of, valid_call_id
from csi_driver.model.log_repeats import MOST_LINES, WITHIN_S, RepeatFilter

logger = logging.getLogger("csi_driver.test")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    out = io.StringIO()
    telemetry.set_up_logging("cache", "info", "json", out, node="node-1")
    yield out
    root.handlers[:] = handlers


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.promise("S608")
def test_each_line_names_the_node_and_the_call(out: io.StringIO) -> None:
    logger.info("before")
    with logging_call("0123abcd"):
        logger.info("in it", extra=telemetry.fields(volume_id="pvc"))
        logger.info("of another", extra=telemetry.fields(call="ffffffff"))
    before, within, other = lines(out)
    assert before["node"] == "node-1"
    assert "call" not in before
    assert (within["call"], within["volume_id"], within["node"]) == ("0123abcd", "pvc", "node-1")
    assert other["call"] == "ffffffff", "the one that the line is about"


@pytest.mark.promise("S608")
@pytest.mark.parametrize("sent", ["", "0123ABCD", "0123abcd\n", "0123abcde", "x" * 8, None, b"0123abcd"])
def test_an_id_that_is_none_of_ours_is_not_logged(sent: object) -> None:
    assert valid_call_id(sent) is None
    assert valid_call_id(new_call_id())


def test_the_pod_is_that_of_the_volume_context() -> None:
    context = {"csi.storage.k8s.io/pod.name": "train-0", "csi.storage.k8s.io/pod.namespace": "team"}
    assert pod_of(context) == "team/train-0"
    assert pod_of({}) is None


@pytest.mark.promise("S609")
def test_warnings_that_repeat_are_left_out_and_counted(out: io.StringIO) -> None:
    now_s = 0.0
    handler = logging.getLogger().handlers[0]
    handler.filters[:] = [RepeatFilter(lambda: now_s)]

    def warn(volume_id: str) -> None:
        logger.warning("it failed", extra=telemetry.fields(volume_id=volume_id))

    for _ in range(MOST_LINES + 7):
        warn("pvc-1")
    warn("pvc-2")
    for _ in range(MOST_LINES + 7):
        logger.info("a call")
    assert sum(line["message"] == "a call" for line in lines(out)) == MOST_LINES + 7
    warnings = [line for line in lines(out) if line["message"] == "it failed"]
    assert [line["volume_id"] for line in warnings] == ["pvc-1"] * MOST_LINES + ["pvc-2"]
    now_s = WITHIN_S
    warn("pvc-1")
    warn("pvc-2")
    first, second = lines(out)[-2:]
    assert first["left_out"] == 7
    assert "left_out" not in second


@pytest.mark.promise("S610")
def test_the_level_is_changed_by_signals_and_back(out: io.StringIO) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        telemetry.change_level_on_signals()
        logger.debug("not shown")
        os.kill(os.getpid(), signal.SIGUSR1)
        logger.debug("shown")
        os.kill(os.getpid(), signal.SIGUSR2)
        logger.debug("not shown")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [(line["message"], line.get("level")) for line in lines(out)] == [
        ("the level of the log was changed", "WARNING"),
        ("shown", "DEBUG"),
        ("the level of the log was changed", "WARNING"),
    ]
