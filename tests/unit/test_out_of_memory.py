"""What the supervisor knows of the control group that it is in, and changes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.wiring.control_group import end_processes_one_by_one, out_of_memory_kills


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """That of the process, as the files in ``tmp_path`` say."""
    (tmp_path / "own").write_text("0::/pod/container\n")
    group = tmp_path / "pod" / "container"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    (group / "memory.oom.group").write_text("1\n")
    return group


def test_the_kills_of_the_group_are_counted(group: Path, tmp_path: Path) -> None:
    assert out_of_memory_kills(tmp_path, tmp_path / "own") == 2


def test_processes_are_ended_one_by_one_instead_of_together(group: Path, tmp_path: Path) -> None:
    end_processes_one_by_one(tmp_path, tmp_path / "own")
    assert (group / "memory.oom.group").read_text() == "0"


@pytest.mark.parametrize("own", ["", "0::/\n", "0::/../other\n", "4:memory:/group\n", "0::/pod\n"])
def test_without_such_a_group_nothing_is_counted_and_nothing_done(tmp_path: Path, own: str) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "memory.events").write_text("torn")
    assert out_of_memory_kills(tmp_path, tmp_path / "own") == 0
    end_processes_one_by_one(tmp_path, tmp_path / "own")
    assert out_of_memory_kills(tmp_path, tmp_path / "missing") == 0
