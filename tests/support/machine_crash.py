"""The state of a cache directory after a power cut, drawn at random: every loss that a file system without syncs
allows, and some that it does not."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

PAGE_BYTES = 4096
_WAL_HEADER_BYTES = 32


def keep_index(cache: Path, copy: Path) -> None:
    """Copies the index as it is on the disk at this moment, while the daemon works."""
    copy.mkdir(exist_ok=True)
    for name in ("index.sqlite", "index.sqlite-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(cache / name, copy / name)


def crash(cache: Path, copy: Path, draw: random.Random) -> str:
    """Damages the directory of a daemon that was killed; returns what was done to the index. ``copy`` holds an older
    index."""
    done = _damage_index(cache, copy, draw)
    for path in sorted(cache.glob("objects/??/*")) + sorted(cache.glob("partial/??/*")):
        if draw.random() < 0.6:
            draw.choice((_zero_pages, _old_pages, _zero_pages, _truncate, _lose_name, _rename_back))(path, draw)
    _another_boot(cache)
    return done


def _damage_index(cache: Path, copy: Path, draw: random.Random) -> str:
    main, log = cache / "index.sqlite", cache / "index.sqlite-wal"
    (cache / "index.sqlite-shm").unlink(missing_ok=True)
    what = draw.choice(("as it was", "log cut", "log cut", "older", "older, log cut", "log lost", "lost", "torn page"))
    if what.startswith("older") and (copy / "index.sqlite").exists():
        log.unlink(missing_ok=True)
        for name in ("index.sqlite", "index.sqlite-wal"):
            if (copy / name).exists():
                shutil.copyfile(copy / name, cache / name)
    if what.endswith("log cut") and log.exists() and log.stat().st_size > _WAL_HEADER_BYTES:
        os.truncate(log, draw.randrange(_WAL_HEADER_BYTES, log.stat().st_size))
    elif what == "log lost":
        log.unlink(missing_ok=True)
    elif what == "lost":
        main.unlink()
        log.unlink(missing_ok=True)
    elif what == "torn page" and main.stat().st_size > 2 * PAGE_BYTES:
        page = draw.randrange(1, main.stat().st_size // PAGE_BYTES)
        with main.open("r+b") as file:
            file.seek(page * PAGE_BYTES + draw.randrange(PAGE_BYTES // 2))
            file.write(draw.randbytes(PAGE_BYTES // 2))
    return what


def _another_boot(cache: Path) -> None:
    """Of the index, only the boot id is synced."""
    if not (cache / "index.sqlite").exists():
        return
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(cache / "index.sqlite")) as database, database:
        database.execute("UPDATE facts SET value = 'another boot' WHERE name = 'boot_id'")


def _spans(path: Path, draw: random.Random) -> list[tuple[int, int]]:
    """Some pages of the file."""
    pages = -(-path.stat().st_size // PAGE_BYTES)
    starts = [draw.randrange(max(pages, 1)) for _ in range(draw.randint(1, 4))]
    return [(start * PAGE_BYTES, draw.randint(1, 64) * PAGE_BYTES) for start in starts]


def _zero_pages(path: Path, draw: random.Random) -> None:
    _overwrite(path, [(start, bytes(count)) for start, count in _spans(path, draw)])


def _old_pages(path: Path, draw: random.Random) -> None:
    _overwrite(path, [(start, draw.randbytes(count)) for start, count in _spans(path, draw)])


def _overwrite(path: Path, pieces: list[tuple[int, bytes]]) -> None:
    size_bytes = path.stat().st_size
    descriptor = os.open(path, os.O_RDWR)
    try:
        for start, data in pieces:
            os.pwrite(descriptor, data[: max(0, size_bytes - start)], start)
    finally:
        os.close(descriptor)


def _truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randint(0, path.stat().st_size))


def _lose_name(path: Path, draw: random.Random) -> None:
    path.unlink()


def _rename_back(path: Path, draw: random.Random) -> None:
    """A rename that did not reach the disk, or a rename that did without the bytes of the file."""
    kind = "partial" if path.parts[-3] == "objects" else "objects"
    path.rename(path.parents[2] / kind / path.parent.name / path.name)
