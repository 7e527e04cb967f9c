"""What is put aside lies there as long as there is room, and goes in the order in which it came."""

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
    """The disk has room for 100 bytes, and each tree that lies aside takes 20."""
    whole = [100]

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=whole[0] - 20 * len(list((tmp_path / "aside").iterdir())))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return whole


def _aside(directory: Path) -> set[str]:
    return {path.read_text() for path in (directory / "aside").glob("*/file")}


def test_a_tree_that_is_put_aside_is_gone_from_its_place_and_not_deleted(tree: FileMaker, tmp_path: Path) -> None:
    cache = tree("cache")
    inode = (cache / "file").stat().st_ino
    Trash(tmp_path / "aside").put(cache)
    assert not cache.exists()
    assert [path.stat().st_ino for path in (tmp_path / "aside").glob("*/file")] == [inode]


def test_a_tree_of_the_same_name_may_follow(tree: FileMaker, tmp_path: Path) -> None:
    aside = Trash(tmp_path / "aside")
    for _ in range(3):
        aside.put(tree("cache"))
    aside.put(tmp_path / "never made")
    assert len(list((tmp_path / "aside").iterdir())) == 3


def test_the_oldest_go_when_half_of_what_was_free_is_taken(tree: FileMaker, free: list[int], tmp_path: Path) -> None:
    aside = Trash(tmp_path / "aside")
    for name in "abcd":
        aside.put(tree(name))
    assert _aside(tmp_path) == {"c", "d"}


def test_all_go_when_a_workload_needs_the_room(tree: FileMaker, free: list[int], tmp_path: Path) -> None:
    aside = Trash(tmp_path / "aside")
    aside.put(tree("a"))
    aside.put(tree("b"))
    aside.make_room(60)
    assert _aside(tmp_path) == {"a", "b"}
    aside.make_room(80)
    assert _aside(tmp_path) == {"b"}
    aside.make_room(10_000)
    assert _aside(tmp_path) == set()


def test_what_a_workload_wants_is_what_drops_no_target() -> None:
    class Large(MountedPeer):
        name = "large"
        copies = 3

    kinds: list[type[TargetBase]] = [Hayloft, Large]
    wanted = wanted_bytes(1_000_000, kinds)
    assert fitting(wanted, 1_000_000, kinds).dropped == {}
    assert "large" in fitting(wanted - 2, 1_000_000, kinds).dropped
    assert wanted > SPARE_BYTES
