"""A dataset is written once: existing files are compared, then kept, replaced or removed; foreign files stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import crc32c
import pytest

from hayloft_bench.results.model import DatasetFile
from hayloft_bench.workloads.dataset_writer import make


def _contents(path: str) -> Iterator[bytes]:
    yield path.encode() * 100


@pytest.fixture
def counted() -> list[str]:
    return []


def _make(directory: Path, counted: list[str], paths: tuple[str, ...] = ("a/1", "a/2", "b")) -> list[DatasetFile]:
    def contents(path: str) -> Iterator[bytes]:
        counted.append(path)
        return _contents(path)

    return make(directory, {"of": "test"}, paths, contents)


def test_existing_files_are_kept_if_their_bytes_are_right(tmp_path: Path, counted: list[str]) -> None:
    first = _make(tmp_path / "data", counted)
    counted.clear()

    assert _make(tmp_path / "data", counted) == first
    assert counted == []


def test_damaged_short_and_missing_files_are_written_again(tmp_path: Path, counted: list[str]) -> None:
    first = _make(tmp_path / "data", counted, ("a/1", "a/2", "b", "c"))
    flipped = bytearray((tmp_path / "data/a/1").read_bytes())
    flipped[7] ^= 1
    (tmp_path / "data/a/1").write_bytes(flipped)
    (tmp_path / "data/a/2").unlink()
    with (tmp_path / "data/b").open("ab") as file:
        file.truncate(3)
    counted.clear()

    assert _make(tmp_path / "data", counted, ("a/1", "a/2", "b", "c")) == first
    assert sorted(counted) == ["a/1", "a/2", "b"]
    assert (tmp_path / "data/a/1").read_bytes() == b"a/1" * 100


def test_no_file_is_kept_for_another_dataset(tmp_path: Path, counted: list[str]) -> None:
    make(tmp_path / "data", {"of": "another"}, ["b"], lambda path: [b"other"])

    _make(tmp_path / "data", counted)

    assert sorted(counted) == ["a/1", "a/2", "b"]


def test_surplus_files_of_an_earlier_dataset_are_removed(tmp_path: Path, counted: list[str]) -> None:
    _make(tmp_path / "data", counted)

    _make(tmp_path / "data", counted, ("b",))

    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["b"]


def test_foreign_files_are_neither_removed_nor_read(tmp_path: Path, counted: list[str]) -> None:
    _make(tmp_path / "data", counted)
    (tmp_path / "data/thesis.tex").write_text("years of work")

    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        _make(tmp_path / "data", counted)

    assert (tmp_path / "data/thesis.tex").read_text() == "years of work"


def test_an_interrupted_make_is_finished_by_the_next(tmp_path: Path, counted: list[str]) -> None:
    def full(path: str) -> Iterator[bytes]:
        if path == "b":
            raise OSError(28, "No space left on device")
        return _contents(path)

    with pytest.raises(OSError, match="No space"):
        make(tmp_path / "data", {"of": "test"}, ("a/1", "a/2", "b"), full)

    files = _make(tmp_path / "data", counted)

    assert [file.crc32c for file in files] == [crc32c.crc32c(path.encode() * 100) for path in ("a/1", "a/2", "b")]


def test_an_unreadable_record_only_costs_a_new_make(tmp_path: Path, counted: list[str]) -> None:
    first = _make(tmp_path / "data", counted)
    (tmp_path / "data.made.json").write_text("{")
    shutil.rmtree(tmp_path / "data")

    assert _make(tmp_path / "data", counted) == first
