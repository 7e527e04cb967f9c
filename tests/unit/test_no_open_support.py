"""Which datasets are read without OPEN and RELEASE."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from csi_driver.cache.open_file_cache import OpenFileCache
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.no_open_support import memory_bytes, opens_are_needless
from tests.support.datasets import manifest_of, object_info

KB, MB = 1000, 1000**2
WHOLE_UP_TO = 4 << 20
PLENTY = 1 << 40


@pytest.mark.promise("S21")
@pytest.mark.parametrize(
    ("sizes_bytes", "small_object_bytes", "memory", "expected"),
    [
        ([110 * KB] * 20, WHOLE_UP_TO, PLENTY, True),
        ([323 * KB] * 20, WHOLE_UP_TO, PLENTY, True),
        ([1 * MB] * 20, WHOLE_UP_TO, PLENTY, False),
        ([110 * KB] * 90 + [1100 * KB], WHOLE_UP_TO, PLENTY, True),
        ([110 * KB] * 89 + [1110 * KB], WHOLE_UP_TO, PLENTY, False),
        ([110 * KB] * 20, WHOLE_UP_TO, 2 * 20 * 110 * KB, True),
        ([110 * KB] * 20, WHOLE_UP_TO, 2 * 20 * 110 * KB - 1, False),
        ([110 * KB] * 20, 64 << 10, PLENTY, False),
        ([0, 0], WHOLE_UP_TO, PLENTY, False),
    ],
    ids=[
        *("images", "larger images", "samples of a megabyte", "with a small index", "with a large index"),
        *("fits into memory twice", "does not", "not fetched whole", "nothing to read"),
    ],
)
def test_opens_are_needless_where_files_are_small_and_stay_in_memory(
    tmp_path: Path, sizes_bytes: list[int], small_object_bytes: int, memory: int, expected: bool
) -> None:
    objects = [object_info(f"{number:03}", size_bytes) for number, size_bytes in enumerate(sizes_bytes)]
    tree = manifest_of(objects, tmp_path).tree
    assert opens_are_needless(tree, small_object_bytes, memory) is expected


@pytest.mark.parametrize("memory", [PLENTY, 1])
def test_a_file_system_decides_by_tree_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr("csi_driver.filesystem.dataset_filesystem.memory_bytes", lambda: memory)
    filesystem = DatasetFilesystem(
        manifest_of([object_info("a", 110 * KB)], tmp_path).tree,
        SimpleNamespace(small_object_bytes=WHOLE_UP_TO, add_open_file_cache=OpenFileCache),  # type: ignore[arg-type]
        SimpleNamespace(endpoint="e", bucket="b"),
        access_domain="d",
        url_base="s3://b/",
        dataset_name="a",
        presentation=Presentation(),
    )
    assert filesystem.opens_are_needless is (memory == PLENTY)


def test_the_memory_is_that_of_the_machine() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert memory_bytes() == pytest.approx(int(total.split()[1]) * 1024, rel=0.05)
