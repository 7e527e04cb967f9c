"""Several ranks as processes of this machine, with the environment of torchrun."""

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
    """The port for torchrun; the benchmark uses the next one, which is free."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]) - 1


class Ranks:
    """Starts ranks and returns their output."""

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

    def output(self, name: str) -> str:
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
        assert ranks.output(str(rank)).endswith("done\n")
    merged = files.read(tmp_path)
    assert len(merged.measurements) == 4 * len(ROWS)
    assert sorted({row.rank for row in merged.measurements}) == [ALL_RANKS, 0, 1, 2]
    assert any("rank 2 was the slowest; the slowest rank took 1.50 times" in note for note in merged.notes)
    assert "Many ranks" in (tmp_path / "report.html").read_text()


@several
def test_a_rank_that_dies_ends_the_others_and_is_named(ranks: Ranks, tmp_path: Path) -> None:
    for rank, behaviour in enumerate(("", "die", "")):
        ranks.start(rank, behaviour)
    for name in ("0", "2"):
        assert "error rank 1 ended before the run was over" in ranks.output(name)
        assert ranks.processes[name].returncode == 1
    assert not (tmp_path / files.NAME).exists()


@two
def test_rank_0_that_dies_ends_the_others(ranks: Ranks) -> None:
    ranks.start(0, "die")
    ranks.start(1)
    assert "error rank 0 ended before the run was over" in ranks.output("1")


@two
def test_a_rank_that_does_not_reach_a_barrier_is_named(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "wait")
    assert "error rank 1 did not reach 'target/1' in time" in ranks.output("0")


@several
def test_a_rank_that_never_joins_is_named(ranks: Ranks) -> None:
    ranks.start(0, "short")
    ranks.start(1, "short")
    for rank in ("0", "1"):
        assert re.search(r"error ranks? (1, )?2 did not reach 'join' in time", ranks.output(rank))


@two
def test_ranks_of_another_run_and_late_ranks_are_refused_and_the_run_continues(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, run="another", name="stranger")
    assert "error refused: another run listens here (the tokens differ)" in ranks.output("stranger")
    ranks.start(1, "wait")
    first = ranks.processes["1"].stdout
    assert first is not None
    assert first.readline() == "obstacles {}\n"
    ranks.start(1, name="late")
    assert "error refused: a second rank 1: the run has begun with another process" in ranks.output("late")


@two
def test_ranks_with_different_arguments_do_not_begin(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "other")
    output = {rank: ranks.output(rank) for rank in ("0", "1")}
    assert any("was started differently: seed" in one for one in output.values())
    assert all(one.startswith("error rank") for one in output.values())


@several
def test_a_rank_that_waits_for_a_withdrawn_rank_is_released_and_the_run_continues(ranks: Ranks, tmp_path: Path) -> None:
    for rank, behaviour in enumerate(("", "withdraw", "")):
        ranks.start(rank, behaviour)
    for name in ("0", "2"):
        output = ranks.output(name)
        assert "withdrawn rank 1: made up: it did not start\n" in output
        assert output.endswith("done\n")
    assert (tmp_path / files.NAME).exists()


@two
def test_an_obstacle_of_one_rank_is_known_to_all(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.start(1, "broken")
    for rank in ("0", "1"):
        assert "obstacles {1: 'made up: no disk'}" in ranks.output(rank)
