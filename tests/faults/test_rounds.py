"""Volumes are made and removed a thousand times and leave no mount, descriptor, thread, memory or file.

``HAYLOFT_FAULT_COUNT`` times 5 rounds follow the first 20: 15 in the suite, ``make faults COUNT=196`` makes 1,000.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import AllInOne, until
from tests.support.csi_calls import CsiClient, publish_request
from tests.support.hostile_s3 import HostileS3

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))
FIRST_ROUNDS = 20
"""Rounds until the pools of threads and connections are full, allocators have their arenas and every module is
imported."""
ROUNDS = 5 * COUNT

GROWTH_KIB = 24 << 10
"""The allowed growth of a process after the first rounds, for any number of rounds. The daemon had 175 MiB after 25
rounds, 190 after 100 and 199 after 1,000; the others do not grow. A leak of 32 KiB per round would be 31 MiB."""

SPARE_THREADS = 3
"""The gRPC server's pool of 64 threads starts one when a call finds none idle: rarely, if calls are sequential, and
never once per round. One leaked thread in five rounds is found."""

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(120 + 10 * COUNT)]

MIB = 1 << 20


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def driver(home: Path) -> Iterator[AllInOne]:
    made = AllInOne(home)
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[HostileS3]:
    draw = random.Random(2)
    objects = {f"data/{number}.jpg": draw.randbytes(110_000) for number in range(6)}
    with HostileS3(objects | {"data/deep/large.bin": draw.randbytes(9 * MIB)}) as store:
        yield store


@dataclass(frozen=True)
class Traces:
    """The resources of a process."""

    descriptors: int
    threads: int
    resident_kib: int

    @classmethod
    def of(cls, process_id: int) -> Traces:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
        descriptors = len(os.listdir(f"/proc/{process_id}/fd"))
        return cls(descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]))


class Rounds:
    """The calls of kubelet and the provisioner for volumes of all three kinds, with and without a warm cache."""

    def __init__(self, client: CsiClient, store: HostileS3, home: Path) -> None:
        self.client, self.store, self.home = client, store, home
        self.staging, self.targets = home / "staging", [home / "pods" / name / "mount" for name in "ab"]
        self.staging.mkdir()
        self.secrets = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "any"}

    def context(self, number: int) -> dict[str, str]:
        """When the dataset is completely cached, ``auto`` is a view of hard links; every fourth volume uses FUSE."""
        view = "fuse" if number % 4 == 3 else "auto"
        return {"url": "s3://data/data", "endpoint": self.store.endpoint, "view": view}

    def run(self, number: int) -> None:
        kind = (self._dynamic, self._static, self._inline)[number % 3]
        kind(number)

    def _read(self, target: Path) -> None:
        for path in sorted(target.rglob("*")):
            if path.is_file():
                assert path.read_bytes() == self.store.content(f"data/{path.relative_to(target)}")

    def _staged(self, volume: csi_pb2.Volume) -> None:
        self.client.stage(volume, self.staging, secrets=self.secrets)
        for target in self.targets:
            self.client.publish(volume, self.staging, target, secrets=self.secrets)
            self._read(target)
        for target in self.targets:
            self.client.unpublish(volume.volume_id, target)
        self.client.unstage(volume.volume_id, self.staging)

    def _dynamic(self, number: int) -> None:
        volume = self.client.create(f"pvc-{number}", parameters=self.context(number), secrets=self.secrets)
        self._staged(volume)
        self.client.controller.DeleteVolume(
            csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id, secrets=self.secrets), timeout=30
        )

    def _static(self, number: int) -> None:
        self._staged(csi_pb2.Volume(volume_id=f"static-{number % 5}", volume_context=self.context(number)))

    def _inline(self, number: int) -> None:
        context = self.context(number) | {"csi.storage.k8s.io/ephemeral": "true"}
        name = f"csi-{hashlib.sha256(str(number).encode()).hexdigest()}"  # as kubelet makes them
        volume = csi_pb2.Volume(volume_id=name, volume_context=context)
        target = self.targets[0]
        self.client.node.NodePublishVolume(publish_request(volume, None, target, secrets=self.secrets), timeout=30)
        self._read(target)
        self.client.unpublish(name, target)


def files_of(home: Path) -> list[str]:
    """The paths of all files and directories of the driver."""
    found = []
    for directory, directories, names in os.walk(home):
        found += [os.path.relpath(os.path.join(directory, name), home) for name in (*directories, *names)]
    return sorted(found)


@pytest.mark.promise("S95")
def test_volumes_that_are_made_and_removed_leave_no_resource(driver: AllInOne, store: HostileS3, home: Path) -> None:
    client = driver.start("--log-level=warning")
    assert driver.process is not None
    processes = {"all-in-one": driver.process.pid, **driver.children()}
    rounds = Rounds(client, store, home)

    def traces() -> dict[str, Traces]:
        return {name: Traces.of(process_id) for name, process_id in processes.items()}

    def threads_ended(name: str, most: int) -> bool:
        return traces()[name].threads <= most

    def descriptors_closed(name: str, most: int) -> bool:
        return traces()[name].descriptors <= most

    for number in range(FIRST_ROUNDS):
        rounds.run(number)
    until(lambda: MountTable.read().below(home) == (), "everything is unmounted")
    before, files = traces(), files_of(home)
    for number in range(FIRST_ROUNDS, FIRST_ROUNDS + ROUNDS):
        rounds.run(number)

    assert MountTable.read().below(home) == ()
    until(lambda: files_of(home) == files, f"no file is left: {set(files_of(home)) - set(files)}")
    assert driver.children() == {name: number for name, number in processes.items() if name != "all-in-one"}
    for name, earlier in before.items():
        until(partial(threads_ended, name, earlier.threads + SPARE_THREADS), f"{name}: threads end")
        until(partial(descriptors_closed, name, earlier.descriptors), f"{name}: descriptors are closed")
        now = Traces.of(processes[name])
        assert now.resident_kib <= earlier.resident_kib + GROWTH_KIB, f"{name}: {earlier} -> {now}"
    log = driver.log.read_text()
    assert "Traceback" not in log
