"""Ctrl-C in a command that repeats itself."""

from __future__ import annotations

import signal
import time

import pytest

from csi_driver.cli.ctrl_c import noting_interrupts


def test_an_interrupt_that_was_swallowed_ends_the_next_round() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noting_interrupts() as check:
        check()
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass  # as gRPC does
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
