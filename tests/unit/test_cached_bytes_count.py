"""The count of cached bytes of a large dataset leaves the interpreter to the reads."""

from __future__ import annotations

import threading
import time

import pytest

from csi_driver.daemon.cached_bytes_count import AT_ONCE_FILES, BATCH_FILES, CachedBytesCount

FILES = AT_ONCE_FILES + 1
LIMIT_S = 30.0


def until_known(count: CachedBytesCount) -> int:
    end_s = time.monotonic() + LIMIT_S
    while not count.value() and time.monotonic() < end_s:
        time.sleep(0.01)
    return count.value()


def test_few_files_are_counted_at_once() -> None:
    assert CachedBytesCount(AT_ONCE_FILES, lambda start, stop: 2 * (stop - start)).value() == 2 * AT_ONCE_FILES


def test_many_files_are_counted_in_small_batches_by_another_thread() -> None:
    batches: list[tuple[int, int]] = []
    threads: set[int] = set()

    def counted(start: int, stop: int) -> int:
        batches.append((start, stop))
        threads.add(threading.get_ident())
        return 2 * (stop - start)

    count = CachedBytesCount(FILES, counted)
    assert count.value() == 0
    assert until_known(count) == 2 * FILES
    assert max(stop - start for start, stop in batches) <= BATCH_FILES
    assert [start for start, _ in batches] == [0, *(stop for _, stop in batches[:-1])]
    assert batches[-1][1] == FILES
    assert threading.get_ident() not in threads


def test_the_counts_of_several_mounts_take_turns() -> None:
    inside = threading.Lock()
    together: list[bool] = []

    def counted(start: int, stop: int) -> int:
        alone = inside.acquire(blocking=False)
        together.append(not alone)
        time.sleep(0.001)
        if alone:
            inside.release()
        return stop - start

    counts = [CachedBytesCount(FILES, counted) for _ in range(3)]
    for count in counts:
        count.value()
    assert [until_known(count) for count in counts] == [FILES] * 3
    assert not any(together)


def test_nothing_is_counted_after_the_end() -> None:
    closed, late = threading.Event(), list[int]()
    began = threading.Event()

    def counted(start: int, stop: int) -> int:
        began.set()
        if closed.is_set():
            late.append(start)
        return stop - start

    count = CachedBytesCount(100 * FILES, counted)
    count.value()
    assert began.wait(LIMIT_S)
    count.close()
    closed.set()
    count.value()
    with_another = CachedBytesCount(FILES, lambda start, stop: stop - start)
    assert until_known(with_another) == FILES  # by then the first one would have had a turn
    assert late == []


def test_a_process_without_another_thread_counts_later_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    count = CachedBytesCount(FILES, lambda start, stop: stop - start)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert count.value() == 0
    assert until_known(count) == FILES
    count.close()


def test_an_estimate_is_counted_a_tenth_as_often() -> None:
    counts = threading.Semaphore(0)

    def counted(start: int, stop: int) -> int:
        if not start:
            counts.release()
        return stop - start

    count = CachedBytesCount(FILES, counted)
    assert count.estimate() in (0, FILES), "it is counted in the background"
    assert until_known(count) == FILES
    count._fresh_until_s = 0.0  # long ago for ``value``
    count._took_s = time.monotonic() / 5
    assert count.estimate() == FILES
    assert counts.acquire(blocking=False)
    assert not counts.acquire(blocking=False), "kept"
    count._took_s = 0.0
    assert count.estimate() == FILES
    assert counts.acquire(timeout=30), "counted anew"
    count.close()
