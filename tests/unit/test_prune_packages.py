"""What is taken out of the image's packages: the table, and files that others have links to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import prune_packages
from tools.prune_packages import Removal, Stale


def test_a_row_removes_what_matches_completely(tmp_path: Path) -> None:
    for name in ("lib.so", "libx.so", "keep.so", "lib.so.py"):
        (tmp_path / name).touch()
    removal = Removal("", r"lib.*\.so|keep\.so", "reason", but=r"keep\..*")
    assert {path.name for path in prune_packages.chosen(tmp_path, removal)} == {"lib.so", "libx.so"}


def test_a_row_that_matches_nothing_names_itself(tmp_path: Path) -> None:
    (tmp_path / "pyarrow").mkdir()
    with pytest.raises(Stale, match="nothing in pyarrow matches 'include': adapt REMOVALS"):
        prune_packages.chosen(tmp_path, Removal("pyarrow", "include", "headers"))


def test_a_directory_without_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stale, match="not a virtual environment"):
        prune_packages.site_packages(tmp_path)


def test_a_file_with_another_link_is_copied_before_it_is_changed(tmp_path: Path) -> None:
    original, link = tmp_path / "original", tmp_path / "link"
    original.write_text("content")
    original.chmod(0o755)
    os.link(original, link)
    prune_packages.own_copy(link)
    link.write_text("changed")
    assert original.read_text() == "content"
    assert link.stat().st_mode == original.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "original"]


def test_a_shared_object_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("a.so", "b.so.2600", "c.so.1.2", "d.so.py", "e.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in prune_packages.shared_objects(tmp_path)] == ["a.so", "b.so.2600", "c.so.1.2"]
