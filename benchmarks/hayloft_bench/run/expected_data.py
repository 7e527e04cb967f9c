"""What the dataset must hold, known from its generator; and whether a target shows that dataset and no other."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import crc32c

from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.results.model import Access, DatasetFile, Reading, Share
from hayloft_bench.run.reader_pool import ReadCounts, ReaderPool, Run, read

READERS = 4
NAMED = 3
"""Wrong files that are named in a reason; the rest is counted."""


class ExpectedData:
    """Checksums of the dataset: of whole files as they were made, of ranges from the plain files."""

    def __init__(self, plain: Path, files: Sequence[DatasetFile]) -> None:
        self._plain = plain
        self._files = {file.path: file for file in files}

    @property
    def files(self) -> list[DatasetFile]:
        return list(self._files.values())

    def checksum(self, path: str, offset: int, length: int) -> int | None:
        """CRC32C of a range; None where the dataset has no such file or range."""
        file = self._files.get(path)
        if file is None or offset < 0 or offset + length > file.size_bytes:
            return None
        if (offset, length) == (0, file.size_bytes):
            return file.crc32c
        with (self._plain / path).open("rb") as stream:
            stream.seek(offset)
            return int(crc32c.crc32c(stream.read(length)))

    def dataset_id(self) -> str:
        """Hash over paths, sizes and checksums."""
        digest = hashlib.sha256()
        for file in sorted(self._files.values(), key=lambda file: file.path):
            digest.update(f"{file.path}\0{file.size_bytes}\0{file.crc32c}\n".encode())
        return digest.hexdigest()[:16]

    def difference(self, root: Path) -> str:
        """The files that a directory has too many, misses, or has in another size; empty if it is the dataset. Blocks
        for a walk of all files."""
        found = dict(_walk(root))
        missing = [path for path in self._files if path not in found]
        extra = [path for path in found if path not in self._files]
        sizes = [path for path, file in self._files.items() if found.get(path, file.size_bytes) != file.size_bytes]
        parts = [("missing", missing), ("not of the dataset", extra), ("of another size", sizes)]
        found_wrong = [f"{len(paths)} files are {what}, such as {min(paths)}" for what, paths in parts if paths]
        return f"ran on another dataset: {'; '.join(found_wrong)}" if found_wrong else ""


def _walk(root: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    found.append((path, entry.stat(follow_symlinks=False).st_size))
    return found


def every_byte(arguments: dict[str, Any]) -> Run:
    """A job: reads complete files and, if ``compare`` is set, records their checksums."""
    paths, compare = arguments["items"], arguments["compare"]
    source = make_source(arguments["access"], paths)

    def run(counts: ReadCounts) -> None:
        source.open()
        for path in paths:
            start = time.perf_counter()
            data = source.read(path)
            counts.sample(time.perf_counter() - start, len(data))
            if compare:
                counts.check(path, 0, data)

    return run


def read_all(
    pool: ReaderPool,
    expected: ExpectedData,
    access: Access,
    *,
    compare: bool,
    progress: Callable[[int], None] = lambda count: None,
) -> Reading:
    """Every byte of the dataset once, by several processes, largest files first. Raises ProcessFailed."""
    by_size = sorted(expected.files, key=lambda file: (-file.size_bytes, file.path))
    paths = [file.path for file in by_size]
    shares = [
        Share("hayloft_bench.run.expected_data:every_byte", {"items": paths[reader::READERS], "compare": compare})
        for reader in range(min(READERS, len(paths)))
    ]
    return read(pool, shares, access, expected, progress=progress)


def wrong_bytes(wrong: Sequence[str]) -> str:
    """A reason that names the first few; empty if nothing is wrong."""
    if not wrong:
        return ""
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return f"wrong bytes: {', '.join(wrong[:NAMED])}{more}"
