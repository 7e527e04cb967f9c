"""Trees in the trash stay while there is disk space, and are deleted oldest first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hayloft_bench.run.disk_space import SPARE_BYTES, fitting, wanted_bytes
from hayloft_bench.run.trash import Trash
from hayloft_bench.targets.base import MountedPeer, TargetBase
from hayloft_bench.targets.hayloft import Hayloft

FileMaker = Callable[[str], Path]


@pytest.fixture
def tree(tmp_path: Path) -> FileMaker:
    def make(name: str) -> Path:
        made = tmp_path / "work" / name
        made.mkdir(parents=True)
        (made / "file").write_text(name)
        return made

    return make


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The disk has 100 free bytes, and each tree in the trash takes 20."""
    whole = [100]

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=whole[0] - 20 * len(list((tmp_path / "trash").iterdir())))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return whole


def _in_trash(directory: Path) -> set[str]:
    return {path.read_text() for path in (directory / "trash").glob("*/file")}


def test_a_tree_in_the_trash_is_moved_and_not_deleted(tree: FileMaker, tmp_path: Path) -> None:
    cache = tree("cache")
    inode = (cache / "file").stat().st_ino
    Trash(tmp_path / "trash").put(cache)
    assert not cache.exists()
    assert [path.stat().st_ino for path in (tmp_path / "trash").glob("*/file")] == [inode]


def test_a_tree_of_the_same_name_may_follow(tree: FileMaker, tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    for _ in range(3):
        trash.put(tree("cache"))
    trash.put(tmp_path / "never made")
    assert len(list((tmp_path / "trash").iterdir())) == 3


def test_the_oldest_are_deleted_when_half_of_the_free_space_is_taken(
    tree: FileMaker, free: list[int], tmp_path: Path
) -> None:
    trash = Trash(tmp_path / "trash")
    for name in "abcd":
        trash.put(tree(name))
    assert _in_trash(tmp_path) == {"c", "d"}


def test_all_are_deleted_when_a_workload_needs_the_space(tree: FileMaker, free: list[int], tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    trash.put(tree("a"))
    trash.put(tree("b"))
    trash.free(60)
    assert _in_trash(tmp_path) == {"a", "b"}
    trash.free(80)
    assert _in_trash(tmp_path) == {"b"}
    trash.free(10_000)
    assert _in_trash(tmp_path) == set()


def test_the_wanted_space_is_enough_for_all_targets() -> None:
    class Large(MountedPeer):
        name = "large"
        copies = 3

    kinds: list[type[TargetBase]] = [Hayloft, Large]
    wanted = wanted_bytes(1_000_000, kinds)
    assert fitting(wanted, 1_000_000, kinds).dropped == {}
    assert "large" in fitting(wanted - 2, 1_000_000, kinds).dropped
    assert wanted > SPARE_BYTES
