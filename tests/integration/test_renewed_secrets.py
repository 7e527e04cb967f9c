"""Secrets that are rotated while their volumes are mounted: the calls of kubelet, a daemon, and a store that knows
which keys are valid."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.mounts.materialised_views import is_view_of
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import WarmupState
from tests.support.csi_calls import CsiClient, publish_request, refused, serving
from tests.support.daemons import DaemonBench, digest_of_objects, digest_of_tree, stop, wait_until
from tests.support.guarded_s3 import GuardedS3
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.fuse

KEYS = {"BEFORE": "first-secret", "AFTER": "second-secret"}
SMALL = {f"small/{number:02}": random_bytes(number, 9_000) for number in range(12)}
LARGE = random_bytes(99, 40 << 20)
OBJECTS = SMALL | {"large": LARGE}
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team"}


def secret(key_id: str) -> dict[str, str]:
    return {"access_key_id": key_id, "secret_access_key": KEYS[key_id]}


class Node:
    """A node plugin and a daemon, and volumes of one bucket as kubelet publishes them."""

    def __init__(self, home: Path, server: GuardedS3, bench: DaemonBench, driver: CsiClient) -> None:
        self.home, self.server, self.bench, self.driver = home, server, bench, driver

    def context(self, **attributes: str) -> dict[str, str]:
        given = {"url": "s3://data/", "endpoint": self.server.endpoint, "deadline": "2s", "requestTimeout": "2s"}
        return given | attributes

    def publish(self, volume_id: str, key_id: str | None, pod: str = "pod-1", **attributes: str) -> Path:
        """An inline volume."""
        target = self.home / "pods" / pod / volume_id
        self.bench.mount_points.append(target)
        request = publish_request(
            csi_pb2.Volume(volume_id=volume_id),
            None,
            target,
            volume_context=self.context(**attributes) | EPHEMERAL,
            secrets={} if key_id is None else secret(key_id),
        )
        self.driver.node.NodePublishVolume(request, timeout=60)
        return target

    def stage(self, volume_id: str, key_id: str | None) -> Path:
        staging = self.home / "staging" / volume_id
        staging.mkdir(parents=True, exist_ok=True)
        self.bench.mount_points.append(staging)
        secrets = {} if key_id is None else secret(key_id)
        self.driver.stage(self.volume(volume_id), staging, secrets=secrets)
        return staging

    def publish_claim(self, volume_id: str, staging: Path, key_id: str | None, pod: str = "pod-1") -> Path:
        target = self.home / "pods" / pod / volume_id
        self.bench.mount_points.append(target)
        secrets = {} if key_id is None else secret(key_id)
        self.driver.publish(self.volume(volume_id), staging, target, secrets=secrets)
        return target

    def volume(self, volume_id: str) -> csi_pb2.Volume:
        return csi_pb2.Volume(volume_id=volume_id, volume_context=self.context())

    def rotate(self) -> None:
        """The store knows the first key no more."""
        del self.server.secrets["BEFORE"]

    def fetched(self, since: int) -> list[str]:
        """Ranges of the objects that were requested with the second key, except for proofs of access."""
        asked = self.server.asked_by("AFTER")[since:]
        return [request.key for request in asked if request.headers.get("range") != "bytes=0-0"]


@pytest.fixture
def server() -> Iterator[GuardedS3]:
    with GuardedS3(OBJECTS, KEYS) as server:
        yield server


@pytest.fixture(scope="module")
def processes() -> Iterator[tuple[Path, DaemonBench, CsiClient]]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-secrets-"))
    bench = DaemonBench(home, flags=("--trusted-namespace=*",))
    bench.start()
    client = DaemonClient(bench.run / "cache.sock")
    try:
        with serving(home / "csi.sock", client, kubelet_directory=home) as driver:
            yield home, bench, driver
    finally:
        client.close()
        bench.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def node(server: GuardedS3, processes: tuple[Path, DaemonBench, CsiClient]) -> Iterator[Node]:
    home, bench, driver = processes
    yield Node(home, server, bench, driver)
    stagings = {path for path in bench.mount_points if path.parent.name == "staging"}
    for target in {*bench.mount_points} - stagings:
        driver.unpublish(target.name, target)
    for staging in stagings:
        driver.unstage(staging.name, staging)
    bench.mount_points.clear()


def is_rejected(path: Path) -> bool:
    with pytest.raises(OSError, match=r".") as caught:
        path.read_bytes()
    return caught.value.errno == errno.EKEYREJECTED


def is_cached(path: Path) -> bool:
    present, _, size = os.getxattr(path, "user.hayloft.cached").partition(b"/")
    return present == size


def content(root: Path, objects: Mapping[str, bytes]) -> bool:
    return all((root / path).read_bytes() == data for path, data in objects.items())


@pytest.mark.promise("S263")
def test_a_renewed_secret_reaches_an_inline_volume_that_is_mounted(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    first, second, *rest = sorted(SMALL)
    assert content(target, {first: SMALL[first]})
    node.rotate()
    assert is_rejected(target / second)
    node.publish("inline-1", "BEFORE")
    assert is_rejected(target / second)
    node.publish("inline-1", "AFTER")
    assert content(target, {path: SMALL[path] for path in (second, *rest)})
    assert not node.driver.stats("inline-1", target).volume_condition.abnormal


@pytest.mark.promise("S263")
@pytest.mark.parametrize("call", ["stage", "publish"])
def test_a_renewed_secret_of_either_call_reaches_a_claim_that_is_mounted(node: Node, call: str) -> None:
    staging = node.stage("claim-1", "BEFORE")
    target = node.publish_claim("claim-1", staging, None)
    first, second, *_ = sorted(SMALL)
    assert content(target, {first: SMALL[first]})
    node.rotate()
    assert is_rejected(target / second)
    if call == "stage":
        node.stage("claim-1", "AFTER")
    else:
        node.publish_claim("claim-1", staging, "AFTER")
    node.publish_claim("claim-1", staging, None)  # without a Secret of its own: it changes nothing
    node.stage("claim-1", None)
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S263")
def test_an_open_file_is_read_on_with_the_renewed_secret(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    with (target / "large").open("rb", buffering=0) as file:
        descriptor = file.fileno()
        assert os.pread(descriptor, 4096, 0) == LARGE[:4096]
        node.rotate()
        with pytest.raises(OSError, match=r".") as caught:
            os.pread(descriptor, 4096, 30 << 20)
        assert caught.value.errno == errno.EKEYREJECTED
        node.publish("inline-1", "AFTER")
        assert os.pread(descriptor, 4096, 30 << 20) == LARGE[30 << 20 : (30 << 20) + 4096]
        assert b"".join(iter(lambda: file.read(1 << 20), b"")) == LARGE


@pytest.mark.promise("S264")
def test_a_rotated_key_keeps_what_is_cached(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    wait_until(lambda: all(is_cached(target / path) for path in OBJECTS))
    node.rotate()
    node.publish("inline-1", "AFTER")
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    asked = node.server.asked_by("AFTER")
    assert sorted(request.key for request in asked) == sorted(OBJECTS)
    assert node.fetched(0) == []
    # And so does a volume that is mounted anew.
    node.driver.unpublish("inline-1", target)
    target = node.publish("inline-2", "AFTER")
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    assert len(node.server.asked_by("AFTER")) == len(OBJECTS)


@pytest.mark.promise("S263")
def test_a_daemon_that_is_killed_leaves_the_renewed_secret_to_the_next_one(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    node.rotate()
    node.publish("inline-1", "AFTER")
    stop(node.bench.processes[-1], signal.SIGKILL)
    node.bench.start()
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S263")
def test_a_view_stays_one_and_the_next_pod_gets_one_with_the_renewed_secret(node: Node) -> None:
    attributes = {"view": "materialised", "include": "small/*"}
    target = node.publish("inline-1", "BEFORE", **attributes)
    assert is_view_of(MountTable.read().at(target), "inline-1")
    node.rotate()
    node.publish("inline-1", "AFTER", **attributes)
    assert is_view_of(MountTable.read().at(target), "inline-1")
    assert content(target, SMALL)
    other = node.publish("inline-1", "AFTER", pod="pod-2", **attributes)
    assert is_view_of(MountTable.read().at(other), "inline-1")
    assert content(other, SMALL)
    assert node.fetched(0) == []


@pytest.mark.promise("S263")
def test_the_earlier_key_gains_nothing_from_files_that_it_has_opened(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    with (target / "large").open("rb", buffering=0) as file:
        node.rotate()
        node.publish("inline-1", "AFTER")
        assert os.pread(file.fileno(), 4096, 30 << 20) == LARGE[30 << 20 : (30 << 20) + 4096]
        other = node.publish("inline-2", "BEFORE")
        assert is_rejected(other / "large")


@pytest.mark.promise("S263")
def test_a_warmup_that_failed_begins_again_with_the_renewed_secret_and_with_no_other_call(node: Node) -> None:
    node.server.readers.remove("BEFORE")
    attributes = {"warmup": "background"}
    node.publish("inline-1", "BEFORE", **attributes)
    with node.bench.client() as daemon:
        wait_until(lambda: daemon.warmup("inline-1").state is WarmupState.FAILED)
        asked = len(node.server.seen("GET"))
        node.publish("inline-1", "BEFORE", **attributes)
        assert daemon.warmup("inline-1").state is WarmupState.FAILED
        assert len(node.server.seen("GET")) == asked
        node.publish("inline-1", "AFTER", **attributes)
        wait_until(lambda: daemon.warmup("inline-1").state is WarmupState.COMPLETE)


@pytest.mark.promise("S263")
def test_a_secret_that_cannot_be_one_is_refused_and_the_volume_reads_on(node: Node) -> None:
    target = node.publish("inline-1", "BEFORE")
    request = publish_request(
        csi_pb2.Volume(volume_id="inline-1"),
        None,
        target,
        volume_context=node.context() | EPHEMERAL,
        secrets={"access_key_id": "AFTER"},
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        node.driver.node.NodePublishVolume(request, timeout=60)
    assert "secret_access_key" in found[0].message
    assert content(target, SMALL)
