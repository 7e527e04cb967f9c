"""Who reads what, from a /proc that is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.cli.top_command import top_lines
from csi_driver.volumes.node_operations import NodeActivity, VolumeActivity
from csi_driver.wiring.node_readers import OpenFile, readers
from csi_driver.wiring.reader_rates import Sample, use_between
from tests.support.data_planes import REPORT

pytestmark = pytest.mark.promise("S590")

UID = "0f2b6f8e-1c7a-4f0e-9d55-5f6a7b8c9d0e"

MOUNTINFO = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
40 21 0:71 / /data ro - fuse.hayloft s3://bucket/data ro
41 21 0:99 / /other ro - fuse.sshfs host:/ ro
"""


def process(proc: Path, number: int, *, namespace: str = "mnt:[1]", pod: str = "") -> Path:
    directory = proc / str(number)
    for name in ("ns", "fd", "fdinfo"):
        (directory / name).mkdir(parents=True)
    (directory / "ns" / "mnt").symlink_to(namespace)
    (directory / "mountinfo").write_text(MOUNTINFO)
    (directory / "comm").write_text("python3\n")
    (directory / "io").write_text("rchar: 1000\nwchar: 1\n")
    (directory / "maps").write_text("7f00-7f01 r--p 00000000 08:01 12 /bin/x\n")
    (directory / "cgroup").write_text(f"0::/kubepods.slice/kubepods-pod{pod.replace('-', '_')}.slice/cri-1\n")
    return directory


def opened(directory: Path, descriptor: int, target: str, mount_id: int, inode: int, offset: int) -> None:
    (directory / "fd" / str(descriptor)).symlink_to(target)
    (directory / "fdinfo" / str(descriptor)).unlink(missing_ok=True)
    facts = f"pos:\t{offset}\nflags:\t0100000\nmnt_id:\t{mount_id}\nino:\t{inode}\n"
    (directory / "fdinfo" / str(descriptor)).write_text(facts)


def test_open_and_mapped_files_of_the_mounts_are_found_and_no_others(tmp_path: Path) -> None:
    reader = process(tmp_path, 10, pod=UID)
    opened(reader, 3, "/data/a.bin", 40, 5, 4096)
    opened(reader, 4, "/other/b", 41, 6, 1)
    opened(reader, 5, "/bin/x", 21, 7, 1)
    opened(reader, 6, "socket:[1]", 40, 8, 1)
    (reader / "maps").write_text("7f00-7f01 r--p 00000000 00:47 9 /data/m.bin\n7f01-7f02 rw-p 0 00:00 0\n")
    process(tmp_path, 11)
    (tmp_path / "12").mkdir()  # has just ended
    logs = tmp_path / "1" / "root" / "var" / "log" / "pods" / f"team-a_train-0_{UID}"
    logs.mkdir(parents=True)
    found = readers({"0:71"}, tmp_path)
    assert list(found) == [10]
    assert found[10].files == {3: OpenFile("0:71", 5, 4096)}
    assert found[10].mapped == {("0:71", 9)}
    assert (found[10].pod, found[10].command, found[10].read_bytes) == ("team-a/train-0", "python3", 1000)


def test_a_pod_whose_logs_are_not_visible_has_its_uid(tmp_path: Path) -> None:
    opened(process(tmp_path, 10, pod=UID), 3, "/data/a.bin", 40, 5, 0)
    assert readers({"0:71"}, tmp_path)[10].pod == UID


def test_what_a_process_reads_is_told_apart_by_how_its_files_are_open(tmp_path: Path) -> None:
    activity = NodeActivity(REPORT, (VolumeActivity("v", "0:71", (5,), (6,), False, 0, 0.0),))
    reader = process(tmp_path, 10)
    opened(reader, 3, "/data/a", 40, 5, 100)
    opened(reader, 4, "/data/b", 40, 6, 0)
    before = Sample(0.0, activity, readers({"0:71"}, tmp_path))
    for descriptor, inode, offset in ((3, 5, 500), (4, 6, 50)):
        (reader / "fd" / str(descriptor)).unlink()
        opened(reader, descriptor, "/data/x", 40, inode, offset)
    opened(reader, 7, "/data/new", 40, 5, 30)
    (reader / "io").write_text("rchar: 3000\n")
    after = Sample(2.0, activity, readers({"0:71"}, tmp_path))
    (use,) = use_between(before, after).uses
    assert (use.open_files, use.passed_through) == (3, 2)
    assert (use.passed_per_s, use.served_per_s, use.process_reads_per_s) == (215.0, 25.0, 1000.0)


def test_what_the_kernel_hides_is_said() -> None:
    activity = NodeActivity(REPORT, (VolumeActivity("v", "0:71", (), (), True, 0, 0.0),))
    lines = top_lines(use_between(Sample(0.0, activity, {}), Sample(1.0, activity, {})), 80)
    assert lines[-1] == "No process that can be seen from here has a file of them open."
    row = next(line.split() for line in lines if line.startswith("v "))
    assert row[1:3] == ["-", "-"]
