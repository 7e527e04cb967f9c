"""Ranks stay in step, even if one of them cannot continue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hayloft_bench.distributed.barrier import Barrier, OtherRank
from hayloft_bench.distributed.gang import Rank


class SharedBarriers:
    """Barriers by name for two threads that play ranks; two ranks at different barriers are an error."""

    def __init__(self) -> None:
        self._names: list[set[str]] = []
        self._obstacles: list[dict[int, str]] = []
        self._barrier = threading.Barrier(2, timeout=10)
        self._lock = threading.Lock()

    def wait(self, rank: int, number: int, name: str, obstacle: str) -> dict[int, str]:
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


class GangOfTwo:
    """The gang from the view of one of the two ranks."""

    def __init__(self, barriers: SharedBarriers, rank: int) -> None:
        self.rank = Rank(rank=rank, ranks=2)
        self._barriers, self._number = barriers, -1

    def barrier(self, name: str, *, obstacle: str = "") -> dict[int, str]:
        self._number += 1
        return self._barriers.wait(self.rank.rank, self._number, name, obstacle)


def _errors_of(*runs: Callable[[Barrier], None]) -> list[str]:
    """The error that each rank raised; empty: none."""
    barriers, raised = SharedBarriers(), ["", ""]

    def run(rank: int) -> None:
        gang: Any = GangOfTwo(barriers, rank)
        try:
            runs[rank](Barrier(gang))
        except (OtherRank, RuntimeError) as error:
            raised[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def _succeed(barrier: Barrier) -> None:
    with barrier.turn("hot/1", ["hot/1/begin"]):
        barrier.begin("hot/1/begin")


def _fail_before_the_barrier(barrier: Barrier) -> None:
    with barrier.turn("hot/1", ["hot/1/begin"]):
        raise RuntimeError("did not start")


def _fail_after_the_barrier(barrier: Barrier) -> None:
    with barrier.turn("hot/1", ["hot/1/begin"]):
        barrier.begin("hot/1/begin")
        raise RuntimeError("died")


def test_ranks_without_an_error_pass_all_barriers() -> None:
    assert _errors_of(_succeed, _succeed) == ["", ""]


@pytest.mark.parametrize(
    ("failing", "word"), [(_fail_before_the_barrier, "did not start"), (_fail_after_the_barrier, "died")]
)
def test_a_turn_that_fails_on_one_rank_is_skipped_on_the_other(failing: Callable[[Barrier], None], word: str) -> None:
    assert _errors_of(failing, _succeed) == [f"RuntimeError: {word}", f"OtherRank: rank 0: {word}"]


def test_an_obstacle_of_one_rank_is_agreed_by_all() -> None:
    found: list[str | None] = [None, None]

    def agree(obstacle: str | None) -> Callable[[Barrier], None]:
        def run(barrier: Barrier) -> None:
            found[barrier.rank] = barrier.agreed("available/rclone", obstacle)

        return run

    _errors_of(agree(None), agree("not installed"))
    assert found == ["rank 1: not installed", "not installed"]
