"""Sorts the collected objects, derives the directories and resolves name conflicts.

All steps are done column by column in Arrow. Only objects with conflicting names become Python values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.directories import Directories, derive_directories, ranges_by_owner
from csi_driver.catalog.key_names import Reason, marked, shown_path
from csi_driver.catalog.mapped_columns import MappedColumns
from csi_driver.catalog.page_collector import RENAMED, PageCollector
from csi_driver.catalog.plain_batches import NATURAL
from csi_driver.catalog.spilled_rows import BatchFile, Place, SpilledRows

FILES = pa.schema(
    [
        ("name", pa.large_binary()),
        ("directory", pa.int32()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.large_binary()),
    ]
)

PART_ROWS = 500_000
"""Objects of a long listing that are sorted at a time: about 150 MB."""

MARK_DIGITS = (8, 16, 32, 64)
"""Lengths of the hash in the name of a conflicting object, tried in this order until the name is free."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """The tables of a manifest, as Arrow tables and arrays."""

    files: Any
    """name, directory, size_bytes, mtime_ns, etag; sorted by (directory path, name)."""
    directories: Any
    """name, parent, first_file, stop_file, first_child, stop_child."""
    renamed: Any
    """row (of the file), key, reason; sorted by row."""


@dataclass(slots=True)
class _Workspace:
    rows: Any
    """directory (row of the directory), rank, name, size_bytes, mtime_ns, etag, renamed."""
    renamed: Any
    directories: Directories
    collector: PageCollector


def arrange(collector: PageCollector) -> Arranged:
    """Empties the collector, and adds the counts of duplicates and left out keys to it."""
    work = _prepare(collector)
    for digits in (*MARK_DIGITS, 0):
        work.rows = _sorted(work.rows)
        conflicts = _conflicts(work)
        if not conflicts:
            break
        work.rows = pa.concat_tables(_resolve(work, conflicts, digits))
    return _finish(work)


def arrange_on_disk(collector: PageCollector, spilled: SpilledRows, columns: MappedColumns) -> Arranged:
    """As ``arrange``, of a collector that has ``spilled`` objects, with memory for a part of them. The files are in
    ``columns``, which is empty before. Raises OSError."""
    renamed, markers = collector.spill_rest(spilled)
    used = pc.unique(pa.concat_arrays(spilled.dictionaries))
    directories = derive_directories(pa.concat_arrays([used, pa.array(markers, pa.large_binary())]))
    rows_of = [directories.rows_of(dictionary) for dictionary in spilled.dictionaries]
    parts = spilled.parts(rows_of, directories.order_of_paths(), PART_ROWS)
    work = _Workspace(None, renamed, directories, collector)
    try:
        _resolve_parts(work, parts)
        changed, numbers, start = [pa.array([], pa.int64())], [pa.array([], pa.int32())], 0
        for part in parts:
            rows = _read_part(part)
            part.close()
            columns.add(rows)
            found = _one_array(rows.column("renamed"))
            places = pc.indices_nonzero(pc.not_equal(found, NATURAL))
            changed.append(pc.add(places.cast(pa.int64()), start))
            numbers.append(found.take(places))
            start += rows.num_rows
    finally:
        for part in parts:
            part.close()
    return _arranged(work, columns.table(), pa.concat_arrays(changed), pa.concat_arrays(numbers))


def _resolve_parts(work: _Workspace, parts: list[BatchFile]) -> None:
    """Sorts each part, and resolves conflicts as ``arrange`` does: each round the rows of all parts that got new names
    in the one before."""
    firsts: list[Place | None] = []
    added: list[Any] = [None] * len(parts)
    for number, digits in enumerate((*MARK_DIGITS, 0)):
        moved: list[Any] = []
        for position, part in enumerate(parts):
            if number and added[position] is None:
                continue
            work.rows = _read_part(part)
            if not number:
                firsts.append(_place_of(work.rows, 0))
            else:
                work.rows = _sorted(pa.concat_tables([work.rows, added[position]]))
            conflicts = _conflicts(work)
            if conflicts:
                work.rows, new = _resolve(work, conflicts, digits)
                moved.append(new)
            part.write(work.rows.combine_chunks().to_batches())
            work.rows = None
            pa.default_memory_pool().release_unused()
        added = _by_part(moved, firsts)
        if all(rows is None for rows in added):
            return


def _read_part(part: BatchFile) -> Any:
    """Sorted: in each column one chunk."""
    return _sorted(pa.Table.from_batches(list(part.read()), schema=part.schema))


def _place_of(rows: Any, row: int) -> Place | None:
    if not rows.num_rows:
        return None
    return rows.column("rank")[row].as_py(), rows.column("name")[row].as_py()


def _by_part(moved: list[Any], firsts: list[Place | None]) -> list[Any]:
    """The rows for each part, or None. A row belongs to the last part that begins at its place or before."""
    found: list[Any] = [None] * len(firsts)
    rows = pa.concat_tables(moved) if moved else None
    if rows is None or not rows.num_rows:
        return found
    begun = [position for position, first in enumerate(firsts) if first is not None]
    edges = [first for first in firsts if first is not None]
    places = zip(rows.column("rank").to_pylist(), rows.column("name").to_pylist(), strict=True)
    owners = pa.array([begun[max(0, bisect_right(edges, place) - 1)] for place in places], pa.int32())
    for position in pc.unique(owners).to_pylist():
        found[position] = rows.filter(pc.equal(owners, position))
    return found


def _prepare(collector: PageCollector) -> _Workspace:
    rows, renamed, markers = collector.tables()
    coded = rows.column("directory").unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):  # without any chunk
        coded = pa.array([], coded.type)
    used = coded.dictionary
    directories = derive_directories(pa.concat_arrays([used, pa.array(markers, pa.large_binary())]))
    by_code = directories.rows_of(used)
    own = by_code.take(coded.indices)
    rank = directories.order_of_paths().take(own)
    columns = {"directory": own, "rank": rank}
    for name in ("name", "size_bytes", "mtime_ns", "etag", "renamed"):
        columns[name] = rows.column(name)
    return _Workspace(pa.table(columns), renamed, directories, collector)


def _sorted(rows: Any) -> Any:
    """By (directory path, name), one column after the other, so that only one is in memory twice."""
    keys = rows.select(["rank", "name"]).combine_chunks()
    order = pc.sort_indices(keys, sort_keys=[("rank", "ascending"), ("name", "ascending")])
    columns = {}
    for name in rows.column_names:
        column = keys.column(name) if name in keys.column_names else rows.column(name)
        columns[name] = _one_array(column).take(order)
        rows = rows.drop_columns([name])
    return pa.table(columns)


def _one_array(column: Any) -> Any:
    """The chunked column as one array, also if it has no chunk or several."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _conflicts(work: _Workspace) -> list[list[int]]:
    """Groups of adjacent rows with the same path; a row with the path of a directory is a group of its own."""
    rank, name = _one_array(work.rows.column("rank")), _one_array(work.rows.column("name"))
    same = pc.and_(pc.equal(rank[1:], rank[:-1]), pc.equal(name[1:], name[:-1]))
    groups: list[list[int]] = []
    for row in _true_positions(same):
        if groups and groups[-1][-1] == row:
            groups[-1].append(row + 1)
        else:
            groups.append([row, row + 1])
    covered = {row for group in groups for row in group}
    alone = [[row] for row in _rows_named_as_directories(work) if row not in covered]
    return sorted(groups + alone)


def _true_positions(mask: Any) -> list[int]:
    if not pc.any(mask).as_py():
        return []
    positions: list[int] = pc.indices_nonzero(mask).to_pylist()
    return positions


def _rows_named_as_directories(work: _Workspace) -> list[int]:
    names, parents = work.directories.names[1:], work.directories.parents[1:]
    name = _one_array(work.rows.column("name"))
    possible = pc.indices_nonzero(pc.is_in(name, value_set=pc.unique(names)))
    if not len(possible):
        return []
    owners = _one_array(work.rows.column("directory")).take(possible)
    mask = pc.is_in(_joined(owners, name.take(possible)), value_set=_joined(parents, names))
    taken: list[int] = possible.filter(mask).to_pylist()
    return taken


def _joined(owners: Any, names: Any) -> Any:
    texts = owners.cast(pa.large_string()).cast(pa.large_binary())
    return pc.binary_join_element_wise(texts, names, pa.scalar(b"/", pa.large_binary()))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One of the objects that conflict for a name."""

    row: int
    key: bytes
    natural: bool
    """Whether the name is that of the key, and not already changed."""
    version: tuple[int, int, bytes]
    """If a key was listed twice, the row with the higher version stays: time, size, ETag."""

    @property
    def size_bytes(self) -> int:
        return self.version[1]


def _resolve(work: _Workspace, groups: list[list[int]], digits: int) -> tuple[Any, Any]:
    """Renames all candidates of each group except one (``digits`` 0: leaves them out). Returns the other rows, and
    those with new names, which need not be where they were."""
    blocked = set(_rows_named_as_directories(work))
    dropped: list[int] = []
    moved: list[tuple[_Candidate, Reason]] = []
    for group in _candidates(work, groups):
        candidates, duplicates = _newest(group)
        work.collector.counts["duplicates"] += len(duplicates)
        dropped += duplicates
        taken_by_directory = group[0].row in blocked
        if taken_by_directory and digits == MARK_DIGITS[0]:
            # The name is still that of the key: an object without bytes stands for the directory.
            markers = [candidate.row for candidate in candidates if not candidate.size_bytes]
            work.collector.counts["directory_markers"] += len(markers)
            dropped += markers
            candidates = [candidate for candidate in candidates if candidate.size_bytes]
        candidates.sort(key=lambda candidate: (not candidate.natural, candidate.key))
        reason = Reason.DIRECTORY_TOO if taken_by_directory else Reason.NAME_TAKEN
        moved += [(candidate, reason) for candidate in (candidates if taken_by_directory else candidates[1:])]
    if digits == 0:
        for candidate, _ in moved:
            work.collector.left_out.add(candidate.key, Reason.NO_FREE_NAME)
        dropped += [candidate.row for candidate, _ in moved]
    return _apply(work, dropped, [] if digits == 0 else moved, digits)


def _candidates(work: _Workspace, groups: list[list[int]]) -> Iterator[list[_Candidate]]:
    """The same groups, with the values that resolve them. Columns are taken for all groups at once."""
    flat = pa.array([row for group in groups for row in group], pa.int64())
    taken = work.rows.take(flat)
    directories = work.directories.paths.take(_one_array(taken.column("directory"))).to_pylist()
    numbers = _one_array(taken.column("renamed"))
    known = pc.if_else(pc.equal(numbers, NATURAL), None, numbers)
    keys = _one_array(work.renamed.column("key")).take(known).to_pylist()
    names, versions = taken.column("name").to_pylist(), taken.select(["mtime_ns", "size_bytes", "etag"])
    columns = zip(*(column.to_pylist() for column in versions.columns), strict=True)
    candidates = (
        _Candidate(row, key if key is not None else _path(directory, name), key is None, version)
        for row, directory, name, key, version in zip(flat.to_pylist(), directories, names, keys, columns, strict=True)
    )
    for group in groups:
        yield list(islice(candidates, len(group)))


def _path(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _newest(candidates: list[_Candidate]) -> tuple[list[_Candidate], list[int]]:
    """The newest candidate of each key, and the rows of the others."""
    newest: dict[bytes, _Candidate] = {}
    for candidate in candidates:
        other = newest.get(candidate.key)
        if other is None or candidate.version > other.version:
            newest[candidate.key] = candidate
    kept = {candidate.row for candidate in newest.values()}
    return list(newest.values()), [candidate.row for candidate in candidates if candidate.row not in kept]


def _apply(
    work: _Workspace, dropped: list[int], moved: list[tuple[_Candidate, Reason]], digits: int
) -> tuple[Any, Any]:
    total = work.rows.num_rows
    moved_rows = [candidate.row for candidate, _ in moved]
    gone = pa.array(sorted({*dropped, *moved_rows}), pa.int64())
    kept = work.rows.filter(pc.invert(pc.is_in(pa.array(range(total), pa.int64()), value_set=gone)))
    added = work.rows.take(pa.array(moved_rows, pa.int64()))
    names = [marked(shown_path(one.key).path.rpartition(b"/")[2], one.key, digits) for one, _ in moved]
    first = work.renamed.num_rows
    added = added.set_column(added.schema.get_field_index("name"), "name", pa.array(names, pa.large_binary()))
    numbers = pa.array(range(first, first + len(moved)), pa.int32())
    added = added.set_column(added.schema.get_field_index("renamed"), "renamed", numbers)
    entries = {"key": [one.key for one, _ in moved], "reason": [reason.encode() for _, reason in moved]}
    work.renamed = pa.concat_tables([work.renamed, pa.table(entries, schema=RENAMED)])
    return kept, added


def _finish(work: _Workspace) -> Arranged:
    numbers = _one_array(work.rows.column("renamed"))
    changed = pc.indices_nonzero(pc.not_equal(numbers, NATURAL))
    return _arranged(work, work.rows.select(FILES.names), changed, numbers.take(changed))


def _arranged(work: _Workspace, files: Any, changed: Any, numbers: Any) -> Arranged:
    """``changed``: the rows of files whose path is not their key; ``numbers``: their rows among the renamed keys."""
    directories = work.directories
    count = len(directories.paths)
    first_file, stop_file = ranges_by_owner(_one_array(files.column("directory")), count)
    first_child, stop_child = ranges_by_owner(directories.parents[1:], count, first=1)
    entries = work.renamed.take(numbers)
    return Arranged(
        files=files,
        directories=pa.table(
            {
                "name": directories.names,
                "parent": directories.parents,
                "first_file": first_file,
                "stop_file": stop_file,
                "first_child": first_child,
                "stop_child": stop_child,
            }
        ),
        renamed=pa.table(
            {"row": changed.cast(pa.int64()), "key": entries.column("key"), "reason": entries.column("reason")}
        ),
    )
