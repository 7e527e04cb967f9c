"""Two daemons at one cache directory: the second waits for the end of the first, and trusts what it left."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from csi_driver.cache import cache_directory, file_system_sync
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings
from tests.support.mounts import wait_until

BYTES = bytes(range(256)) * 64
VERSION = ObjectVersion("d", "e", "b", "a", '"etag"', len(BYTES))


def opened(path: Path, *, standby: bool = False) -> ChunkStore:
    return ChunkStore(
        ChunkStoreSettings(
            directory=path, free_floor_bytes=0, limit_bytes=1 << 30, scrub_bytes_per_s=0, standby=standby
        )
    )


class Standby:
    """A store that is opened in a thread, which waits. ``close`` waits for it."""

    def __init__(self, path: Path) -> None:
        self.store: ChunkStore | None = None
        self._path = path
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self.store = opened(self._path, standby=True)

    def taken_over(self) -> ChunkStore:
        self._thread.join(60)
        assert self.store is not None
        return self.store

    def close(self) -> None:
        self.taken_over().close()


def facts(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path / "index.sqlite")) as database:
        return dict(database.execute("SELECT name, value FROM facts"))


@pytest.mark.promise("S388")
def test_a_daemon_in_standby_takes_over_when_the_other_one_ends(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.add_whole(VERSION, [memoryview(BYTES)]).release()
    assert not first.has_successor
    second = Standby(tmp_path)
    wait_until(lambda: first.has_successor)
    assert second.store is None
    first.close()
    store = second.taken_over()
    assert not store.has_successor
    file = store.find(VERSION)
    assert file is not None
    file.release()
    store.close()


@pytest.mark.promise("S388")
def test_several_in_standby_take_over_one_after_the_other(tmp_path: Path) -> None:
    first, waiting = opened(tmp_path), [Standby(tmp_path), Standby(tmp_path)]
    wait_until(lambda: first.has_successor)
    first.close()
    wait_until(lambda: any(each.store for each in waiting))
    now, later = sorted(waiting, key=lambda each: each.store is None)
    wait_until(lambda: now.taken_over().has_successor)
    assert later.store is None
    now.close()
    later.close()


def test_a_successor_trusts_the_index_without_a_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)
    first.add_whole(VERSION, [memoryview(BYTES)]).release()
    second = Standby(tmp_path)
    wait_until(lambda: first.has_successor)
    synced: list[Path] = []
    monkeypatch.setattr(cache_directory, "synced", lambda path: bool(synced.append(path)) or True)
    first.close()
    assert synced == []
    store = second.taken_over()
    assert store._crash_recovery._reconciled, "nothing has to be reconciled"
    assert facts(tmp_path)["clean"] == "no"
    store.close()


@pytest.mark.promise("S84")
def test_a_crash_of_the_machine_after_a_handover_is_one(tmp_path: Path) -> None:
    """The file that the first daemon left may not be on the disk."""
    store = opened(tmp_path)
    store.add_whole(VERSION, [memoryview(BYTES)]).release()
    store.close()
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as database, database:
        database.execute("UPDATE facts SET value = 'on this boot' WHERE name = 'clean'")
        database.execute("UPDATE facts SET value = 'another' WHERE name = 'boot_id'")
    digest = VERSION.digest(CHUNK_BYTES)
    path = tmp_path / "objects" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(bytes(len(BYTES)))
    again = opened(tmp_path)
    assert again.has_unverified_files
    assert again.find(VERSION) is None
    assert again.recover(VERSION) is None
    assert again.bad_chunks == 1
    again.close()


def test_the_start_after_a_kill_writes_no_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).close()
    first = opened(tmp_path)
    first._directory.release()  # what is left of it after a kill; its threads end with the test
    written: list[str] = []
    monkeypatch.setattr("csi_driver.cache.index.Index.set_fact", lambda *given, **_: written.append(given[1]))
    second = opened(tmp_path)
    assert "boot_id" not in written
    assert "clean" not in written
    monkeypatch.undo()
    first._capacity.close()
    first._index.close()
    second.close()


@pytest.mark.filterwarnings("error")
def test_a_sync_that_takes_too_long_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sync"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(file_system_sync, "SYNC_S", 0.05)
    unended: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(file_system_sync, "_unended", unended)
    try:
        assert not file_system_sync.synced(tmp_path)
        gc.collect()  # what was freed without an end would be reported here
        assert len(unended) == 1
    finally:
        for sync in unended:
            sync.kill()
            sync.wait()
