"""Races of files that lose their name while they are in use, and of rows that outlive their file: with the chunk map of
another file, holes would be read as zeros."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES
from tests.unit.test_chunk_store import BYTES, add_chunk, read_all, settings, version


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    store = ChunkStore(settings(tmp_path))
    yield store
    store.close()


def rows_on_disk(directory: Path) -> list[bytes]:
    """The store of a daemon that is started after a kill at this moment."""
    with sqlite3.connect(directory / "index.sqlite") as database:
        rows = database.execute("SELECT digest FROM objects").fetchall()
    database.close()
    return [row[0] for row in rows]


def test_a_row_is_gone_for_good_before_another_file_takes_the_place_of_its_own(tmp_path: Path) -> None:
    """The state after a kill between the unlink and the deletion of the row, with another kill at once."""
    store = ChunkStore(settings(tmp_path))
    add_chunk(store, version(), 0)
    store.close()
    digest = version().digest(CHUNK_BYTES)
    (tmp_path / "partial" / digest[:2] / digest).unlink()
    again = ChunkStore(settings(tmp_path))
    assert rows_on_disk(tmp_path) == [bytes.fromhex(digest)]
    file = again.open_partial(version())
    assert not file.has(range(1))
    assert rows_on_disk(tmp_path) == []
    file.release()
    again.close()


def test_an_open_during_the_last_close_of_a_file_finds_all_its_chunks(store: ChunkStore) -> None:
    """And not the older chunk map, for a new file without these chunks."""
    file = store.open_partial(version())
    record, recording, resume = store._objects.record, threading.Event(), threading.Event()

    def slow_record(*arguments: object, **more: object) -> None:
        recording.set()
        assert resume.wait(20)
        record(*arguments, **more)  # type: ignore[arg-type]

    file.write_chunk(0, [memoryview(BYTES)[:CHUNK_BYTES]], 0)
    store._objects.record = slow_record  # type: ignore[method-assign]
    closing = threading.Thread(target=file.release)
    closing.start()
    assert recording.wait(20)
    opened = []
    opening = threading.Thread(target=lambda: opened.append(store.open_partial(version())))
    opening.start()
    opening.join(0.3)  # long enough for an open that does not wait
    resume.set()
    closing.join()
    opening.join()
    assert opened[0].has(range(1))
    opened[0].release()


def test_a_file_that_lost_its_name_is_not_published_in_place_of_the_other(store: ChunkStore) -> None:
    mine = store.open_partial(version())
    for chunk in range(3):
        part = memoryview(BYTES)[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        if chunk == 2:
            os.close(store._objects.create(version().digest(CHUNK_BYTES)))  # half written, by another thread
        mine.write_chunk(chunk, [part], 0)
    assert mine.complete, "its own bytes are all there for who has it open"
    mine.release()
    assert store.find(version()) is None
    store.add_whole(version(), [memoryview(BYTES)]).release()
    assert read_all(store, version()) == BYTES
