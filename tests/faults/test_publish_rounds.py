"""Volumes are published and unpublished a thousand times, while processes are killed and replaced, and leave nothing.

``HAYLOFT_FAULT_COUNT`` times 5 rounds: 15 in the suite, ``make faults COUNT=200`` makes 1,000. The node plugin is
replaced every 50 rounds (every 5 in a short run); between them processes are killed, in calls and outside of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from csi_driver.mounts.mount_namespaces import entries_everywhere
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient, publish_request
from tests.support.daemons import DaemonBench, stop, wait_until
from tests.support.hostile_s3 import HostileS3
from tests.support.mount_namespace import copied_mounts
from tests.support.node_processes import NodeProcesses, retry

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))
ROUNDS = 5 * COUNT
REPLACE_EVERY = max(5, min(50, ROUNDS // 3))

SPARE_THREADS = 3
"""The gRPC server's pool of 64 threads starts one when a call finds none idle, never once per round."""

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(240 + 30 * COUNT)]

SECRETS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "any"}
OBJECTS = {f"data/{name}": name.encode() * 9_000 for name in ("0.jpg", "1.jpg", "deep/2.jpg", "deep/er/3.jpg")}


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3(OBJECTS) as store:
        yield store


@pytest.fixture
def processes(home: Path) -> Iterator[NodeProcesses]:
    made = NodeProcesses(DaemonBench(home))
    made.start("cache")
    made.start("csi")
    yield made
    made.close()


class Rounds:
    """The calls of kubelet for one volume, from its first to its last one."""

    def __init__(self, processes: NodeProcesses, store: HostileS3, home: Path) -> None:
        self.processes, self.store, self.home = processes, store, home
        self.draw = random.Random(7)
        self.kills = True
        self.staging, self.targets = home / "staging", [home / "pods" / name / "mount" for name in "ab"]
        self.part = home / "pods" / "volume-subpaths"
        self.staging.mkdir()
        self.part.mkdir(parents=True)
        self.client = CsiClient(processes.bench.run / "csi.sock")

    def run(self, number: int) -> None:
        kinds = (self._claim, self._inline, self._sub_path, self._copied, self._forgotten)
        if self.kills and number % 25 == 3:
            self._dead(number)
        else:
            kinds[number % len(kinds)](number)

    def _context(self, number: int) -> dict[str, str]:
        """``auto`` is a view of hard links once the dataset is cached."""
        view = "auto" if number // 5 % 2 else "fuse"
        return {"url": "s3://data/data", "endpoint": self.store.endpoint, "view": view}

    def _static(self, number: int) -> csi_pb2.Volume:
        return csi_pb2.Volume(volume_id=f"static-{number % 7}", volume_context=self._context(number))

    def _call(self, call: Callable[[], object]) -> None:
        """One in thirty calls has its process killed."""
        if self.kills and self.draw.random() < 0.033:
            self.processes.interrupted(self.draw.choice(("csi", "cache")), call)
        else:
            retry(call)

    def _stage(self, volume: csi_pb2.Volume, *targets: Path) -> None:
        self._call(partial(self.client.stage, volume, self.staging, secrets=SECRETS))
        for target in targets:
            self._call(partial(self.client.publish, volume, self.staging, target, secrets=SECRETS))
            self._read(target)

    def _unstage(self, volume: csi_pb2.Volume, *targets: Path) -> None:
        for target in targets:
            self._call(partial(self.client.unpublish, volume.volume_id, target))
            assert not target.exists()
        self._call(partial(self.client.unstage, volume.volume_id, self.staging))

    def _read(self, target: Path, below: str = "") -> None:
        found = {f"data/{below}{path.relative_to(target)}" for path in target.rglob("*.jpg")}
        assert found == {name for name in OBJECTS if name.startswith(f"data/{below}")}
        for path in target.rglob("*.jpg"):
            assert path.read_bytes() == OBJECTS[f"data/{below}{path.relative_to(target)}"]

    def _claim(self, number: int) -> None:
        volume = self._static(number)
        self._stage(volume, *self.targets)
        self._unstage(volume, *self.targets)

    def _publish_inline(self, number: int, target: Path) -> str:
        name = f"csi-{hashlib.sha256(str(number).encode()).hexdigest()}"  # as kubelet makes them
        context = self._context(number) | {"csi.storage.k8s.io/ephemeral": "true"}
        volume = csi_pb2.Volume(volume_id=name, volume_context=context)
        request = publish_request(volume, None, target, secrets=SECRETS)
        self._call(partial(self.client.node.NodePublishVolume, request, timeout=60))
        self._read(target)
        return name

    def _inline(self, number: int) -> None:
        name = self._publish_inline(number, self.targets[0])
        self._call(partial(self.client.unpublish, name, self.targets[0]))

    def _sub_path(self, number: int) -> None:
        """A directory of the volume is mounted for a container, and outlives the target path."""
        volume = self._static(number)
        self._stage(volume, self.targets[0])
        subprocess.run(["mount", "--bind", self.targets[0] / "deep", self.part], check=True)
        self._unstage(volume, self.targets[0])
        self._read(self.part, "deep/")
        subprocess.run(["umount", self.part], check=True)

    def _copied(self, number: int) -> None:
        """The mount of a container, in a namespace of its own, outlives the target path."""
        volume = self._static(number)
        self._stage(volume, self.targets[0])
        subprocess.run(["mount", "--bind", self.targets[0], self.part], check=True)
        with copied_mounts(self.home) as root:
            subprocess.run(["umount", self.part], check=True)
            self._unstage(volume, self.targets[0])
            self._read(root / self.part.relative_to("/"))

    def _dead(self, number: int) -> None:
        """Daemon and keeper die, and kubelet publishes again what it believes to be staged."""
        volume = self._static(number)
        self._stage(volume, self.targets[0])
        stop(self.processes.bench.keeper, signal.SIGKILL)
        stop(self.processes.processes["cache"], signal.SIGKILL)
        self.processes.bench.start_keeper()
        self.processes.start("cache")
        for target in reversed(self.targets):
            retry(partial(self.client.publish, volume, self.staging, target, secrets=SECRETS))
            self._read(target)
        self._unstage(volume, *self.targets)

    def _forgotten(self, number: int) -> None:
        """Kubelet has lost the volume, and its target path is gone: the next start of the node plugin finds that."""
        target = self.home / "pods" / "gone" / "mount"
        self._publish_inline(number, target)
        subprocess.run(["umount", target], check=True)
        shutil.rmtree(target.parent)


def resources(process_id: int) -> tuple[int, int]:
    """Descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{process_id}/fd")), len(os.listdir(f"/proc/{process_id}/task"))


def nothing_is_left(processes: NodeProcesses, client: CsiClient, home: Path) -> None:
    with processes.bench.client() as daemon:
        wait_until(lambda: daemon.mounts() == ())
    retry(partial(client.unpublish, "none", home / "pods" / "none"))  # removes views that are mounted nowhere
    for left in ("state/mounts/*", "cache/views/*", "**/inline/*", "pods/*/mount", "staging/*"):
        wait_until(lambda left=left: list(home.glob(left)) == [])
    assert [entry.mount_point for entry in entries_everywhere(os.fsencode(home))] == []
    names = [path.name for path in processes.bench.run.iterdir()]
    assert sorted(name for name in names if not name.startswith(".")) == ["cache.sock", "csi.sock", "keeper.sock"]
    assert len(names) == 6, "each process has one private name of its socket"


@pytest.mark.promise("S245", "S246", "S247", "S248", "S250")
def test_rounds_of_publications_with_kills_leave_nothing(
    processes: NodeProcesses, store: HostileS3, home: Path
) -> None:
    rounds = Rounds(processes, store, home)
    for number in range(ROUNDS):
        rounds.run(number)
        if number % REPLACE_EVERY == REPLACE_EVERY - 1:
            processes.replace_plugin()
    processes.replace_plugin()
    nothing_is_left(processes, rounds.client, home)

    rounds.kills = False
    ids = [processes.processes["csi"].pid, processes.processes["cache"].pid, processes.bench.keeper.pid]
    for _ in range(2):
        before = [resources(process_id) for process_id in ids]
        for number in (0, 1, 5, 6, 7, *range(0, ROUNDS // 4, 5)):
            rounds.run(number)
        nothing_is_left(processes, rounds.client, home)
    for process_id, (descriptors, threads) in zip(ids, before, strict=True):
        wait_until(lambda: resources(process_id)[0] <= descriptors)  # noqa: B023
        wait_until(lambda: resources(process_id)[1] <= threads + SPARE_THREADS)  # noqa: B023
    rounds.client.close()
