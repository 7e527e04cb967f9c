"""On which core the thread that answers a reader runs."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable

import pytest

from csi_driver.fuse.reader_core import ReaderCore, core_of

LOOK = 64
"""Requests from one look to the next."""


class FakeCores:
    """Where tasks run, and where the thread was told to run."""

    def __init__(self) -> None:
        self.of_task: dict[int, int] = {}
        self.refused: set[int] = set()
        self.looks = 0
        self.told: list[set[int]] = []

    def core_of(self, task: int) -> int | None:
        self.looks += 1
        return self.of_task.get(task)

    def stay_on(self, cores: Iterable[int]) -> None:
        wanted = set(cores)
        if wanted & self.refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.told.append(wanted)


@pytest.fixture
def cores() -> FakeCores:
    return FakeCores()


@pytest.fixture
def reader_core(cores: FakeCores) -> ReaderCore:
    return ReaderCore(cores.core_of, cores.stay_on)


def ask(reader_core: ReaderCore, *tasks: int, looks: int) -> None:
    for number in range(looks):
        for _ in range(LOOK):
            reader_core.request(tasks[number % len(tasks)])


def test_the_thread_follows_one_reader_to_its_core(reader_core: ReaderCore, cores: FakeCores) -> None:
    cores.of_task[100] = 3
    ask(reader_core, 100, looks=3)
    assert cores.told == []
    ask(reader_core, 100, looks=20)
    assert cores.told == [{3}]


def test_a_reader_that_moves_is_followed_and_none_is_kept_meanwhile(reader_core: ReaderCore, cores: FakeCores) -> None:
    cores.of_task[100] = 3
    ask(reader_core, 100, looks=4)
    cores.of_task[100] = 5
    ask(reader_core, 100, looks=1)
    assert cores.told == [{3}, os.sched_getaffinity(0)]
    ask(reader_core, 100, looks=3)
    assert cores.told[-1] == {5}


def test_several_readers_are_answered_on_any_core(reader_core: ReaderCore, cores: FakeCores) -> None:
    cores.of_task |= {100: 0, 200: 1}
    ask(reader_core, 100, 200, looks=40)
    assert cores.told == []


def test_release_gives_all_cores_back_once(reader_core: ReaderCore, cores: FakeCores) -> None:
    cores.of_task[100] = 3
    ask(reader_core, 100, looks=4)
    reader_core.release()
    reader_core.release()
    assert cores.told == [{3}, os.sched_getaffinity(0)]


def test_a_core_that_the_container_may_not_use_is_left_to_the_reader(reader_core: ReaderCore, cores: FakeCores) -> None:
    cores.of_task[100] = 3
    cores.refused.add(3)
    ask(reader_core, 100, looks=40)
    assert cores.told == []


def test_a_reader_of_another_process_namespace_is_not_looked_for(reader_core: ReaderCore, cores: FakeCores) -> None:
    ask(reader_core, 0, looks=40)
    assert cores.told == []
    assert core_of(0) is None


def test_one_request_in_sixty_four_is_looked_at(reader_core: ReaderCore, cores: FakeCores) -> None:
    ask(reader_core, 100, looks=10)
    assert cores.looks == 10


def test_the_core_of_a_task_is_that_of_its_thread() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    found: list[int | None] = []

    def stay() -> None:
        os.sched_setaffinity(0, {core})
        found.append(core_of(threading.get_native_id()))

    thread = threading.Thread(target=stay)
    thread.start()
    thread.join()
    assert found == [core]
    assert os.sched_getaffinity(0) == before
    assert core_of(2**22 + 1) is None  # above the kernel's largest id
