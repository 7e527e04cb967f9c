"""Signals as events, and children that come back."""

from __future__ import annotations

import ctypes
import itertools
import operator
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from csi_driver.wiring.child_process import Child, restart_delay_s
from csi_driver.wiring.shutdown import PARENT_VARIABLE, watching

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def test_a_signal_is_an_event_of_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with watching(signal.SIGUSR1) as signals:
        assert signals.wait(0.0) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.wait(10.0) == signal.SIGUSR1
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert signals.wait() == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_more_signals_than_the_pipe_can_hold_are_harmless() -> None:
    with watching(signal.SIGUSR1) as signals:
        for _ in range(70_000):
            signal.raise_signal(signal.SIGUSR1)
        assert signals.wait(0.0) == signal.SIGUSR1


@pytest.mark.promise("S291")
def test_a_signal_just_before_the_wait_begins_ends_it() -> None:
    """The calls below follow each other without a step in Python between them, in which a handler could run."""
    libc = ctypes.CDLL(None)
    with watching(signal.SIGUSR1) as signals:
        received = signals._read_fd
        calls = ((libc["raise"], int(signal.SIGUSR1)), (select.select, (received,), (), (), 0.0))
        _, (ready, _, _) = list(itertools.starmap(operator.call, calls))
        assert ready == [received]
        assert signals.wait(0.0) == signal.SIGUSR1


def test_the_restart_backoff_doubles_up_to_a_limit() -> None:
    assert [restart_delay_s(deaths) for deaths in (1, 2, 3, 4)] == [0.2, 0.4, 0.8, 1.6]
    assert restart_delay_s(1000) == 15.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def killed(child: Child) -> None:
    assert child.process_id is not None
    os.kill(child.process_id, signal.SIGKILL)
    os.waitid(os.P_PID, child.process_id, os.WEXITED | os.WNOWAIT)


def test_a_child_that_dies_is_restarted_after_the_backoff() -> None:
    clock = Clock()
    child = Child("cache", SLEEP, clock)
    child.start()
    first = child.process_id
    try:
        killed(child)
        ended = child.poll()
        assert ended is not None
        assert (ended.name, ended.exit_code) == ("cache", -signal.SIGKILL)
        assert child.next_poll_s() == pytest.approx(0.2)
        assert child.poll() is None
        assert child.process_id is None, "not before its time"
        clock.now_s += 0.2
        child.poll()
        assert child.process_id not in (None, first)
        assert child.next_poll_s() is None
    finally:
        child.stop(10.0)


def test_the_backoff_is_reset_after_a_long_uptime() -> None:
    clock = Clock()
    child = Child("cache", SLEEP, clock)
    child.start()
    try:
        for uptime_s, delay_s in ((1.0, 0.2), (1.0, 0.4), (60.0, 0.2)):
            clock.now_s += uptime_s
            killed(child)
            child.poll()
            assert child.next_poll_s() == pytest.approx(delay_s)
            clock.now_s += delay_s
            child.poll()
    finally:
        child.stop(10.0)


def test_a_child_that_ignores_sigterm_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    stubborn = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    child = Child("cache", (sys.executable, "-c", stubborn))
    child.start()
    process_id = child.process_id
    time.sleep(0.3)
    child.stop(0.1)
    child.stop(0.1)
    assert process_id is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_a_process_ends_with_its_parent() -> None:
    """The middle process starts a sleeper as all-in-one starts its children, prints its process id, and is killed."""
    sleeper = (
        "import os, time; from csi_driver.wiring.shutdown import die_with_parent; "
        "die_with_parent(os.environ); print(os.getpid(), flush=True); time.sleep(60)"
    )
    middle = (
        f"import os, subprocess, sys, time; environment = {{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}; "
        f"subprocess.Popen([sys.executable, '-c', {sleeper!r}], env=environment); time.sleep(60)"
    )
    with subprocess.Popen((sys.executable, "-c", middle), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process_id = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert process.stdout.read() == "", "the pipe ends when the last process that holds it has ended"
    assert process_id > 0
