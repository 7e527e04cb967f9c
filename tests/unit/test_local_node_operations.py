"""Pages and steps: a directory of many files is listed once, and work on files names where it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from csi_driver.catalog.tree import Tree
from csi_driver.cli.node_commands import _listed, _steps
from csi_driver.daemon import local_node_operations
from csi_driver.daemon.local_node_operations import LocalNodeOperations
from csi_driver.model.errors import InvalidParameter, VolumeConflict
from csi_driver.volumes.node_operations import FileRows
from tests.support.datasets import manifest_of, object_info

pytestmark = pytest.mark.promise("S585")

FILES = 2_300


class Plane:
    """One mounted volume, of whose files every other one is cached."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def served(self, volume_id: str) -> Any:
        assert volume_id == "v"
        record = SimpleNamespace(volume_id="v", snapshot_id=self.tree.snapshot_id)
        return SimpleNamespace(tree=self.tree, record=record, filesystem=self)

    def cached_bytes(self, start: int, stop: int) -> int:
        return sum(self.tree.size_bytes(row + 2) for row in range(start, stop) if row % 2)


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    infos = [object_info(f"d/{number:05}", 3) for number in range(FILES)]
    infos += [object_info(f"d/sub{number}/x", 7) for number in range(3)]
    return Plane(manifest_of(infos, tmp_path).tree)


@pytest.fixture
def operations(plane: Plane) -> LocalNodeOperations:
    nothing = cast(Any, None)
    return LocalNodeOperations(cast(Any, plane), nothing, nothing, passthrough_allowed=True)


def test_a_directory_of_many_files_is_listed_in_pages_and_each_entry_once(operations: LocalNodeOperations) -> None:
    first, entries = _listed(operations, "v", "/d/")
    assert len(first.entries) == local_node_operations.PAGE_ENTRIES
    names = [entry.name for entry in entries]
    assert names == [f"sub{number}".encode() for number in range(3)] + [b"%05d" % number for number in range(FILES)]
    assert [(entry.size_bytes, entry.cached_bytes) for entry in entries[:3]] == [(7, None)] * 3
    rows = sorted(row for entry in entries for row in range(entry.rows.start, entry.rows.stop))
    assert rows == list(range(first.rows.start, first.rows.stop)) == list(range(FILES + 3))


def test_a_count_ends_after_a_step_and_goes_on_where_it_ended(
    operations: LocalNodeOperations, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_node_operations, "STEP_S", 0.0)
    snapshot = plane.tree.snapshot_id
    steps = list(_steps(FileRows(0, 100), lambda rows: operations.count_cached("v", snapshot, rows)))
    assert len(steps) > 1
    assert [step.next_row for step in steps] == [*range(16, 100, 16), 100]
    assert sum(step.cached_bytes for step in steps) == plane.cached_bytes(0, 100)
    assert sum(step.complete_files for step in steps) == 50
    assert list(_steps(FileRows(5, 5), lambda _: pytest.fail("there is nothing to do"))) == []


def calls(operations: LocalNodeOperations, snapshot: str, rows: FileRows) -> Iterator[Any]:
    yield lambda: operations.count_cached("v", snapshot, rows)
    yield lambda: operations.evict("v", snapshot, rows)
    yield lambda: operations.verify("v", snapshot, rows, origin=False)


def test_rows_of_another_snapshot_and_rows_that_do_not_exist_are_refused(
    operations: LocalNodeOperations, plane: Plane
) -> None:
    for call in calls(operations, "another", FileRows(0, 1)):
        with pytest.raises(VolumeConflict, match="another snapshot"):
            call()
    for rows in (FileRows(-1, 1), FileRows(2, 1), FileRows(0, FILES + 4)):
        for call in calls(operations, plane.tree.snapshot_id, rows):
            with pytest.raises(InvalidParameter, match="rows from 0 to"):
                call()


def test_a_path_that_does_not_exist_is_named(operations: LocalNodeOperations) -> None:
    with pytest.raises(InvalidParameter, match="d/none"):
        operations.list_directory("v", b"d/none")
