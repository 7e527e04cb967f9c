"""Liveness: a part that does not move is found, one that only waits for the world is not."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from csi_driver.event_loop.event_loop import EventLoop, LoopWork
from csi_driver.model.errors import DaemonUnavailable, ProcessStuck
from csi_driver.wiring.liveness import LIMIT_S, DaemonHealth, Liveness, LoopBeat, Stage
from tests.support.daemons import wait_until


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Blocked(LoopWork):
    """Work of a loop that takes a lock outside of a step: no other thread takes over."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def start_pending(self, poll: select.poll) -> None:
        with self._lock:
            pass


def is_stuck_later(liveness: Liveness, clock: Clock) -> bool:
    clock.now_s += LIMIT_S / 10
    return is_stuck(liveness)


def is_stuck(liveness: Liveness) -> bool:
    try:
        liveness.require()
    except ProcessStuck:
        return True
    return False


@pytest.fixture
def lock() -> threading.Lock:
    return threading.Lock()


@pytest.fixture
def loop(lock: threading.Lock) -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.attach(Blocked(lock))
    loop.start()
    yield loop
    loop.close()


@pytest.mark.promise("S605")
def test_an_event_loop_that_does_not_move_fails_liveness_until_it_does(loop: EventLoop, lock: threading.Lock) -> None:
    clock, beat = Clock(), LoopBeat(loop)
    liveness = Liveness({"event loop": beat}, period_s=0.01, clock=clock)
    with liveness.watching():
        clock.now_s += 2 * LIMIT_S
        wait_until(lambda: not is_stuck(liveness))
        with lock:
            loop.wake()
            wait_until(lambda: is_stuck_later(liveness, clock))
            with pytest.raises(ProcessStuck, match="event loop: has not moved for"):
                liveness.require()
        wait_until(lambda: not is_stuck(liveness))
    beat.close()


@pytest.mark.promise("S605")
def test_a_lock_that_is_held_for_ever_fails_liveness(lock: threading.Lock) -> None:
    clock = Clock()

    def probe() -> None:
        with lock:
            pass

    liveness = Liveness({"data plane": probe}, period_s=0.01, clock=clock)
    with liveness.watching():
        lock.acquire()
        wait_until(lambda: is_stuck_later(liveness, clock))
        lock.release()
        wait_until(lambda: not is_stuck(liveness))


@pytest.mark.promise("S605")
def test_a_check_that_raises_shows_that_its_part_moves(caplog: pytest.LogCaptureFixture) -> None:
    clock, called = Clock(), threading.Semaphore(0)

    def probe() -> None:
        called.release()
        raise OSError

    liveness = Liveness({"data plane": probe}, period_s=0.0, clock=clock)
    with liveness.watching():
        for _ in range(3):
            assert called.acquire(timeout=30)
            clock.now_s += 2 * LIMIT_S
    liveness.require()
    assert "unexpected error in a check of liveness" in caplog.text


@pytest.mark.promise("S606")
def test_a_daemon_is_ready_when_it_serves_or_waits_for_another_one() -> None:
    health = DaemonHealth()
    health.require_alive()
    with pytest.raises(DaemonUnavailable, match="adopts the mounts"):
        health.require_ready()
    for stage in (Stage.STANDBY, Stage.SERVING):
        health.stage = stage
        health.require_ready()
