"""Matches the files of a manifest with globs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from csi_driver.catalog.selection import Selection
from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree

_BATCH = 1000
"""Paths that exist as Python objects at a time."""


def matching_rows(tree: Tree, globs: Sequence[str]) -> array[int]:
    """Rows of the files that match any of the globs, ascending. Raises InvalidParameter."""
    selection, rows, selected = Selection.including(globs), range(tree.file_count), array("Q")
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        paths = [tree.path(row + FIRST_FILE_NODE).decode("utf-8", "surrogateescape") for row in batch]
        selected.extend(first + position for position in selection.chosen(paths))
    return selected
