"""Readers of files in the page cache by the size of their buffer, which Python before 3.14 takes from ``st_blksize``.

Run it as ``python -m hayloft_bench.micro.buffer_sizes [DIRECTORY]``; with a directory of a FUSE mount that shows the
files of an earlier run (``--write DIRECTORY``) it measures that. It prints calls of read(2) and milliseconds of
processor time, the best of three.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

BUFFERS_BYTES = (4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20)
_LARGE, _SMALL, _ZIP = "of-110-kB.tar", "of-5-kB.tar", "of-15-kB.zip"
_PIECES = 2000


class _CountedFile(io.FileIO):
    """Counts the calls of read(2) that a buffer makes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.reads = 0

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self.reads += 1
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.reads += 1
        return super().readall()


def write(directory: Path) -> None:
    """The archives that are read."""
    for name, count, size_bytes in ((_LARGE, 300, 110_000), (_SMALL, 6000, 5000)):
        with tarfile.open(directory / name, "w") as archive:
            for number in range(count):
                member = tarfile.TarInfo(f"{number:06}.bin")
                member.size = size_bytes
                archive.addfile(member, io.BytesIO(os.urandom(size_bytes)))
    with zipfile.ZipFile(directory / _ZIP, "w") as archive:
        for number in range(_PIECES):
            archive.writestr(f"{number}", os.urandom(15_000))


def _tar(file: IO[bytes]) -> None:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            content.read()


def _pieces(file: IO[bytes]) -> None:
    draw, size_bytes = random.Random(1), os.fstat(file.fileno()).st_size
    for _ in range(_PIECES):
        file.seek(draw.randrange(size_bytes - 400))
        file.read(400)


def _zip(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        random.Random(1).shuffle(names)
        for name in names:
            archive.read(name)


def _header(file: IO[bytes]) -> None:
    file.read(16)


_READERS: tuple[tuple[str, str, Callable[[IO[bytes]], None], int], ...] = (
    ("a tar file of 110 kB members", _LARGE, _tar, 1),
    ("a tar file of 5 kB members", _SMALL, _tar, 1),
    ("400 bytes at 2,000 random offsets", _LARGE, _pieces, 1),
    ("2,000 random members of 15 kB of a zip file", _ZIP, _zip, 1),
    ("2,000 times open, 16 bytes, close", _LARGE, _header, _PIECES),
)


def measure(path: Path, read: Callable[[IO[bytes]], None], buffer_bytes: int, times: int) -> tuple[int, float]:
    """Calls of read(2), and seconds of processor time."""
    best_s, reads = float("inf"), 0
    for _ in range(4):
        reads, began_s = 0, time.process_time()
        for _ in range(times):
            raw: Any = _CountedFile(path)
            with io.BufferedReader(raw, buffer_bytes) as file:
                read(file)
            reads += raw.reads
        best_s = min(best_s, time.process_time() - began_s)
    return reads, best_s


def main() -> None:
    """One line for each kind of reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="write the files there, and end")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return
    with tempfile.TemporaryDirectory() as made:
        if arguments.directory is None:
            write(Path(made))
        for title, name, read, times in _READERS:
            path = (arguments.directory or Path(made)) / name
            shown = []
            for buffer_bytes in BUFFERS_BYTES:
                reads, seconds = measure(path, read, buffer_bytes, times)
                shown.append(f"{buffer_bytes >> 10} KiB {reads:,} reads {seconds * 1000:.0f} ms")
            print(f"{title}: {'; '.join(shown)}")


if __name__ == "__main__":
    main()
