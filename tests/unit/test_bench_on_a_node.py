"""The rounds of ``warm`` and ``model-load``: what is looked at before a figure counts."""

from __future__ import annotations

import subprocess
import sys
from json import dumps, loads
from pathlib import Path

import pytest

from hayloft_bench.models.loader_process import LOADERS, missing
from hayloft_bench.models.rounds import CHECKED, SUBJECTS, page_objection
from hayloft_bench.node_copies.copiers import COPIERS, Copied
from hayloft_bench.node_copies.rounds import objection
from hayloft_bench.results.model import DatasetFile, Sizes
from hayloft_bench.run.page_cache import evict, write_out
from hayloft_bench.run.touched_memory import touch_memory
from hayloft_bench.workloads import WORKLOADS

FILES = [DatasetFile("a", 9_000, 0), DatasetFile("b/c", 5_000, 0)]


def copy(directory: Path, sizes: dict[str, int]) -> Copied:
    for path, size_bytes in sizes.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(b"x" * size_bytes)
    return Copied(1.0, 1.0, directory)


def test_a_dataset_that_is_on_the_node_has_no_objection(tmp_path: Path) -> None:
    assert objection(FILES, copy(tmp_path, {"x": 5_000, "y": 9_000})) == ""


@pytest.mark.parametrize("sizes", [{"a": 9_000}, {"a": 9_000, "b/c": 4_999}, {"a": 9_000, "b/c": 5_000, "d": 1}])
def test_a_copy_with_other_files_does_not_count(tmp_path: Path, sizes: dict[str, int]) -> None:
    assert "are there" in objection(FILES, copy(tmp_path, sizes))


def test_a_sparse_file_does_not_count(tmp_path: Path) -> None:
    copied = copy(tmp_path, {"a": 9_000})
    with (tmp_path / "c").open("wb") as file:
        file.truncate(5_000)
    with (tmp_path / "a").open("wb") as file:
        file.truncate(9_000)
    assert "0 of 14000 bytes are there" in objection(FILES, copied)


def test_the_state_of_the_page_cache_decides_whether_a_load_counts(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"x" * (4 << 20))
    write_out(tmp_path)
    evict([path])
    assert page_objection("warm", [path]) == ""
    assert page_objection("hot", [path]).startswith("not hot: 0 %"[:7])
    path.read_bytes()
    assert page_objection("hot", [path]) == ""
    assert page_objection("warm", [path]) == "not warm: 100% of the files were in the page cache"


def test_no_more_memory_is_touched_than_half_of_what_is_available() -> None:
    assert touch_memory(1 << 40, lambda: 1 << 20) == 512 << 10
    assert touch_memory(4096, lambda: 1 << 20) == 4096
    assert touch_memory(1 << 40, lambda: 1 << 20, ranks=4) == 128 << 10


def test_the_loader_reads_every_tensor_and_says_what_it_has_read(tmp_path: Path) -> None:
    workload = WORKLOADS["model-load"]
    files = workload.make(tmp_path, Sizes(0.001, 1))
    command = [sys.executable, "-m", "hayloft_bench.models.loader_process"]
    wanted = {"loader": "mmap", "paths": [str(tmp_path / file.path) for file in files], "checked": CHECKED}
    done = subprocess.run(command, input=dumps(wanted) + "\n", capture_output=True, text=True, check=True, timeout=60)
    found = loads(done.stdout)
    assert 0 < sum(file.size_bytes for file in files) - found["bytes"] < 8192 * len(files), "all but the headers"
    assert len(found["sums"]) == len(files), "one tensor of each shard is compared"
    assert found["seconds"] > 0


def test_a_loader_that_is_not_installed_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("mmap") == ""
    assert "no_such_package: pip install" in missing("mmap", "no_such_package")


def test_each_subject_has_a_loader_and_hayloft_is_among_both_kinds_of_targets() -> None:
    assert {subject.loader for subject in SUBJECTS.values()} == set(LOADERS)
    assert COPIERS["hayloft"].facts.kind == SUBJECTS["hayloft-mmap"].facts.kind == "hayloft"
