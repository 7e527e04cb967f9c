"""Fair shares: the volume with the fewest running jobs goes first, and no volume has all the threads, also while its
store hangs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.fair_queue import FairQueue
from csi_driver.reading.fair_shares import STALL_S, FairShares, Share, note_progress
from csi_driver.reading.fetcher import IDLE_S, Fetcher, Job
from csi_driver.reading.scheduler import Lane

GREEDY, MODEST = Share("", "store", "greedy"), Share("", "store", "modest")
ATTACKERS = [Share(f"team-{number % 4}", f"store-{number}", f"volume-{number}") for number in range(20)]
VICTIM = Share("team-9", "store-9", "victim")


def volume(number: int) -> Share:
    """One of several volumes of one store."""
    return Share("", "store", str(number))


class FetcherBench:
    """Jobs that run until the test ends them, and the volumes of those that run."""

    def __init__(self, threads: int, idle_s: float = IDLE_S) -> None:
        self.fetcher = Fetcher(threads, idle_s=idle_s)
        self.running: list[Share] = []
        self.highest: Counter[Share] = Counter()
        self.order: list[Share] = []
        self.may_end = threading.Semaphore(0)

    def job(self, share: Share) -> Job:
        def work() -> None:
            self.running.append(share)
            self.order.append(share)
            self.highest[share] = max(self.highest[share], self.running.count(share))
            assert self.may_end.acquire(timeout=20)
            self.running.remove(share)

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
        (bench.fetcher.ahead if number % 3 else bench.fetcher.demand)(bench.job(volume(number % 5)), volume(number % 5))
        bench.may_end.release()
    assert eventually(lambda: len(bench.order) == 60)
    bench.close()


def test_readahead_leaves_threads_for_fetches_on_demand(bench: FetcherBench) -> None:
    for number in range(10):
        for _ in range(10):
            bench.fetcher.ahead(bench.job(volume(number)), volume(number))
    assert eventually(lambda: len(bench.running) == 12)
    bench.fetcher.demand(bench.job(volume(99)), volume(99))
    assert eventually(lambda: volume(99) in bench.running)


def test_a_job_that_is_moved_up_runs_once(bench: FetcherBench) -> None:
    job = bench.job(GREEDY)
    bench.fetcher.ahead(job, GREEDY)
    bench.fetcher.demand(job, GREEDY)
    last = bench.job(MODEST)
    bench.fetcher.demand(last, MODEST)
    assert eventually(lambda: MODEST in bench.order)
    assert bench.order.count(GREEDY) == 1


def test_volumes_of_one_store_share_the_usual_threads(bench: FetcherBench) -> None:
    for number in range(100):
        bench.fetcher.demand(bench.job(volume(number)), volume(number))
    assert eventually(lambda: len(bench.running) == 16)
    time.sleep(0.05)
    assert len(bench.running) == 16


def test_a_namespace_does_not_wait_for_the_jobs_of_others(bench: FetcherBench) -> None:
    """20 volumes of 20 stores, with jobs that receive a byte now and then: they are never stalled."""
    for share in ATTACKERS * 20:
        bench.fetcher.demand(bench.job(share), share)
    assert eventually(lambda: len(bench.running) >= 16)
    bench.fetcher.demand(bench.job(VICTIM), VICTIM)
    assert eventually(lambda: VICTIM in bench.running)


def test_jobs_without_progress_leave_the_threads_to_others(bench: FetcherBench) -> None:
    for share in ATTACKERS * 20:
        bench.fetcher.demand(bench.job(share), share)
    assert eventually(lambda: len(bench.running) > 64), "others have the place of those that are stalled"
    for _ in range(14):
        bench.fetcher.demand(bench.job(VICTIM), VICTIM)
    assert eventually(lambda: bench.running.count(VICTIM) >= 3)
    assert len(bench.running) < 8 * 16, "some threads are always left for one more namespace"
    # A warmup of others may begin then: what is queued waits for its own stores.
    warmed = threading.Event()
    bench.fetcher.warm(Job(warmed.set), Share("team-8", "store-8", "warmed"))
    assert warmed.wait(20)


def test_a_job_with_progress_is_not_replaced() -> None:
    bench, fetched, begun = FetcherBench(2), threading.Event(), list[int]()

    def trickle() -> None:
        begun.append(1)
        while not fetched.wait(0.1):
            note_progress()

    for _ in range(4):
        bench.fetcher.demand(Job(trickle), GREEDY)
    assert eventually(lambda: len(begun) == 2)
    time.sleep(STALL_S + 1)
    assert len(begun) == 2
    fetched.set()
    bench.close()


def test_threads_beyond_the_usual_number_end_when_they_are_idle() -> None:
    bench = FetcherBench(2, idle_s=0.1)
    for share in ATTACKERS:
        bench.fetcher.demand(bench.job(share), share)
    assert eventually(lambda: len(bench.running) > 2)
    for _ in ATTACKERS:
        bench.may_end.release()
    assert eventually(lambda: len(bench.order) == len(ATTACKERS))
    assert eventually(lambda: len(bench.fetcher._pools[Lane.THREADS].threads) <= 2)
    bench.fetcher.demand(bench.job(VICTIM), VICTIM)
    bench.may_end.release()
    assert eventually(lambda: VICTIM in bench.order)
    bench.close()


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 6))
def test_the_fair_queue_returns_every_job_once_and_never_more_of_a_volume_than_allowed(
    numbers: list[int], most: int
) -> None:
    queue, waiting = FairQueue[Job](), Counter(map(volume, numbers))
    shares, running = FairShares(100, 1000, most_of_a_volume=most), Counter[Share]()
    for number in numbers:
        queue.put(volume(number), Job(lambda: None))
    while waiting:
        taken = queue.take((shares,), lambda share, job: True)
        if taken is None:
            assert all(running[share] >= most for share in waiting)
            shares = FairShares(100, 1000, most_of_a_volume=most)
            running.clear()
            continue
        share, _ = taken
        assert running[share] == min(running[other] for other in waiting)
        shares.start(share)
        running[share] += 1
        waiting -= Counter([share])
    assert not queue
