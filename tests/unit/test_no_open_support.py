"""Which datasets are read without OPEN and RELEASE."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from csi_driver.cache.open_file_cache import OpenFileCache
from csi_driver.catalog.tree import FIRST_FILE_NODE
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.descriptor_budget import DescriptorBudget
from csi_driver.filesystem.inodes import Data
from csi_driver.filesystem.no_open_support import NoOpenRule, OpensMode, machine_memory_bytes, reader_memory_bytes
from csi_driver.model.errors import InternalFailure
from csi_driver.reading.fair_shares import Share
from tests.support.datasets import manifest_of, object_info

KB, MB = 1000, 1000**2
WHOLE_UP_TO = 4 << 20
PLENTY = 1 << 40
IN_PAGES = -(-110 * KB // mmap.PAGESIZE) * mmap.PAGESIZE
"""What a file of 110 kB takes in memory."""


@pytest.mark.promise("S21")
@pytest.mark.parametrize(
    ("sizes_bytes", "small_object_bytes", "memory", "expected"),
    [
        ([110 * KB] * 20, WHOLE_UP_TO, PLENTY, True),
        ([323 * KB] * 20, WHOLE_UP_TO, PLENTY, True),
        ([1 * MB] * 20, WHOLE_UP_TO, PLENTY, False),
        ([110 * KB] * 90 + [1100 * KB], WHOLE_UP_TO, PLENTY, True),
        ([110 * KB] * 89 + [1110 * KB], WHOLE_UP_TO, PLENTY, False),
        ([110 * KB] * 20, WHOLE_UP_TO, 2 * 20 * IN_PAGES, True),
        ([110 * KB] * 20, WHOLE_UP_TO, 2 * 20 * IN_PAGES - 1, False),
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
    assert NoOpenRule(tree, small_object_bytes, "auto").applies(memory) is expected


@pytest.mark.promise("S682")
@pytest.mark.parametrize(("page_bytes", "expected"), [(4096, True), (16384, True), (65536, False)])
def test_files_are_counted_by_the_pages_that_they_fill(tmp_path: Path, page_bytes: int, expected: bool) -> None:
    """20 files of 10 kB: 245,760 bytes in pages of 4 KiB, 327,680 in such of 16, and 1,310,720 in such of 64."""
    tree = manifest_of([object_info(f"{number:03}", 10 * KB) for number in range(20)], tmp_path).tree
    assert NoOpenRule(tree, WHOLE_UP_TO, "auto", page_bytes).applies(1 * MB) is expected


@pytest.mark.promise("S258")
@pytest.mark.parametrize(("opens", "expected"), [("kernel", True), ("daemon", False)])
@pytest.mark.parametrize(("size_bytes", "memory"), [(110 * KB, PLENTY), (110 * KB, 1), (100 * MB, PLENTY)])
def test_the_parameter_of_the_volume_decides_whatever_the_files_and_the_memory_are(
    tmp_path: Path, opens: OpensMode, expected: bool, size_bytes: int, memory: int
) -> None:
    tree = manifest_of([object_info("a", size_bytes)], tmp_path).tree
    assert NoOpenRule(tree, WHOLE_UP_TO, opens).applies(memory) is expected


@pytest.mark.promise("S258")
@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/pods/pod1/box", {"pods/pod1/memory.max": "4096", "pods/pod1/box/memory.max": "max"}, 4096),
        ("0::/pods/pod1/box", {"pods/memory.max": "4096", "pods/pod1/box/memory.max": "9999"}, 4096),
        ("3:cpu:/\n4:cpuacct,memory:/pod1\n0::/", {"memory/pod1/memory.limit_in_bytes": "4096"}, 4096),
        ("0::/../pod1", {"pod1/memory.max": "4096"}, None),
        ("0::/", {"memory.max": "4096"}, None),
        ("0::/gone", {}, None),
    ],
    ids=["of the pod", "of all pods", "version 1", "outside the namespace", "the root", "not visible"],
)
def test_the_memory_of_a_reader_is_the_least_limit_of_its_control_groups(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text(f"{groups}\n")
    for name, limit in limits.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{limit}\n")
    found = reader_memory_bytes(7, tmp_path / "proc", tmp_path / "cgroup")
    assert found == (machine_memory_bytes() if expected is None else expected)


def test_the_memory_of_a_process_that_cannot_be_seen_is_that_of_the_machine() -> None:
    assert reader_memory_bytes(0) == machine_memory_bytes()


def file_system(directory: Path, size_bytes: int, opens: OpensMode, **library: object) -> DatasetFilesystem:
    """Of one file, ``a``."""
    return DatasetFilesystem(
        manifest_of([object_info("a", size_bytes)], directory).tree,
        SimpleNamespace(small_object_bytes=WHOLE_UP_TO, add_open_file_cache=OpenFileCache, **library),  # type: ignore[arg-type]
        SimpleNamespace(endpoint="e", bucket="b"),
        access_domain="d",
        url_base="s3://b/",
        dataset_name="a",
        presentation=Presentation(),
        share=Share(),
        descriptors=DescriptorBudget(1000).share(Share()),
        opens=opens,
    )


def test_a_file_system_decides_by_tree_and_parameter(tmp_path: Path) -> None:
    def needless(size_bytes: int, opens: OpensMode) -> bool:
        filesystem = file_system(tmp_path, size_bytes, opens)
        assert filesystem.opens_are_needless is filesystem.opens_are_needless_for(os.getpid())
        return filesystem.opens_are_needless

    assert needless(110 * KB, "auto")
    assert not needless(machine_memory_bytes(), "auto")
    assert needless(machine_memory_bytes(), "kernel")
    assert not needless(110 * KB, "daemon")


class OpenWithoutMemory:
    """Its first read is answered at once, others find no memory for a buffer."""

    access = None
    in_memory = False
    reusable_file = None

    def __init__(self) -> None:
        self.reads = self.closes = 0

    def read(self, offset: int, size_bytes: int, data: Data) -> None:
        self.reads += 1
        if self.reads > 1:
            raise MemoryError
        data([])

    def close(self) -> None:
        self.closes += 1


def test_a_read_without_an_open_that_fails_unexpectedly_leaves_no_file_open(tmp_path: Path) -> None:
    opens = [OpenWithoutMemory(), OpenWithoutMemory()]
    queue = iter(opens)
    filesystem = file_system(tmp_path, 110 * KB, "kernel", open_to_read=lambda _, opened: opened(next(queue)))
    answers: list[object] = []
    filesystem.read_node(FIRST_FILE_NODE, 0, 4096, answers.append)
    opens[0].access = filesystem.access  # type: ignore[assignment]
    filesystem.access.remember(0, filesystem.access.now_s())
    with pytest.raises(MemoryError):
        filesystem.read_node(FIRST_FILE_NODE, 0, 4096, answers.append)
    assert opens[0].closes == 1, "it was idle, and the read that has taken it failed"
    opens[1].reads = 1
    with pytest.raises(MemoryError):
        filesystem.read_node(FIRST_FILE_NODE, 0, 4096, answers.append)
    assert opens[1].closes == 1, "it was made for the read"
    filesystem.close()
    assert [each.closes for each in opens] == [1, 1]
    assert answers[0] == []
    assert isinstance(answers[1], InternalFailure)


def test_the_memory_is_that_of_the_machine() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert machine_memory_bytes() == pytest.approx(int(total.split()[1]) * 1024, rel=0.05)
