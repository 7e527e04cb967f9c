"""SIGKILL of the CSI processes, and of the cache daemon, during calls: a caller that retries, as kubelet and the
provisioner do, succeeds, and nothing is left at the end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest

from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient, publish_request
from tests.support.daemons import DaemonBench, stop, wait_until
from tests.support.hostile_s3 import HostileS3

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(120 + 40 * COUNT)]

SECRETS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "any"}
LONGEST_CALL_S = 0.15
"""A kill follows a call after a random part of this time: calls take 2 to 200 ms."""

Call = Callable[[], object]


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def store() -> Iterator[HostileS3]:
    draw = random.Random(5)
    with HostileS3({f"data/{number}.jpg": draw.randbytes(110_000) for number in range(4)}) as store:
        yield store


class Driver:
    """Processes that a test kills, and restarts before it retries."""

    def __init__(self, bench: DaemonBench) -> None:
        self.bench = bench
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = 0
        self._draw = random.Random(12)
        self._callers = ThreadPoolExecutor(1)

    def start(self, name: str) -> None:
        socket = self.bench.run / f"{name}.sock"
        if name == "cache":
            self.processes[name] = self.bench.start()
            return
        home = self.bench.directory
        more = {
            "csi": ("node", "--node-id=n", f"--daemon-socket={self.bench.run / 'cache.sock'}", f"--kubelet-dir={home}"),
            "controller": ("controller", f"--registry={home / 'registry'}"),
        }[name]
        socket.unlink(missing_ok=True)
        self.processes[name] = self.bench.start_process(*more, f"--endpoint=unix://{socket}", "--log-level=warning")
        wait_until(socket.is_socket)

    def interrupted(self, victim: str, call: Call) -> None:
        """Kills the victim while the call is in flight, restarts it, and retries the call until it succeeds."""
        in_flight = self._callers.submit(call)
        time.sleep(self._draw.uniform(0.0, LONGEST_CALL_S))
        stop(self.processes[victim], signal.SIGKILL)
        self.kills += 1
        try:
            in_flight.result(60)
        except grpc.RpcError as error:
            if error.code() not in RETRIED:
                raise
        self.start(victim)
        retry(call)

    def close(self) -> None:
        self._callers.shutdown(wait=False)
        for entry in sorted(MountTable.read().below(self.bench.directory), key=lambda entry: -len(entry.mount_point)):
            bind.unmount(Path(entry.mount_point), lazy=True)
        self.bench.close()


RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED)


def retry(call: Call) -> None:
    """Retries as kubelet does, until the call succeeds."""
    for _ in range(200):
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in RETRIED:
                raise
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the call does not succeed")


@pytest.fixture
def driver(home: Path) -> Iterator[Driver]:
    made = Driver(DaemonBench(home))
    yield made
    made.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(("victim", "view"), [("csi", "auto"), ("cache", "fuse")])
def test_every_call_in_the_life_of_a_volume_succeeds_after_kills(
    driver: Driver, store: HostileS3, home: Path, victim: str, view: str
) -> None:
    driver.start("cache")
    driver.start("csi")
    staging, target, inline_target = home / "staging", home / "pods" / "a" / "mount", home / "pods" / "b" / "mount"
    staging.mkdir()
    context = {"url": "s3://data/data", "endpoint": store.endpoint, "view": view}
    expected = {name: store.content(f"data/{name}") for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg")}
    rounds = 0
    while driver.kills < max(COUNT, 4):
        client = CsiClient(driver.bench.run / "csi.sock")
        static = csi_pb2.Volume(volume_id="static", volume_context=context)
        name = f"csi-{hashlib.sha256(str(rounds).encode()).hexdigest()}"
        inline = csi_pb2.Volume(volume_id=name, volume_context=context | {"csi.storage.k8s.io/ephemeral": "true"})
        publish_inline = publish_request(inline, None, inline_target, secrets=SECRETS)
        calls: list[Call] = [
            partial(client.stage, static, staging, secrets=SECRETS),
            partial(client.publish, static, staging, target, secrets=SECRETS),
            partial(client.node.NodePublishVolume, publish_inline, timeout=30),
            partial(client.unpublish, name, inline_target),
            partial(client.unpublish, "static", target),
            partial(client.unstage, "static", staging),
        ]
        for number, call in enumerate(calls):
            if (rounds + number) % 3 == 0:
                driver.interrupted(victim, call)
            else:
                retry(call)
            if number == 2:
                assert contents(target) == contents(inline_target) == expected
        client.close()
        assert MountTable.read().below(home) == ()
        assert not target.exists()
        assert not inline_target.exists()
        rounds += 1
    with driver.bench.client() as daemon:
        wait_until(lambda: daemon.report().mounts == 0)
    assert [str(path) for path in home.rglob("inline/*")] == []
    wait_until(lambda: list((home / "state" / "mounts").iterdir()) == [])


def test_volumes_are_created_and_deleted_despite_kills_of_the_controller(
    driver: Driver, store: HostileS3, home: Path
) -> None:
    registry = home / "registry"
    driver.start("controller")
    parameters = {"url": "s3://data/data", "endpoint": store.endpoint}
    for number in range(COUNT):
        client = CsiClient(driver.bench.run / "controller.sock")
        name = f"pvc-{number}"
        driver.interrupted("controller", partial(client.create, name, parameters=parameters, secrets=SECRETS))
        for path in (registry / "volumes").glob("*.json"):
            json.loads(path.read_text())
        volume = client.create(name, parameters=parameters, secrets=SECRETS)
        assert volume.capacity_bytes == 4 * 110_000
        again = client.create(name, parameters=parameters, secrets=SECRETS)
        assert again == volume
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id, secrets=SECRETS)
        driver.interrupted("controller", partial(client.controller.DeleteVolume, request, timeout=30))
        client.close()
    for draft in registry.rglob("**/.*"):
        os.utime(draft, (0, 0))
    stop(driver.processes["controller"], signal.SIGKILL)
    driver.start("controller")
    assert [path.name for path in registry.rglob("*") if path.is_file()] == [".lock"]
