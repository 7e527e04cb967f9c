"""Fair shares: whoever has the fewest fetches running goes first, and nobody has all the threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.fair_queue import FairQueue, Job
from csi_driver.reading.fetcher import Fetcher

GREEDY, MODEST = 1, 2


class Crowd:
    """Jobs that run until they are let go, and who runs."""

    def __init__(self, threads: int) -> None:
        self.fetcher = Fetcher(threads)
        self.running: list[int] = []
        self.most: Counter[int] = Counter()
        self.order: list[int] = []
        self.go = threading.Semaphore(0)

    def job(self, volume: int) -> Job:
        def work() -> None:
            self.running.append(volume)
            self.order.append(volume)
            self.most[volume] = max(self.most[volume], self.running.count(volume))
            assert self.go.acquire(timeout=20)
            self.running.remove(volume)

        return Job(work)

    def close(self) -> None:
        for _ in range(1000):
            self.go.release()
        self.fetcher.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(16)
    yield crowd
    crowd.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def test_a_volume_with_many_readers_leaves_threads_for_another(crowd: Crowd) -> None:
    for _ in range(64):
        crowd.fetcher.demand(crowd.job(GREEDY), GREEDY)
    assert eventually(lambda: len(crowd.running) == 14)
    crowd.fetcher.demand(crowd.job(MODEST), MODEST)
    assert eventually(lambda: MODEST in crowd.running), "it waits for nobody, though the other's fetches hang"
    assert crowd.most[GREEDY] == 14


def test_of_waiting_jobs_the_volume_with_the_fewest_running_goes_first(crowd: Crowd) -> None:
    for _ in range(64):
        crowd.fetcher.demand(crowd.job(GREEDY), GREEDY)
    assert eventually(lambda: len(crowd.running) == 14)
    for _ in range(8):
        crowd.fetcher.demand(crowd.job(MODEST), MODEST)
    assert eventually(lambda: len(crowd.running) == 16)
    for _ in range(12):
        before = len(crowd.order)
        crowd.go.release()
        assert eventually(lambda before=before: len(crowd.order) > before)  # type: ignore[misc]
    assert crowd.order[16:].count(MODEST) >= 6, "it had to wait for a few of the other's to end, and not for all"


def test_with_nobody_else_a_volume_gets_on_until_all_is_done() -> None:
    crowd = Crowd(16)
    for _ in range(200):
        crowd.fetcher.demand(crowd.job(GREEDY), GREEDY)
        crowd.fetcher.ahead(crowd.job(GREEDY), GREEDY)
        crowd.go.release()
        crowd.go.release()
    assert eventually(lambda: len(crowd.order) == 400)
    crowd.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_does_all_the_work(threads: int) -> None:
    crowd = Crowd(threads)
    for number in range(60):
        (crowd.fetcher.ahead if number % 3 else crowd.fetcher.demand)(crowd.job(number % 5), number % 5)
        crowd.go.release()
    assert eventually(lambda: len(crowd.order) == 60)
    crowd.close()


def test_what_is_fetched_ahead_leaves_threads_for_what_somebody_waits_for(crowd: Crowd) -> None:
    for volume in range(10):
        for _ in range(10):
            crowd.fetcher.ahead(crowd.job(volume), volume)
    assert eventually(lambda: len(crowd.running) == 12)
    crowd.fetcher.demand(crowd.job(99), 99)
    assert eventually(lambda: 99 in crowd.running)


def test_a_job_that_is_moved_up_runs_once(crowd: Crowd) -> None:
    job = crowd.job(GREEDY)
    crowd.fetcher.ahead(job, GREEDY)
    crowd.fetcher.demand(job, GREEDY)
    last = crowd.job(MODEST)
    crowd.fetcher.demand(last, MODEST)
    assert eventually(lambda: MODEST in crowd.order)
    assert crowd.order.count(GREEDY) == 1


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 6))
def test_turns_give_every_job_once_and_never_more_of_a_volume_than_allowed(volumes: list[int], most: int) -> None:
    turns, running, waiting = FairQueue(), Counter[int](), Counter(volumes)
    for volume in volumes:
        turns.put(volume, Job(lambda: None))
    while waiting:
        taken = turns.take(running, most)
        if taken is None:
            assert all(running[volume] >= most for volume in waiting)
            running.clear()
            continue
        volume, _ = taken
        assert running[volume] == min(running[other] for other in waiting)
        running[volume] += 1
        waiting -= Counter([volume])
    assert not turns
