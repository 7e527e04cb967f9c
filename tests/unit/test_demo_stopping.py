"""A signal stops the demonstration once, and never between a start and the note of it."""

from __future__ import annotations

import os
import signal

import pytest

from hayloft_bench.demo.errors import Stopped
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.demo.undo import Undo
from hayloft_lab.emulated_kubelet import CallRefused


def _interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_where_the_program_is(number: signal.Signals) -> None:
    stopping = Stopping()
    with pytest.raises(Stopped) as raised, stopping.watching():
        _interrupt(number)
    assert raised.value.signal_number == number


def test_a_shield_holds_a_signal_back_until_it_ends() -> None:
    stopping, reached = Stopping(), []

    def start_something() -> None:
        with stopping.shield(), stopping.shield():
            _interrupt()
            reached.append("in the shield")
        reached.append("behind it")

    with stopping.watching(), pytest.raises(Stopped):
        start_something()
    assert reached == ["in the shield"]


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
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


def test_handlers_are_put_back() -> None:
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


def _refuse() -> None:
    raise CallRefused("NodeUnstageVolume", "INTERNAL", "no")


def _do_and_undo(done: list[str], error: Exception | None = None) -> None:
    with Undo(done.append) as undo:
        undo.later(lambda: done.append("noted first"))
        undo.later(_refuse)
        undo.later(lambda: done.append("noted last"))
        if error is not None:
            raise error


def test_undoing_goes_on_behind_a_failure_and_reports_it() -> None:
    done: list[str] = []
    with pytest.raises(CallRefused, match="NodeUnstageVolume: INTERNAL: no"):
        _do_and_undo(done)
    assert done == ["noted last", "noted first"]


def test_a_failure_while_undoing_does_not_hide_the_error_that_led_there() -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="the cause"):
        _do_and_undo(told, ValueError("the cause"))
    assert told == ["noted last", "while cleaning up: NodeUnstageVolume: INTERNAL: no", "noted first"]
