"""Where a controller works: the same place after a restart, and never one that another user has prepared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from csi_driver.wiring.controller_directory import controller_directory


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_journals_stay_for_the_next_process_and_nothing_else(tmp_path: Path) -> None:
    with controller_directory("a") as path:
        for name in ("manifests", "listings"):
            (path / name).mkdir()
            (path / name / "file").touch()
        with controller_directory("b") as other:
            assert other != path
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with controller_directory("a") as again:
        assert again == path
        assert [entry.name for entry in path.iterdir()] == ["listings"]
        (path / "listings" / "file").rename(path / "listings" / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_another_user_may_have_made_is_not_used(tmp_path: Path) -> None:
    with controller_directory("a") as path:
        pass
    trap = tmp_path / "trap"
    trap.mkdir()
    path.symlink_to(trap)
    with controller_directory("a") as other:
        assert other not in (path, trap)
        (other / "file").touch()
    path.unlink()
    path.mkdir(mode=0o755)
    with controller_directory("a") as other:
        assert other != path


def test_a_second_process_leaves_the_directory_of_the_first_alone() -> None:
    with controller_directory("a") as path:
        (path / "manifests").mkdir()
        with controller_directory("a") as other:
            assert other != path
        assert (path / "manifests").is_dir()
