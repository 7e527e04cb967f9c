"""The open table: what is recorded, and that a kill at any step leaves no wrong record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from csi_driver.filesystem import open_table
from csi_driver.filesystem.open_table import (
    FIRST_SLOTS,
    HEADER_BYTES,
    PASSTHROUGH_BIT,
    SLOT_BYTES,
    ConnectionState,
    OpenRecord,
    OpenTable,
)
from csi_driver.model.errors import MountFailed

_SNAPSHOT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "opens"


def _loaded(path: Path) -> tuple[list[OpenRecord], ConnectionState]:
    table = OpenTable.load(path, _SNAPSHOT)
    try:
        return list(table.records()), table.state
    finally:
        table.close()


def test_opens_and_the_result_of_init_survive_loading(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    table.record_connection(ConnectionState(45, 1 << 37 | 1))
    cached = table.claim(2, 11, 100, 0)
    passthrough = table.claim(3, 12, 102, 7)
    assert _loaded(path) == (
        [OpenRecord(cached, 2, 11, 100, 0), OpenRecord(passthrough, 3, 12, 102, 7)],
        ConnectionState(45, 1 << 37 | 1),
    )
    assert passthrough & PASSTHROUGH_BIT
    assert not cached & PASSTHROUGH_BIT
    table.close()


def test_values_of_64_bits_come_back(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    big = (1 << 64) - 1
    handle = table.claim(big, big, big, (1 << 31) - 1)
    assert table.record(handle) == OpenRecord(handle, big, big, big, (1 << 31) - 1)
    table.close()


def test_a_cleared_open_is_gone_and_clearing_it_again_is_false(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    handle = table.claim(2, 11, 100, 0)
    assert table.clear(handle)
    assert not table.clear(handle)
    assert table.record(handle) is None
    assert _loaded(path)[0] == []
    table.close()


def test_a_slot_is_used_again_under_another_handle(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    first = table.claim(2, 11, 100, 0)
    table.clear(first)
    second = table.claim(2, 12, 102, 0)
    assert second & 0xFFFFFFFF == first & 0xFFFFFFFF
    assert second != first
    assert not table.clear(first)
    assert table.record(second) is not None
    table.close()


def test_handles_stay_different_across_a_restart(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    first = table.claim(2, 11, 100, 0)
    table.clear(first)
    table.close()
    table = OpenTable.load(path, _SNAPSHOT)
    assert table.claim(2, 11, 104, 0) != first
    table.close()


def test_a_loaded_table_does_not_reuse_slots_of_open_files(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    kept = {table.claim(node, node, node, 0) for node in range(10)}
    table.close()
    table = OpenTable.load(path, _SNAPSHOT)
    more = {table.claim(node, node, node, 0) for node in range(FIRST_SLOTS)}
    assert not kept & more
    assert len({handle & 0xFFFFFFFF for handle in kept | more}) == FIRST_SLOTS + 10
    table.close()


def test_a_table_grows_and_loses_nothing(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    handles = [table.claim(node, node + 1, 2 * node, node % 3) for node in range(3 * FIRST_SLOTS)]
    assert len(set(handles)) == len(handles)
    assert path.stat().st_size == HEADER_BYTES + 4 * FIRST_SLOTS * SLOT_BYTES
    for handle in handles[::2]:
        assert table.clear(handle)
    assert {record.handle for record in _loaded(path)[0]} == set(handles[1::2])
    table.close()


def test_backing_ids_of_cleared_opens_can_be_found(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    table.clear(table.claim(2, 11, 100, 41))
    table.claim(3, 12, 102, 42)
    assert table.leftover_backing_ids() == set()  # the slot of 41 was used again
    table.clear(table.claim(4, 13, 104, 43))
    assert table.leftover_backing_ids() == {43}
    table.close()


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_slot_with_any_wrong_byte_is_not_an_open(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    table.claim(0x1122334455667788, 0x99, 0x10000, 5)
    table.close()
    whole = path.read_bytes()
    for at in range(HEADER_BYTES, HEADER_BYTES + 40):
        damaged = bytearray(whole)
        damaged[at] ^= 0x5A
        path.write_bytes(damaged)
        assert _loaded(path)[0] == [], at


def test_a_half_written_header_leaves_the_previous_one(path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    table.record_connection(ConnectionState(45, 5))
    before = path.read_bytes()
    table.record_connection(ConnectionState(45, 1))
    after = path.read_bytes()
    table.close()
    changed = [at for at in range(HEADER_BYTES) if before[at] != after[at]]
    for count in range(len(changed)):
        torn = bytearray(before)
        for at in changed[:count]:
            torn[at] = after[at]
        path.write_bytes(torn)
        assert _loaded(path)[1] == ConnectionState(45, 5), count
    path.write_bytes(after)
    assert _loaded(path)[1] == ConnectionState(45, 1)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * HEADER_BYTES, bytes(HEADER_BYTES + 3 * SLOT_BYTES)])
def test_a_file_that_is_no_open_table_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(MountFailed, match="mount anew"):
        OpenTable.load(path, _SNAPSHOT)


def test_a_table_that_is_missing_or_of_another_snapshot_is_refused(path: Path) -> None:
    with pytest.raises(MountFailed, match="cannot be opened"):
        OpenTable.load(path, _SNAPSHOT)
    OpenTable.create(path, _SNAPSHOT).close()
    with pytest.raises(MountFailed, match="another snapshot"):
        OpenTable.load(path, "f" * 40)


# -- killed anywhere --------------------------------------------------------------------------------------------------


def _images(path: Path, scratch: Path, act: Callable[[], object]) -> list[Path]:
    """The file after a kill before each line that ``act`` runs in the open table."""
    images: list[Path] = []

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != open_table.__file__:
            return None
        image = scratch / f"image-{len(images)}"
        shutil.copy(path, image)
        images.append(image)
        return on_line

    earlier = sys.gettrace()
    sys.settrace(on_line)
    try:
        act()
    finally:
        sys.settrace(earlier)
    assert len(images) > 3
    return images


def test_after_a_kill_anywhere_in_a_claim_the_open_is_complete_or_missing(path: Path, tmp_path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    other = table.claim(9, 9, 90, 9)
    table.clear(table.claim(1, 1, 10, 1))  # the next slot holds an older body
    handles: list[int] = []
    for image in _images(path, tmp_path, lambda: handles.append(table.claim(2, 11, 100, 7))):
        records = {record.handle: record for record in _loaded(image)[0]}
        new = records.pop(handles[0], None)
        assert new in (None, OpenRecord(handles[0], 2, 11, 100, 7))
        assert list(records) == [other]
    table.close()


def test_after_a_kill_anywhere_in_a_clear_the_open_is_complete_or_missing(path: Path, tmp_path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    other, handle = table.claim(9, 9, 90, 9), table.claim(2, 11, 100, 7)
    for image in _images(path, tmp_path, lambda: table.clear(handle)):
        assert {record.handle for record in _loaded(image)[0]} in ({other}, {other, handle})
    assert table.leftover_backing_ids() == {7}
    table.close()


def test_after_a_kill_anywhere_in_growth_every_open_is_complete(path: Path, tmp_path: Path) -> None:
    table = OpenTable.create(path, _SNAPSHOT)
    handles = {table.claim(node, node, node, 0) for node in range(FIRST_SLOTS)}
    new: list[int] = []
    for image in _images(path, tmp_path, lambda: new.append(table.claim(5, 5, 5, 0))):
        assert {record.handle for record in _loaded(image)[0]} - set(new) == handles
    assert new[0] not in handles
    table.close()


_ON_A_FULL_DISK = """
import errno, os, pathlib, sys
from csi_driver.filesystem.open_table import FIRST_SLOTS, OpenTable

table = OpenTable.create(pathlib.Path("opens"), "0" * 40)
fill = os.open("of-others", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(fill, bytes(4096))
except OSError as error:
    assert error.errno == errno.ENOSPC
handles = {table.claim(node, node, node, 0) for node in range(FIRST_SLOTS)}
assert len(handles) == FIRST_SLOTS
for _ in range(2):
    try:
        table.claim(1, 1, 1, 0)
        sys.exit("it has grown")
    except OSError as error:
        assert error.errno == errno.ENOSPC
try:
    OpenTable.create(pathlib.Path("others"), "0" * 40)
    sys.exit("there was room")
except OSError as error:
    assert error.errno == errno.ENOSPC
assert sorted(os.listdir()) == ["of-others", "opens"]
os.ftruncate(fill, 0)
handles |= {table.claim(node, node, node, 0) for node in range(FIRST_SLOTS)}
assert len(handles) == 2 * FIRST_SLOTS == len(list(table.records()))
"""


@pytest.mark.promise("S711")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_an_error_of_one_open_and_ends_no_process(tmp_path: Path) -> None:
    """A store into a hole of a memory-mapped file would be a SIGBUS there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "opens-tmpfs", str(disk)], check=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ON_A_FULL_DISK], cwd=disk, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert (done.returncode, done.stderr) == (0, "")
