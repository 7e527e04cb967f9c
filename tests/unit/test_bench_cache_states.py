"""When a figure is not what its phase says, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hayloft_bench.results.model import Phase
from hayloft_bench.run.cache_states import Observed, files_below, objection, read_back, resident_share
from hayloft_bench.run.page_cache import evict, write_out

NEEDED = 100_000_000
COLD = Observed("cold", NEEDED, origin_bytes=NEEDED, disk_bytes=None)
WARM = Observed("warm", NEEDED, origin_bytes=0, disk_bytes=NEEDED)
HOT = Observed("hot", NEEDED, origin_bytes=0, disk_bytes=0)


@pytest.mark.parametrize("seen", [COLD, WARM, HOT, replace(HOT, phase="restart")])
def test_what_is_as_it_should_be_is_not_objected_to(seen: Observed) -> None:
    assert objection(seen) == ""


def test_a_little_less_from_the_store_is_still_cold() -> None:
    assert objection(replace(COLD, origin_bytes=96_000_000)) == ""
    assert objection(replace(COLD, origin_bytes=94_000_000)).startswith("not cold: the store sent 94.0 MB of 100.0 MB")


def test_plain_files_are_cold_when_the_disk_gave_them() -> None:
    plain = Observed("cold", NEEDED, origin_bytes=None, disk_bytes=NEEDED, resident_share=0.0)
    assert objection(plain) == ""
    assert "10% of the files were in the page cache" in objection(replace(plain, resident_share=0.1))
    assert "only 10.0 MB of 100.0 MB came from the disk" in objection(replace(plain, disk_bytes=10_000_000))


def test_warm_is_from_the_disk_and_not_from_the_store() -> None:
    assert "not warm: the store sent 2.0 MB" in objection(replace(WARM, origin_bytes=2_000_000))
    assert "not warm: only 50.0 MB" in objection(replace(WARM, disk_bytes=50_000_000))


def test_hot_is_not_from_the_disk() -> None:
    assert objection(replace(HOT, disk_bytes=5_000_000)) == ""
    assert objection(replace(HOT, disk_bytes=6_000_000)).startswith("not hot: 6.0 MB of 100.0 MB came from the disk")


def test_what_the_kernel_does_not_count_is_not_objected_to() -> None:
    assert objection(replace(WARM, disk_bytes=None)) == ""
    assert objection(replace(HOT, disk_bytes=None, origin_bytes=None)) == ""


@pytest.mark.parametrize("phase", ["hot", "restart"])
def test_after_everything_was_read_the_store_sends_nothing(phase: Phase) -> None:
    assert f"not {phase}: the store sent 2.0 MB" in objection(replace(HOT, phase=phase, origin_bytes=2_000_000))


def test_a_small_cache_keeps_to_its_limit() -> None:
    small = Observed(
        "small-cache", NEEDED, origin_bytes=0, disk_bytes=0, cache_bytes=50_000_000, limit_bytes=50_000_000
    )
    assert objection(small) == ""
    assert "more than its limit" in objection(replace(small, cache_bytes=60_000_000))


def test_evicted_files_are_not_resident_and_come_back_by_reading(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(b"x" * 100_000)
    read_back(tmp_path)
    assert resident_share(paths) == 1.0
    write_out(tmp_path)
    evict(paths)
    assert resident_share(paths) == 0.0


def test_an_empty_file_has_no_pages_and_a_missing_one_is_no_error_to_evict(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert resident_share([tmp_path / "file"]) == 0.0
    evict([tmp_path / "none"])


def test_the_files_below_a_directory_are_regular_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    assert files_below(tmp_path) == [tmp_path / "folder" / "file"]
    assert files_below(tmp_path / "none") == []
