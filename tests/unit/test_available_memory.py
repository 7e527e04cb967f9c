"""The memory that a listing may use depends on what is available, and the memory of a container is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.wiring.available_memory import available_bytes
from csi_driver.wiring.control_group import ControlGroupMemory, own_groups


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", 1, 4096 << 10), ("1000", 400, 630), ("1000000000", 5, 4096 << 10), ("5", 90, 0)],
)
def test_the_least_of_machine_and_container_counts(tmp_path: Path, limit: str, used: int, expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8192 kB\nMemAvailable:  4096 kB\nHugePages_Total:  0\n")
    assert available_bytes(meminfo, (tmp_path / "no control groups",)) == 4096 << 10
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 7\nactive_file 10\ninactive_file 20\n")
    assert available_bytes(meminfo, (tmp_path,)) == expected


def test_this_machine_has_some_memory_available() -> None:
    assert available_bytes() > 0


def make_group(path: Path, *, limit: str, current: int, stat: str) -> None:
    path.mkdir(parents=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(stat)


@pytest.mark.promise("S279")
def test_the_limits_of_container_and_pod_count_where_all_groups_of_the_node_are_visible(tmp_path: Path) -> None:
    """A privileged container has no namespace of control groups: the root is that of the node, without a limit."""
    root, own, meminfo = tmp_path / "cgroup", tmp_path / "own", tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:  4096 kB\n")
    pod, container = root / "kubepods/pod1", root / "kubepods/pod1/cache"
    stat = "anon 100\nactive_file 30\ninactive_file 20\n"
    make_group(pod, limit="1000", current=600, stat=stat)
    make_group(container, limit="max", current=400, stat=stat)
    own.write_text("0::/kubepods/pod1/cache\n")
    groups = own_groups(root, own)
    assert groups == (container, pod, root / "kubepods", root)
    assert available_bytes(meminfo, groups) == 1000 - 600 + 50
    memory = ControlGroupMemory.of_this_process(root, own)
    assert memory == ControlGroupMemory(400, 100, 30, 20, limit_bytes=1000)
    assert memory.other_bytes == 250
    (container / "memory.max").write_text("500\n")
    assert available_bytes(meminfo, groups) == 500 - 400 + 50
    own.write_text("0::/\n")
    assert own_groups(container, own) == (container,), "in a namespace the root is the container's own group"


@pytest.mark.parametrize("text", ["", "4:memory:/x\n", "0::/../other\n"])
def test_without_groups_of_version_2_nothing_is_reported(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own"
    own.write_text(text)
    assert ControlGroupMemory.of_this_process(tmp_path, own) is None
    assert ControlGroupMemory.of_this_process(tmp_path, tmp_path / "none") is None
