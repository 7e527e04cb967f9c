"""The thread that waits for many descriptors, and who goes on when it is stuck."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import pytest

from csi_driver.event_loop.event_loop import STUCK_S, EventLoop, Step
from tests.support.daemons import wait_until


class Script:
    """Work that is begun and left as the test says."""

    def __init__(self) -> None:
        self.submitted: deque[Step] = deque()
        self.left: deque[Step] = deque()
        self.threads: list[int] = []

    def resume(self, poll: select.poll) -> None:
        self.threads.append(threading.get_ident())

    def begin(self, poll: select.poll) -> None:
        while self.submitted:
            self.submitted.popleft()()

    def wait_ms(self) -> float | None:
        return 0.0 if self.submitted or self.left else None

    def take(self, descriptor: int, poll: select.poll) -> Step | None:
        raise AssertionError("nothing is registered")

    def next_left(self) -> Step | None:
        return self.left.popleft() if self.left else None

    def look(self, poll: select.poll) -> None: ...

    def give_up(self) -> None: ...


class Pipe:
    """Something to watch."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)

    def send(self, message: bytes = b"x") -> None:
        os.write(self._writing, message)

    def take(self) -> bytes:
        """One byte, or nothing."""
        with suppress(BlockingIOError):
            return os.read(self.reading, 1)
        return b""

    def break_off(self) -> None:
        os.close(self._writing)
        self._writing = -1

    def close(self) -> None:
        os.close(self.reading)
        if self._writing >= 0:
            os.close(self._writing)


@pytest.fixture
def work() -> Script:
    return Script()


@pytest.fixture
def loop(work: Script) -> Iterator[EventLoop]:
    loop = EventLoop(work)
    loop.start()
    yield loop
    loop.close()


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


def test_what_is_watched_is_called_for_when_it_is_ready_and_not_otherwise(
    loop: EventLoop, pipe: Pipe, other: Pipe
) -> None:
    got: list[bytes] = []
    calls: list[int] = []
    loop.watch(pipe.reading, lambda: got.append(pipe.take()))
    loop.watch(other.reading, lambda: calls.append(len(other.take())))
    for _ in range(200):
        pipe.send()
        if len(got) % 3 == 0:
            time.sleep(0.0005)
    wait_until(lambda: got.count(b"x") == 200)
    assert calls == []


def test_nothing_is_called_for_after_the_watch_ended(loop: EventLoop, work: Script, pipe: Pipe, other: Pipe) -> None:
    got: list[str] = []
    loop.watch(pipe.reading, lambda: got.append(f"pipe {pipe.take()!r}"))
    loop.watch(other.reading, lambda: got.append(f"other {other.take()!r}"))
    loop.unwatch(pipe.reading)
    loop.unwatch(pipe.reading)
    pipe.send()
    other.send()
    wait_until(lambda: bool(got))
    time.sleep(0.02)
    assert got == ["other b'x'"]


def test_it_may_end_its_own_watch_and_a_broken_one_is_called_for(loop: EventLoop, pipe: Pipe) -> None:
    calls: list[int] = []

    def ready() -> None:
        calls.append(1)
        loop.unwatch(pipe.reading)

    loop.watch(pipe.reading, ready)
    pipe.break_off()
    wait_until(lambda: calls == [1])
    time.sleep(0.02)
    assert calls == [1]


def test_one_that_fails_is_called_for_again_and_others_are_too(
    loop: EventLoop, pipe: Pipe, other: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fails() -> None:
        pipe.take()
        raise ValueError("nobody foresaw this")

    loop.watch(pipe.reading, fails)
    loop.watch(other.reading, lambda: got.append(other.take()))
    for _ in range(3):
        pipe.send()
        other.send()
    wait_until(lambda: got == [b"x"] * 3)
    assert "nobody foresaw" in caplog.text


def test_work_that_fails_ends_nothing(
    loop: EventLoop, work: Script, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fails() -> None:
        raise ValueError("of the work")

    loop.watch(pipe.reading, lambda: got.append(pipe.take()))
    work.submitted.extend([fails] * 3)
    pipe.send()
    wait_until(lambda: got == [b"x"])
    pipe.send()
    wait_until(lambda: got == [b"x"] * 2)
    assert "ValueError: of the work" in caplog.text


def test_what_was_submitted_is_begun_beside_one_that_is_always_ready(loop: EventLoop, work: Script, pipe: Pipe) -> None:
    pipe.send()
    calls: list[int] = []
    loop.watch(pipe.reading, lambda: calls.append(1))
    begun, left = threading.Event(), threading.Event()
    work.submitted.append(begun.set)
    loop.awake()
    assert begun.wait(20)
    work.left.append(left.set)
    loop.awake()
    assert left.wait(20)
    assert calls


@pytest.mark.parametrize("stuck_in", ["watched", "left"])
def test_another_thread_goes_on_for_one_that_is_stuck(
    loop: EventLoop, work: Script, pipe: Pipe, other: Pipe, stuck_in: str
) -> None:
    go_on, stuck, ended = threading.Event(), threading.Event(), threading.Event()
    got: list[int] = []

    def hang() -> None:
        pipe.take()
        stuck.set()
        go_on.wait(20)
        ended.set()

    loop.watch(other.reading, lambda: got.append(threading.get_ident() if other.take() else 0))
    if stuck_in == "watched":
        loop.watch(pipe.reading, hang)
        pipe.send()
    else:
        work.left.append(hang)
        loop.awake()
    assert stuck.wait(20)
    for number in range(3):
        other.send()
        wait_until(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
    go_on.set()
    assert ended.wait(20)
    for _ in range(50):
        other.send()
    wait_until(lambda: len(got) == 53)
    assert set(got) == {work.threads[1]}, "the one that was stuck does nothing any more"
    assert len(work.threads) == 2


def test_whoever_is_stuck_after_a_rest_is_noticed_each_time(loop: EventLoop, work: Script, pipe: Pipe) -> None:
    """The one that looks whether a step is stuck sleeps itself when there are none."""
    go_on = threading.Event()
    for number in range(4):
        time.sleep(2 * STUCK_S if number % 2 else 0.01)
        work.left.append(lambda: go_on.wait(20))
        loop.awake()
        wait_until(lambda number=number: len(work.threads) == number + 2)  # type: ignore[misc]
    go_on.set()


def test_steps_that_take_no_time_pass_for_no_stuck_one(loop: EventLoop, work: Script) -> None:
    """However many there are, and however long all of them take together."""
    done: list[int] = []
    ends = time.monotonic() + 4 * STUCK_S
    while time.monotonic() < ends:
        work.left.append(lambda: done.append(time.sleep(0.001) or 1))
        loop.awake()
        time.sleep(0.001)
    wait_until(lambda: not work.left)
    assert len(work.threads) == 1


def test_at_the_end_what_is_left_is_done_by_another_if_one_is_stuck(work: Script) -> None:
    loop, go_on, last = EventLoop(work), threading.Event(), threading.Event()
    loop.start()
    work.left.append(lambda: go_on.wait(20))
    work.left.append(last.set)
    loop.awake()
    loop.close()
    assert last.is_set()
    assert loop.closing
    go_on.set()
    loop.awake()
