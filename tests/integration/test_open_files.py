"""Volumes with more open files than the daemon has descriptors."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from csi_driver.model.conditions import TOO_MANY_OPEN_FILES, Condition
from csi_driver.settings import MIB
from csi_driver.volumes.data_plane import MountRequest
from tests.support.daemons import DaemonBench, wait_until

pytestmark = pytest.mark.fuse

DESCRIPTORS = 600


class FewDescriptors(DaemonBench):
    """A daemon that may open 600 files, and inherits a soft limit of 300."""

    def start_process(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", START, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def mount_directory(self, directory: Path, volume_id: str) -> Path:
        mount_point = self.directory / f"mount-{volume_id}"
        mount_point.mkdir()
        self.mount_points.append(mount_point)
        with self.client() as client:
            client.mount(MountRequest(volume_id, str(mount_point), {"url": f"file://{directory}"}))
        return mount_point

    def conditions(self, volume_id: str) -> tuple[Condition, ...]:
        with self.client() as client:
            return client.volume(volume_id).conditions


START = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS // 2}, {DESCRIPTORS}))
os.execv(sys.executable, [sys.executable, "-m", "csi_driver.cli", *sys.argv[1:]])
"""


def dataset(directory: Path, count: int, size_bytes: int) -> Path:
    """Files that are holes."""
    directory.mkdir()
    for number in range(count):
        path = directory / f"{number:04}"
        path.touch()
        os.truncate(path, size_bytes)
    return directory


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[FewDescriptors]:
    bench = FewDescriptors(tmp_path, flags=("--free-floor=0", "--allow-file-urls"), keep=False)
    bench.start()
    yield bench
    bench.close()


@pytest.mark.promise("S162")
def test_a_volume_with_many_open_files_fails_alone(bench: FewDescriptors, tmp_path: Path) -> None:
    greedy = bench.mount_directory(dataset(tmp_path / "greedy", 650, 5 * MIB), "greedy")
    modest = dataset(tmp_path / "modest", 8, 5 * MIB)
    refused: list[int | None] = []
    with ExitStack() as stack:
        for path in sorted(greedy.iterdir()):
            try:
                stack.enter_context(path.open("rb", buffering=0))
            except OSError as error:
                refused.append(error.errno)
        assert set(refused) == {errno.ENFILE}
        assert bench.conditions("greedy") == (TOO_MANY_OPEN_FILES,)
        mount_point = bench.mount_directory(modest, "modest")
        for path in mount_point.iterdir():
            reader = stack.enter_context(path.open("rb"))
            assert len(reader.read()) == 5 * MIB
        assert bench.conditions("modest") == ()
    wait_until(lambda: not bench.conditions("greedy"))  # the kernel sends RELEASE after close(2) has returned
    assert (greedy / "0000").read_bytes() == bytes(5 * MIB)


@pytest.mark.promise("S162")
def test_files_that_stay_open_idle_do_not_use_up_the_descriptors(bench: FewDescriptors, tmp_path: Path) -> None:
    greedy = bench.mount_directory(dataset(tmp_path / "greedy", 1500, 1000), "greedy")
    for path in greedy.iterdir():
        assert path.read_bytes() == bytes(1000)
    assert len(os.listdir(f"/proc/{bench.processes[-1].pid}/fd")) < DESCRIPTORS // 2 + 100
    modest = bench.mount_directory(dataset(tmp_path / "modest", 8, 1000), "modest")
    for path in modest.iterdir():
        assert path.read_bytes() == bytes(1000)


@pytest.mark.promise("S221")
def test_names_resolve_again_after_a_library_of_python_could_not_be_opened() -> None:
    """In a process of its own: Python keeps for good that it failed to load a codec."""
    subprocess.run([sys.executable, "-c", WITHOUT_UNICODE_DATA], check=True, timeout=60)


@pytest.mark.promise("S221")
def test_every_process_raises_its_limit_of_open_files(bench: FewDescriptors, tmp_path: Path) -> None:
    commands = [
        ("keeper", f"--socket={tmp_path}/k.sock"),
        ("controller", f"--endpoint=unix://{tmp_path}/c.sock", f"--registry={tmp_path}/registry"),
        ("node", f"--endpoint=unix://{tmp_path}/n.sock", "--node-id=n", f"--daemon-socket={bench.run}/cache.sock"),
    ]
    for command in commands:
        bench.start_process(*command)
    for process in bench.processes:
        wait_until(lambda process=process: limits_of(process) == (DESCRIPTORS, DESCRIPTORS))
        assert process.poll() is None


WITHOUT_UNICODE_DATA = """
import contextlib, sys
from csi_driver.model.addresses import AddressRules
from csi_driver.objects.http.dialling import allowed_addresses

sys.modules["unicodedata"] = None  # an import fails as it does when the library cannot be opened
with contextlib.suppress(LookupError):
    allowed_addresses(AddressRules(), "localhost", 80)
del sys.modules["unicodedata"]
assert allowed_addresses(AddressRules(), "localhost", 80)
"""


def limits_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    return resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
