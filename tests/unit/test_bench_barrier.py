"""Ranks stay in step, also when one of them cannot go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hayloft_bench.distributed.barrier import Barrier, OtherRank
from hayloft_bench.distributed.gang import Rank


class Hall:
    """Barriers by name for two threads that stand for ranks; coming to another one than the other is an error."""

    def __init__(self) -> None:
        self._names: list[set[str]] = []
        self._obstacles: list[dict[int, str]] = []
        self._barrier = threading.Barrier(2, timeout=10)
        self._lock = threading.Lock()

    def come(self, rank: int, number: int, name: str, obstacle: str) -> dict[int, str]:
        with self._lock:
            if len(self._names) <= number:
                self._names.append(set())
                self._obstacles.append({})
            self._names[number].add(name)
            if obstacle:
                self._obstacles[number][rank] = obstacle
        self._barrier.wait()
        assert len(self._names[number]) == 1, self._names[number]
        return self._obstacles[number]


class TwoGang:
    """As one of the two sees it."""

    def __init__(self, hall: Hall, rank: int) -> None:
        self.rank = Rank(rank=rank, ranks=2)
        self._hall, self._number = hall, -1

    def barrier(self, name: str, *, obstacle: str = "") -> dict[int, str]:
        self._number += 1
        return self._hall.come(self.rank.rank, self._number, name, obstacle)


def _both(*courses: Callable[[Barrier], None]) -> list[str]:
    """What each rank raised; empty text for nothing."""
    hall, raised = Hall(), ["", ""]

    def follow(rank: int) -> None:
        gang: Any = TwoGang(hall, rank)
        try:
            courses[rank](Barrier(gang))
        except (OtherRank, RuntimeError) as error:
            raised[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=follow, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def _well(meeting: Barrier) -> None:
    with meeting.turn("hot/1", ["hot/1/begin"]):
        meeting.begin("hot/1/begin")


def _not_starting(meeting: Barrier) -> None:
    with meeting.turn("hot/1", ["hot/1/begin"]):
        raise RuntimeError("no such luck")


def _failing_late(meeting: Barrier) -> None:
    with meeting.turn("hot/1", ["hot/1/begin"]):
        meeting.begin("hot/1/begin")
        raise RuntimeError("died")


def test_ranks_that_are_well_meet_and_go_on() -> None:
    assert _both(_well, _well) == ["", ""]


@pytest.mark.parametrize(("failing", "word"), [(_not_starting, "no such luck"), (_failing_late, "died")])
def test_what_fails_on_one_rank_is_left_out_on_the_other(failing: Callable[[Barrier], None], word: str) -> None:
    assert _both(failing, _well) == [f"RuntimeError: {word}", f"OtherRank: rank 0: {word}"]


def test_what_one_rank_cannot_do_none_does() -> None:
    found: list[str | None] = [None, None]

    def ask(obstacle: str | None) -> Callable[[Barrier], None]:
        def course(meeting: Barrier) -> None:
            found[meeting.rank] = meeting.agreed("available/rclone", obstacle)

        return course

    _both(ask(None), ask("not installed"))
    assert found == ["rank 1: not installed", "not installed"]
