"""Derives the directories: each parent path of a file, and each marker.

The table is breadth first, and sorted by (parent, name) within a depth, so that the children of one directory are
adjacent. Row 0 is the root. Paths are compared part by part: ``a/b`` sorts before ``a!``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Directories:
    """Arrow arrays of the same length, one row per directory."""

    paths: Any
    names: Any
    parents: Any
    """Row of the parent; the root is its own."""

    def rows_of(self, paths: Any) -> Any:
        """The row of each path; null if there is no such directory."""
        return pc.index_in(paths, value_set=self.paths)

    def order_of_paths(self) -> Any:
        """The rank of each row in depth-first order, by which files are sorted."""
        order = pc.sort_indices(_by_parts(self.paths))
        return pc.cast(pc.sort_indices(order), pa.int32())


def derive_directories(paths: Any) -> Directories:
    """From the distinct paths of non-empty directories and markers (``b""`` is the root); adds their parents."""
    complete = _with_ancestors(paths)
    depths = pc.if_else(pc.equal(complete, b""), 0, pc.add(pc.count_substring(complete, b"/"), 1))
    order = pc.sort_indices(
        pa.table({"depth": depths, "parts": _by_parts(complete)}),
        sort_keys=[("depth", "ascending"), ("parts", "ascending")],
    )
    ordered = complete.take(order)
    parents = pc.index_in(_parents_of(ordered), value_set=ordered)
    names = pc.replace_substring_regex(ordered, "(?s)^.*/", "", max_replacements=1)
    return Directories(ordered, names, parents)


def ranges_by_owner(owners: Any, owner_count: int, first: int = 0) -> tuple[Any, Any]:
    """Rows [start, stop) of each owner; in ``owners`` the rows of one owner are adjacent. ``first`` is added to the row
    numbers. An owner without rows has [0, 0)."""
    runs = pc.run_end_encode(owners, run_end_type=pa.int64())
    ends = runs.run_ends
    starts = pa.concat_arrays([pa.array([0] if len(ends) else [], pa.int64()), ends[:-1]])
    places = pc.index_in(pa.array(range(owner_count), owners.type), value_set=runs.values)
    first_rows, stop_rows = (pc.fill_null(pc.add(edge, first).take(places), 0) for edge in (starts, ends))
    return first_rows, stop_rows


def _with_ancestors(paths: Any) -> Any:
    newest = complete = pc.unique(pa.concat_arrays([pa.array([b""], pa.large_binary()), paths]))
    while len(newest):
        parents = pc.unique(_parents_of(newest))
        newest = parents.filter(pc.invert(pc.is_in(parents, value_set=complete)))
        complete = pa.concat_arrays([complete, newest])
    return complete


def _parents_of(paths: Any) -> Any:
    return pc.replace_substring_regex(paths, "/?[^/]*$", "", max_replacements=1)


def _by_parts(paths: Any) -> Any:
    """A sort key that compares part by part: no part holds a NUL byte, which is less than any other byte."""
    return pc.replace_substring(paths, b"/", b"\0")
