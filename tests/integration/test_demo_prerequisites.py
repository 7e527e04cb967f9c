"""What is missing is said before any work is done."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import pytest

from hayloft_bench.demo import extra, prerequisites
from hayloft_bench.demo.errors import DemoFailed
from hayloft_bench.demo.options import DemoOptions
from hayloft_bench.demo.page_cache import cached_share, evict, write_out


@pytest.mark.parametrize("scale", [0.0, -1.0, 1000.0, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(DemoFailed, match=r"--scale .* is out of range"):
        prerequisites.check(DemoOptions(scale=scale))


@pytest.mark.fuse
def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match=f"--directory {tmp_path}/none is not a directory"):
        prerequisites.check(DemoOptions(directory=tmp_path / "none"))


@pytest.mark.fuse
def test_a_directory_in_memory_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, pytest.raises(DemoFailed, match="tmpfs"):
        prerequisites.check(DemoOptions(directory=Path(directory)))


@pytest.mark.fuse
def test_too_little_room_names_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="GB are needed"):
        prerequisites.check(DemoOptions(scale=100.0, directory=_without_room(tmp_path)))


def _without_room(tmp_path: Path) -> Path:
    import shutil

    free_bytes = shutil.disk_usage(tmp_path).free
    if free_bytes > 3 * 100 * prerequisites.DATASET_BYTES:
        pytest.fail("this disk has room for a hundred times the dataset; the test needs a smaller one")
    return tmp_path


@pytest.mark.fuse
def test_results_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="is not a directory; make it first"):
        prerequisites.check(DemoOptions(json_path=tmp_path / "none" / "rows.json"))


def test_a_package_that_is_missing_is_named_with_its_remedy() -> None:
    with pytest.raises(DemoFailed, match=r"no_such_package is not installed; .*pip install 'hayloft\[demo\]'"):
        extra._module("no_such_package")


def test_evicted_files_are_not_in_the_page_cache_and_read_ones_are() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory) / "file"
        path.write_bytes(bytes(8 * mmap.PAGESIZE))
        write_out(path.parent)
        evict([path])
        assert cached_share([path]) == 0.0
        path.read_bytes()
        assert cached_share([path]) == 1.0


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cached_share([tmp_path / "file"]) == 0.0
