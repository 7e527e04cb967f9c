"""The event loop, and the thread that takes over when a step is stuck."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from csi_driver.event_loop.event_loop import STUCK_S, EventLoop, LoopWork, Step
from tests.support.daemons import wait_until


class ScriptedWork(LoopWork):
    """Work that the test submits and defers."""

    def __init__(self) -> None:
        self.submitted: deque[Step] = deque()
        self.deferred: deque[Step] = deque()
        self.threads: list[int] = []

    def register(self, poll: select.poll) -> None:
        self.threads.append(threading.get_ident())

    def start_pending(self, poll: select.poll) -> None:
        while self.submitted:
            self.submitted.popleft()()

    def poll_timeout_ms(self) -> float | None:
        return 0.0 if self.submitted or self.deferred else None

    def on_ready(self, descriptor: int, poll: select.poll) -> Step | None:
        raise AssertionError("nothing is registered")

    def next_deferred(self) -> Step | None:
        return self.deferred.popleft() if self.deferred else None


class Pipe:
    """A descriptor to watch."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)

    def send(self, message: bytes = b"x") -> None:
        os.write(self._writing, message)

    def receive(self) -> bytes:
        """One byte, or none."""
        with suppress(BlockingIOError):
            return os.read(self.reading, 1)
        return b""

    def break_(self) -> None:
        os.close(self._writing)
        self._writing = -1

    def close(self) -> None:
        os.close(self.reading)
        if self._writing >= 0:
            os.close(self._writing)


@pytest.fixture
def work() -> ScriptedWork:
    return ScriptedWork()


@pytest.fixture
def event_loop(work: ScriptedWork) -> Iterator[EventLoop]:
    event_loop = EventLoop()
    event_loop.attach(work)
    event_loop.start()
    yield event_loop
    event_loop.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def other() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_a_watcher_is_called_when_its_descriptor_is_ready_and_only_then(
    event_loop: EventLoop, pipe: Pipe, other: Pipe
) -> None:
    got: list[bytes] = []
    calls: list[int] = []
    event_loop.watch(pipe.reading, lambda: got.append(pipe.receive()))
    event_loop.watch(other.reading, lambda: calls.append(len(other.receive())))
    for _ in range(200):
        pipe.send()
        if len(got) % 3 == 0:
            time.sleep(0.0005)
    wait_until(lambda: got.count(b"x") == 200)
    assert calls == []


def test_a_watcher_is_not_called_after_unwatch(
    event_loop: EventLoop, work: ScriptedWork, pipe: Pipe, other: Pipe
) -> None:
    got: list[str] = []
    event_loop.watch(pipe.reading, lambda: got.append(f"pipe {pipe.receive()!r}"))
    event_loop.watch(other.reading, lambda: got.append(f"other {other.receive()!r}"))
    event_loop.unwatch(pipe.reading)
    event_loop.unwatch(pipe.reading)
    pipe.send()
    other.send()
    wait_until(lambda: bool(got))
    time.sleep(0.02)
    assert got == ["other b'x'"]


def test_a_watcher_is_called_for_a_broken_descriptor_and_may_unwatch_itself(event_loop: EventLoop, pipe: Pipe) -> None:
    calls: list[int] = []

    def ready() -> None:
        calls.append(1)
        event_loop.unwatch(pipe.reading)

    event_loop.watch(pipe.reading, ready)
    pipe.break_()
    wait_until(lambda: calls == [1])
    time.sleep(0.02)
    assert calls == [1]


def test_a_watcher_that_raises_is_called_again_and_so_are_the_others(
    event_loop: EventLoop, pipe: Pipe, other: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fails() -> None:
        pipe.receive()
        raise ValueError("a defect")

    event_loop.watch(pipe.reading, fails)
    event_loop.watch(other.reading, lambda: got.append(other.receive()))
    for _ in range(3):
        pipe.send()
        other.send()
    wait_until(lambda: got == [b"x"] * 3)
    assert "ValueError: a defect" in caplog.text


def test_work_that_raises_does_not_end_the_loop(
    event_loop: EventLoop, work: ScriptedWork, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fails() -> None:
        raise ValueError("of the work")

    event_loop.watch(pipe.reading, lambda: got.append(pipe.receive()))
    work.submitted.extend([fails] * 3)
    pipe.send()
    wait_until(lambda: got == [b"x"])
    pipe.send()
    wait_until(lambda: got == [b"x"] * 2)
    assert "ValueError: of the work" in caplog.text


def test_pending_and_deferred_work_runs_beside_a_descriptor_that_is_always_ready(
    event_loop: EventLoop, work: ScriptedWork, pipe: Pipe
) -> None:
    pipe.send()
    calls: list[int] = []
    event_loop.watch(pipe.reading, lambda: calls.append(1))
    started, deferred = threading.Event(), threading.Event()
    work.submitted.append(started.set)
    event_loop.wake()
    assert started.wait(20)
    work.deferred.append(deferred.set)
    event_loop.wake()
    assert deferred.wait(20)
    assert calls


@pytest.mark.parametrize("stuck_in", ["watched", "deferred"])
def test_another_thread_takes_over_when_a_step_is_stuck(
    event_loop: EventLoop, work: ScriptedWork, pipe: Pipe, other: Pipe, stuck_in: str
) -> None:
    resume, stuck, ended = threading.Event(), threading.Event(), threading.Event()
    got: list[int] = []

    def hang() -> None:
        pipe.receive()
        stuck.set()
        resume.wait(20)
        ended.set()

    event_loop.watch(other.reading, lambda: got.append(threading.get_ident() if other.receive() else 0))
    if stuck_in == "watched":
        event_loop.watch(pipe.reading, hang)
        pipe.send()
    else:
        work.deferred.append(hang)
        event_loop.wake()
    assert stuck.wait(20)
    for number in range(3):
        other.send()
        wait_until(lambda number=number: len(got) == number + 1)
    resume.set()
    assert ended.wait(20)
    for _ in range(50):
        other.send()
    wait_until(lambda: len(got) == 53)
    assert set(got) == {work.threads[1]}, "the thread that was stuck does nothing any more"
    assert len(work.threads) == 2


def wait_for(event: threading.Event) -> None:
    event.wait(20)


def test_a_stuck_step_is_noticed_each_time_also_after_an_idle_period(
    event_loop: EventLoop, work: ScriptedWork, pipe: Pipe
) -> None:
    """The monitor itself sleeps while there are no steps."""
    resume = threading.Event()
    for number in range(4):
        time.sleep(2 * STUCK_S if number % 2 else 0.01)
        work.deferred.append(partial(wait_for, resume))
        event_loop.wake()
        wait_until(lambda number=number: len(work.threads) == number + 2)
    resume.set()


def test_many_short_steps_are_not_mistaken_for_a_stuck_one(event_loop: EventLoop, work: ScriptedWork) -> None:
    """However many steps there are, and however long all of them take together."""
    done: list[int] = []
    ends = time.monotonic() + 4 * STUCK_S
    while time.monotonic() < ends:
        work.deferred.append(lambda: done.append(time.sleep(0.001) or 1))
        event_loop.wake()
        time.sleep(0.001)
    wait_until(lambda: not work.deferred)
    assert len(work.threads) == 1


def test_close_runs_deferred_steps_on_another_thread_when_one_is_stuck(work: ScriptedWork) -> None:
    event_loop, resume, last = EventLoop(), threading.Event(), threading.Event()
    event_loop.attach(work)
    event_loop.start()
    work.deferred.append(partial(wait_for, resume))
    work.deferred.append(last.set)
    event_loop.wake()
    event_loop.close()
    assert last.is_set()
    resume.set()
    event_loop.wake()


def test_a_loop_without_work_calls_its_watchers(pipe: Pipe) -> None:
    event_loop, got = EventLoop(), list[bytes]()
    event_loop.watch(pipe.reading, lambda: got.append(pipe.receive()))
    event_loop.start()
    pipe.send()
    wait_until(lambda: got == [b"x"])
    event_loop.close()
