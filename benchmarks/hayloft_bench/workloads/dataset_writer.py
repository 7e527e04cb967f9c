"""Writes a dataset; existing files are kept if they are byte for byte what would be written.

``<directory>.made.json`` beside the directory records the size and CRC32C of every file. A second ``make`` reads and
compares every file; a file that differs, is missing or is unfinished is written again. Files that ``make`` did not
write are never removed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crc32c

from hayloft_bench.results.model import DatasetFile

FORMAT = 1
"""The version of ``made.json`` and of the bytes for a seed: incremented when either changes."""
READ_BYTES = 1 << 20
THREADS = 2
"""Generator, checksum and write(2) release the interpreter's lock for most of their time."""
BATCH_FILES = 256
"""Files per task: a task for each of a million files would cost more than the files."""

Content = Callable[[str], Iterable[memoryview | bytes]]


def make(directory: Path, identity: dict[str, Any], paths: Sequence[str], content: Content) -> list[DatasetFile]:
    """Writes ``paths`` below ``directory``, each with the bytes of ``content(path)``, and returns them sorted by path.
    ``identity`` holds everything that the bytes depend on: if it differs, no file is kept.

    Raises FileExistsError if the directory holds files that ``make`` did not write, and OSError if the disk is full."""
    identity = {"format": FORMAT, **identity}
    directory.mkdir(parents=True, exist_ok=True)
    record = directory.with_name(directory.name + ".made.json")
    before = _read_record(record)
    _remove_former(directory, set(paths), {path for path, *_ in before.get("files", ())})
    known: dict[str, tuple[int, int]] = {}
    if before.get("identity") == identity:
        known = {path: (size_bytes, crc) for path, size_bytes, crc in before["files"] if crc is not None}
    # The record comes before the files: if this run is interrupted, the next one knows that they are its own.
    _write_record(record, identity, [(path, *known.get(path, (0, None))) for path in paths])
    for folder in {os.path.dirname(path) for path in paths}:
        (directory / folder).mkdir(parents=True, exist_ok=True)

    def made(some: Sequence[str]) -> list[DatasetFile]:
        return [_made(directory, path, known.get(path), content) for path in some]

    batches = [paths[start : start + BATCH_FILES] for start in range(0, len(paths), BATCH_FILES)]
    if len(paths) < BATCH_FILES:
        batches = [[path] for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(itertools.chain.from_iterable(pool.map(made, batches)))
    _write_record(record, identity, [(file.path, file.size_bytes, file.crc32c) for file in files])
    return sorted(files, key=lambda file: file.path)


def _made(directory: Path, path: str, known: tuple[int, int] | None, content: Content) -> DatasetFile:
    where = f"{directory}/{path}"
    if known is not None and _holds(where, *known):
        return DatasetFile(path, *known)
    size_bytes, crc = 0, 0
    with open(where, "wb", buffering=0) as file:
        for piece in content(path):
            view = memoryview(piece)
            crc = crc32c.crc32c(view, crc)
            size_bytes += len(view)
            while view:
                view = view[file.write(view) :]
    return DatasetFile(path, size_bytes, crc)


def _holds(where: str, size_bytes: int, crc: int) -> bool:
    buffer, value = memoryview(bytearray(min(READ_BYTES, size_bytes + 1))), 0
    try:
        with open(where, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size_bytes:
                return False
            while count := file.readinto(buffer):
                value = crc32c.crc32c(buffer[:count], value)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return value == crc


def _remove_former(directory: Path, wanted: set[str], former: set[str]) -> None:
    """Removes files of an earlier ``make`` that are not in ``wanted``, and folders that are then empty."""
    foreign = []
    for folder, _, names in os.walk(directory, topdown=False):
        below = os.path.relpath(folder, directory)
        paths = [name if below == "." else f"{below}/{name}" for name in names]
        for path in paths:
            if path in wanted:
                continue
            if path in former:
                os.unlink(f"{directory}/{path}")
            else:
                foreign.append(path)
        if below != "." and not os.listdir(folder):
            os.rmdir(folder)
    if foreign:
        raise FileExistsError(
            f"{directory} holds files that are not of this dataset, such as {sorted(foreign)[0]}: "
            "empty it, or choose another directory"
        )


def _read_record(record: Path) -> dict[str, Any]:
    """Empty if the record is missing or unreadable."""
    try:
        value = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("files"), list) else {}


def _write_record(record: Path, identity: dict[str, Any], files: Iterable[tuple[str, int, int | None]]) -> None:
    unfinished = record.with_name(record.name + ".part")
    unfinished.write_text(json.dumps({"identity": identity, "files": list(files)}))
    unfinished.replace(record)
