"""Long listings, which are arranged on the disk: the same file, byte for byte, as one that was arranged in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog import page_collector, path_assignment, spilled_rows
from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.spilled_rows import BatchFile
from csi_driver.model.errors import BudgetExceeded, EmptyDataset
from csi_driver.model.snapshot import ObjectInfo
from tests.support.datasets import CREATED_NS, dataset, manifest_of, pages_of

NAMES = st.lists(st.sampled_from(["a", "b", "a-b", ".", "..", "", "~", "é", "x" * 60]), min_size=1, max_size=4)
KEYS = st.lists(NAMES.map("/".join), max_size=60)


def spill_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_collector, "BATCH_OBJECTS", 3)
    monkeypatch.setattr(page_collector, "SPILL_BATCHES", 2)
    monkeypatch.setattr(spilled_rows, "SAMPLE_EVERY", 2)
    monkeypatch.setattr(path_assignment, "PART_ROWS", 4)


def built(infos: list[ObjectInfo], target: Path) -> bytes | str:
    try:
        build_manifest(pages_of(infos), dataset(), target, created_ns=CREATED_NS)
    except EmptyDataset as error:
        return str(error)
    return target.read_bytes()


@pytest.mark.promise("S623")
@given(KEYS, st.integers(0, 3))
def test_the_manifest_is_the_same_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], sizes: int
) -> None:
    infos = [
        ObjectInfo(f"data/{key}", number % (sizes + 1), None if number % 5 == 4 else f"etag{number}", number * 10**9)
        for number, key in enumerate(keys)
    ]
    directory = tmp_path_factory.mktemp("manifests")
    in_memory = built(infos, directory / "memory.arrow")
    with pytest.MonkeyPatch.context() as monkeypatch:
        spill_everything(monkeypatch)
        assert built(infos, directory / "disk.arrow") == in_memory
    assert {path.name for path in directory.iterdir()} <= {"memory.arrow", "disk.arrow"}


@pytest.mark.promise("S623")
def test_names_that_conflict_across_parts_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key and a directory of the same name, keys that are shown under the same name, and keys listed twice, in a
    directory that is several parts."""
    keys = [f"d/{number:04}" for number in range(40)] + ["d/0020/x", "d//0021", "d/./0022", "d", "d/0023", "d//0023"]
    (tmp_path / "memory").mkdir()
    expected = manifest_of(keys, tmp_path / "memory").path.read_bytes()
    spill_everything(monkeypatch)
    (tmp_path / "disk").mkdir()
    assert manifest_of(keys, tmp_path / "disk").path.read_bytes() == expected


@pytest.mark.promise("S623")
@pytest.mark.parametrize(("most_bytes", "free_blocks", "named"), [(1000, 1 << 30, "1000 bytes"), (None, 20, "quarter")])
def test_a_list_without_end_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int | None, free_blocks: int, named: str
) -> None:
    spill_everything(monkeypatch)
    free = SimpleNamespace(f_bavail=free_blocks, f_frsize=100)
    monkeypatch.setattr(spilled_rows, "os", SimpleNamespace(statvfs=lambda path: free))
    pages = pages_of(ObjectInfo(f"data/{number}", 1, "etag", 0) for number in range(500))
    with pytest.raises(BudgetExceeded, match=named):
        build_manifest(pages, dataset(), tmp_path / "manifest.arrow", most_bytes=most_bytes)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill_everything(monkeypatch)
    written = 0

    def write(self: BatchFile, batches: object) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BatchFile, "write", write)
    with pytest.raises(OSError, match="No space left"):
        manifest_of([f"{number}" for number in range(50)], tmp_path)
    assert not list(tmp_path.iterdir())
