"""Several ranks as processes of this machine, with the environment that torchrun gives them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_bench.results import files
from hayloft_bench.results.model import ALL_RANKS
from tests.architecture.source_tree import REPOSITORY
from tests.support.bench_rank import ROWS


def free_port() -> int:
    """One whose successor is free too: ours is the one after torchrun's."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]) - 1


class Ranks:
    """Starts ranks, and knows what they said."""

    def __init__(self, out: Path, ranks: int) -> None:
        self._out, self._ranks, self._port = out, ranks, free_port()
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, rank: int, behaviour: str = "", *, run: str = "one", name: str = "") -> None:
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._port),
            "TORCHELASTIC_RUN_ID": run,
        }
        self.processes[name or str(rank)] = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bench_rank", str(self._out), behaviour],
            env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def said(self, name: str) -> str:
        return self.processes[name].communicate(timeout=60)[0]

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    made = Ranks(tmp_path, request.param)
    yield made
    made.end()


several = pytest.mark.parametrize("ranks", [3], indirect=True)
two = pytest.mark.parametrize("ranks", [2], indirect=True)


@several
def test_ranks_start_together_and_make_one_report(ranks: Ranks, tmp_path: Path) -> None:
    for rank, behaviour in enumerate(("", "", "slow")):
        ranks.start(rank, behaviour)
    for rank in range(3):
        assert ranks.said(str(rank)).endswith("done\n")
    merged = files.read(tmp_path)
    assert len(merged.measurements) == 4 * len(ROWS)
    assert sorted({row.rank for row in merged.measurements}) == [ALL_RANKS, 0, 1, 2]
    assert any("rank 2 was the slowest; the slowest rank took 1.50 times" in note for note in merged.notes)
    assert "Many ranks" in (tmp_path / "report.html").read_text()


@several
def test_a_rank_that_dies_ends_the_others_with_its_name(ranks: Ranks, tmp_path: Path) -> None:
    for rank, behaviour in enumerate(("", "die", "")):
        ranks.start(rank, behaviour)
    for name in ("0", "2"):
        assert "error rank 1 ended before the run was over" in ranks.said(name)
        assert ranks.processes[name].returncode == 1
    assert not (tmp_path / files.NAME).exists()


@two
def test_rank_0_that_dies_ends_the_others(ranks: Ranks) -> None:
    ranks.start(0, "die")
    ranks.start(1)
    assert "error rank 0 ended before the run was over" in ranks.said("1")


@two
def test_a_rank_that_does_not_come_to_a_barrier_is_named(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "wait")
    assert "error rank 1 did not come to 'target/1' in time" in ranks.said("0")


@several
def test_a_rank_that_never_joins_is_named(ranks: Ranks) -> None:
    ranks.start(0, "short")
    ranks.start(1, "short")
    for rank in ("0", "1"):
        assert re.search(r"error ranks? (1, )?2 did not come to 'join' in time", ranks.said(rank))


@two
def test_ranks_of_another_run_and_late_ones_are_refused_and_the_run_goes_on(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, run="another", name="stranger")
    assert "error refused: another run listens here (the tokens differ)" in ranks.said("stranger")
    ranks.start(1, "wait")
    first = ranks.processes["1"].stdout
    assert first is not None
    assert first.readline() == "obstacles {}\n"
    ranks.start(1, name="late")
    assert "error refused: a second rank 1: the run has begun with another one" in ranks.said("late")


@two
def test_ranks_that_were_started_differently_do_not_begin(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "other")
    said = {rank: ranks.said(rank) for rank in ("0", "1")}
    assert any("was started differently: seed" in one for one in said.values())
    assert all(one.startswith("error rank") for one in said.values())


@several
def test_who_waits_for_a_rank_that_withdraws_is_told_and_the_run_goes_on(ranks: Ranks, tmp_path: Path) -> None:
    for rank, behaviour in enumerate(("", "withdraw", "")):
        ranks.start(rank, behaviour)
    for name in ("0", "2"):
        said = ranks.said(name)
        assert "withdrawn rank 1: made up: it did not start\n" in said
        assert said.endswith("done\n")
    assert (tmp_path / files.NAME).exists()


@two
def test_an_obstacle_of_one_rank_is_known_to_all(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "broken")
    for rank in ("0", "1"):
        assert "obstacles {1: 'made up: no disk'}" in ranks.said(rank)
