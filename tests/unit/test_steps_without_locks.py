"""What is done without a lock, by single steps of lists, deques and dictionaries: between any two steps another thread
may do all of its work."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from csi_driver.cache.disk import LocalDisk
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.index import Index, IndexRow
from csi_driver.cache.object_file import ObjectFile
from csi_driver.objects.concurrency_limit import RequestLimit
from csi_driver.objects.request_counts import OK, Request, RequestCounts
from csi_driver.reading.object_table import FromMemory, Next, ObjectTable, Staged

THREADS, ROUNDS = 4, 300


@pytest.fixture(autouse=True)
def _switching_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None]) -> None:
    """All at the same time. Raises what any of them raises."""
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        barrier.wait(60)
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS), timeout=60))


class Owner:
    """Of object files that are in a table while they are open."""

    def __init__(self) -> None:
        self.in_use = FilesInUse()
        self.released_digests: Counter[int] = Counter()

    def ensure_space(self, file: ObjectFile, count_bytes: int) -> bool:
        return True

    def grew(self, file: ObjectFile, count_bytes: int) -> None: ...

    def completed(self, file: ObjectFile) -> None: ...

    def released(self, file: ObjectFile) -> None:
        self.released_digests[id(file)] += 1
        self.in_use.remove(file)

    def opened(self) -> ObjectFile:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return ObjectFile(self, LocalDisk(), "aa", 1, descriptor, None)


class Switch:
    """Runs ``other`` on another thread before a step, and waits for it, unless it waits for the first one."""

    def __init__(self, before_step: int, other: Callable[[], None]) -> None:
        self._left = before_step
        self._other = threading.Thread(target=other, daemon=True)

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._left = -1
            self._other.start()
            self._other.join(0.05)

    def end(self) -> None:
        if self._left >= 0:  # there are fewer steps
            self._left = -1
            self._other.start()
        self._other.join(20)
        assert not self._other.is_alive()


def no_switch() -> None: ...


class SwitchingList(list[Any]):
    switch: Callable[[], None] = no_switch

    def append(self, one: Any) -> None:
        type(self).switch()
        super().append(one)

    def pop(self, *index: Any) -> Any:
        type(self).switch()
        return super().pop(*index)

    def __getitem__(self, index: Any) -> Any:
        type(self).switch()
        return super().__getitem__(index)

    def __len__(self) -> int:
        type(self).switch()
        return super().__len__()


class SwitchingDeque(deque[Any]):
    def append(self, one: Any) -> None:
        SwitchingList.switch()
        super().append(one)

    def __len__(self) -> int:
        SwitchingList.switch()
        return super().__len__()


class SwitchingDict(dict[Any, Any]):
    def get(self, *arguments: Any) -> Any:
        SwitchingList.switch()
        return super().get(*arguments)

    def setdefault(self, *arguments: Any) -> Any:
        SwitchingList.switch()
        return super().setdefault(*arguments)

    def __delitem__(self, key: Any) -> None:
        SwitchingList.switch()
        super().__delitem__(key)


@pytest.fixture(params=range(1, 9))
def switch_to(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], None]], Switch]]:
    """Has another piece of work done between two steps, and returns what waits for its end."""

    def begin(other: Callable[[], None]) -> Switch:
        switch = Switch(request.param, other)
        SwitchingList.switch = switch
        return switch

    yield begin
    SwitchingList.switch = no_switch


SwitchTo = Callable[[Callable[[], None]], Switch]


def test_a_request_gets_the_slot_that_is_given_back_meanwhile(switch_to: SwitchTo) -> None:
    limit = RequestLimit(1)
    limit._free, limit._waiting = SwitchingList([None]), SwitchingDeque()
    assert limit.take()
    granted: list[bool] = []
    switch = switch_to(limit.give_back)
    if limit.take(lambda: granted.append(True)):
        granted.append(True)
    switch.end()
    assert granted == [True]
    limit.give_back()
    assert limit.free == 1


def test_a_file_is_closed_by_its_last_user_or_acquired(switch_to: SwitchTo) -> None:
    owner = Owner()
    file = owner.opened()
    owner.in_use.enter(file)
    file._users = SwitchingList(file._users)
    switch = switch_to(file.release)
    acquired = file.acquire()
    switch.end()
    assert acquired == (not owner.released_digests[id(file)])
    if acquired:
        file.release()
    assert owner.released_digests[id(file)] == 1
    assert not file.acquire()


def test_a_file_that_is_detached_while_it_is_closed_takes_no_other_one_with_it(switch_to: SwitchTo) -> None:
    owner = Owner()
    first, second = owner.opened(), owner.opened()
    owner.in_use._files = SwitchingDict()
    owner.in_use.enter(first)

    def other() -> None:
        owner.in_use.detach("aa")
        assert owner.in_use.enter(second) is second

    switch = switch_to(other)
    first.release()
    switch.end()
    assert owner.in_use.find("aa") is second
    second.release()


def test_a_file_takes_the_place_of_one_that_is_closed_meanwhile(switch_to: SwitchTo) -> None:
    owner = Owner()
    first, second = owner.opened(), owner.opened()
    owner.in_use._files = SwitchingDict()
    owner.in_use.enter(first)
    switch = switch_to(first.release)
    entered = owner.in_use.enter(second)
    switch.end()
    assert owner.in_use.find("aa") is entered
    entered.release()
    assert owner.in_use.find("aa") is None


class Waiting(NamedTuple):
    number: int
    bytes_with_a_file: int
    urgent: bool = True


class Shared:
    opens = fetches = 0


@pytest.mark.parametrize("backlogged", [False, True])
def test_every_open_that_joins_a_fetch_while_it_ends_is_answered_once(backlogged: bool) -> None:
    table: ObjectTable[Waiting, Shared] = ObjectTable(lambda count_bytes: False)
    key, answers = ("a", b"1"), Counter[int]()
    staged = Staged([memoryview(b"bytes")], backlogged)

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            one = Waiting(number * ROUNDS + turn, turn % 2)
            found: object = Next.LOOK_AGAIN
            while found is Next.LOOK_AGAIN:
                found = table.ask(key, one, table.arrivals)
            if isinstance(found, FromMemory):
                answers[one.number] += 1
            elif found is Next.FETCH:
                served, _ = table.serve(key, staged, stage=True)
                rest, _ = table.finish(key, None, staged)
                answers.update(each.number for each in [*(waiting for waiting, _ in served), *rest])

    in_threads(work)
    assert sorted(answers.values()) == [1] * (THREADS * ROUNDS)
    assert table.is_empty


def test_a_row_is_found_at_any_moment_after_it_was_recorded(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite", interval_s=0.0)

    def work(number: int) -> None:
        for turn in range(ROUNDS // 4):
            digest = f"{number * ROUNDS + turn:040x}"
            index.record(IndexRow(digest, 1, 1, True, b"", 1))
            assert index.find(digest) is not None
            if turn % 2:
                index.forget(digest)
                assert index.find(digest) is None

    in_threads(work)
    index.close()


def test_every_request_is_counted() -> None:
    counts = RequestCounts()

    def work(_: int) -> None:
        for _ in range(ROUNDS * 4):
            request = Request(counts)
            request.answered()
            request.end(OK)

    in_threads(work)
    assert counts.numbers().results == {OK: THREADS * ROUNDS * 4}
    assert sum(counts.numbers().waits.counts) == THREADS * ROUNDS * 4
