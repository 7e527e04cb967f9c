"""Fair shares: the volume with the fewest running jobs goes first, and no volume has all the threads."""

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


class FetcherBench:
    """Jobs that run until the test ends them, and the volumes of those that run."""

    def __init__(self, threads: int) -> None:
        self.fetcher = Fetcher(threads)
        self.running: list[int] = []
        self.highest: Counter[int] = Counter()
        self.order: list[int] = []
        self.may_end = threading.Semaphore(0)

    def job(self, volume: int) -> Job:
        def work() -> None:
            self.running.append(volume)
            self.order.append(volume)
            self.highest[volume] = max(self.highest[volume], self.running.count(volume))
            assert self.may_end.acquire(timeout=20)
            self.running.remove(volume)

        return Job(work)

    def close(self) -> None:
        for _ in range(1000):
            self.may_end.release()
        self.fetcher.close()


@pytest.fixture
def bench() -> Iterator[FetcherBench]:
    bench = FetcherBench(16)
    yield bench
    bench.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def test_a_volume_with_many_readers_leaves_threads_for_another(bench: FetcherBench) -> None:
    for _ in range(64):
        bench.fetcher.demand(bench.job(GREEDY), GREEDY)
    assert eventually(lambda: len(bench.running) == 14)
    bench.fetcher.demand(bench.job(MODEST), MODEST)
    assert eventually(lambda: MODEST in bench.running), "it does not wait, although the other's fetches hang"
    assert bench.highest[GREEDY] == 14


def test_the_volume_with_the_fewest_running_jobs_goes_first(bench: FetcherBench) -> None:
    for _ in range(64):
        bench.fetcher.demand(bench.job(GREEDY), GREEDY)
    assert eventually(lambda: len(bench.running) == 14)
    for _ in range(8):
        bench.fetcher.demand(bench.job(MODEST), MODEST)
    assert eventually(lambda: len(bench.running) == 16)
    for _ in range(12):
        before = len(bench.order)
        bench.may_end.release()
        assert eventually(lambda before=before: len(bench.order) > before)  # type: ignore[misc]
    assert bench.order[16:].count(MODEST) >= 6, "it waited for a few of the other's jobs, and not for all"


def test_a_volume_alone_runs_all_its_jobs() -> None:
    bench = FetcherBench(16)
    for _ in range(200):
        bench.fetcher.demand(bench.job(GREEDY), GREEDY)
        bench.fetcher.ahead(bench.job(GREEDY), GREEDY)
        bench.may_end.release()
        bench.may_end.release()
    assert eventually(lambda: len(bench.order) == 400)
    bench.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_runs_all_jobs(threads: int) -> None:
    bench = FetcherBench(threads)
    for number in range(60):
        (bench.fetcher.ahead if number % 3 else bench.fetcher.demand)(bench.job(number % 5), number % 5)
        bench.may_end.release()
    assert eventually(lambda: len(bench.order) == 60)
    bench.close()


def test_readahead_leaves_threads_for_fetches_on_demand(bench: FetcherBench) -> None:
    for volume in range(10):
        for _ in range(10):
            bench.fetcher.ahead(bench.job(volume), volume)
    assert eventually(lambda: len(bench.running) == 12)
    bench.fetcher.demand(bench.job(99), 99)
    assert eventually(lambda: 99 in bench.running)


def test_a_job_that_is_moved_up_runs_once(bench: FetcherBench) -> None:
    job = bench.job(GREEDY)
    bench.fetcher.ahead(job, GREEDY)
    bench.fetcher.demand(job, GREEDY)
    last = bench.job(MODEST)
    bench.fetcher.demand(last, MODEST)
    assert eventually(lambda: MODEST in bench.order)
    assert bench.order.count(GREEDY) == 1


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 6))
def test_the_fair_queue_returns_every_job_once_and_never_more_of_a_volume_than_allowed(
    volumes: list[int], most: int
) -> None:
    queue, running, waiting = FairQueue[Job](), Counter[int](), Counter(volumes)
    for volume in volumes:
        queue.put(volume, Job(lambda: None))
    while waiting:
        taken = queue.take(running, most)
        if taken is None:
            assert all(running[volume] >= most for volume in waiting)
            running.clear()
            continue
        volume, _ = taken
        assert running[volume] == min(running[other] for other in waiting)
        running[volume] += 1
        waiting -= Counter([volume])
    assert not queue
