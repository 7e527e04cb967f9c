"""A signal stops a run once, and never between the start of a process and its registration; stopping Hayloft."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hayloft_bench.errors import Stopped
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.run.trash import Trash
from hayloft_bench.targets.base import Place
from hayloft_bench.targets.hayloft import Hayloft
from hayloft_lab.emulated_kubelet import CallRefused
from tests.support.bench_targets import CountingStore


def _interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_where_the_program_is(number: signal.Signals) -> None:
    stopping = Stopping()
    with pytest.raises(Stopped) as raised, stopping.watching():
        _interrupt(number)
    assert raised.value.signal_number == number


def test_a_shield_delays_a_signal_until_it_ends() -> None:
    stopping, reached = Stopping(), []

    def start_something() -> None:
        with stopping.shield(), stopping.shield():
            _interrupt()
            reached.append("in the shield")
        reached.append("after it")

    with stopping.watching(), pytest.raises(Stopped):
        start_something()
    assert reached == ["in the shield"]


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    stopping, cleaned = Stopping(), []
    with stopping.watching():
        try:
            _interrupt()
        except Stopped:
            _interrupt()
            _interrupt(signal.SIGTERM)
            cleaned.append(True)
    assert cleaned == [True]


def test_a_signal_during_an_ordinary_end_is_ignored() -> None:
    stopping = Stopping()
    with stopping.watching():
        stopping.stop_listening()
        _interrupt()


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping().watching():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_in_a_shield_is_not_replaced_by_a_signal() -> None:
    stopping = Stopping()

    def fail_in_a_shield() -> None:
        with stopping.shield():
            _interrupt()
            raise ValueError("first")

    with stopping.watching(), pytest.raises(ValueError, match="first"):
        fail_in_a_shield()


class _Kubelet:
    """Records the calls; ``unstage`` is refused."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def unpublish(self, volume: object) -> None:
        self.calls.append("unpublish")

    def unstage(self, volume: object) -> None:
        self.calls.append("unstage")
        raise CallRefused("NodeUnstageVolume", "INTERNAL", "no")

    def delete(self, volume: object) -> None:
        self.calls.append("delete")

    def close(self) -> None:
        self.calls.append("close")


def test_stopping_hayloft_continues_after_a_refused_call_and_ends_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = Hayloft(Place(tmp_path, tmp_path, CountingStore(), Trash(tmp_path / "trash")))
    kubelet, ended = _Kubelet(), []
    target._kubelet, target._volume = kubelet, object()
    monkeypatch.setattr(target._driver, "is_running", lambda: True)
    monkeypatch.setattr(target._driver, "stop", lambda: ended.append(True))
    target.stop()
    assert kubelet.calls == ["unpublish", "unstage", "delete", "close"]
    assert ended == [True]
