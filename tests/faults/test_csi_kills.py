"""SIGKILL of the CSI processes, and of the cache daemon, during calls: a caller that retries, as kubelet and the
provisioner do, succeeds, and nothing is left at the end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from csi_driver.fuse import mounting
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient, publish_request, refused
from tests.support.daemons import DaemonBench, stop, wait_until
from tests.support.hostile_s3 import HostileS3
from tests.support.node_processes import Call, NodeProcesses, retry

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(120 + 40 * COUNT)]

SECRETS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "any"}


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


@pytest.fixture
def driver(home: Path) -> Iterator[NodeProcesses]:
    made = NodeProcesses(DaemonBench(home))
    yield made
    made.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.promise("S94", "S354")
@pytest.mark.parametrize(("victim", "view"), [("csi", "auto"), ("cache", "fuse")])
def test_every_call_in_the_life_of_a_volume_succeeds_after_kills(
    driver: NodeProcesses, store: HostileS3, home: Path, victim: str, view: str
) -> None:
    driver.start("cache")
    driver.start("csi")
    staging, target, inline_target = home / "staging", home / "pods" / "a" / "mount", home / "pods" / "b" / "mount"
    staging.mkdir()
    context = {"url": "s3://data/data", "endpoint": store.endpoint, "view": view, "cacheReservation": "1MiB"}
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
            partial(client.expand, "static", target, capacity_range=csi_pb2.CapacityRange(required_bytes=2 << 20)),
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
            if number == 3:
                with driver.bench.client() as daemon:
                    assert daemon.volume("static").reserved_bytes == 2 << 20
        client.close()
        assert MountTable.read().below(home) == ()
        assert not target.exists()
        assert not inline_target.exists()
        rounds += 1
    with driver.bench.client() as daemon:
        wait_until(lambda: daemon.report().mounts == 0)
    assert [str(path) for path in home.rglob("inline/*")] == []
    wait_until(lambda: list((home / "state" / "mounts").iterdir()) == [])


@pytest.mark.promise("S248", "S249")
def test_pods_are_published_again_after_daemon_and_keeper_died(
    driver: NodeProcesses, store: HostileS3, home: Path
) -> None:
    driver.start("cache")
    driver.start("csi")
    staging, first, second = home / "staging", home / "pods" / "a" / "mount", home / "pods" / "b" / "mount"
    staging.mkdir()
    context = {"url": "s3://data/data", "endpoint": store.endpoint, "view": "fuse"}
    volume = csi_pb2.Volume(volume_id="static", volume_context=context)
    client = CsiClient(driver.bench.run / "csi.sock")
    client.stage(volume, staging, secrets=SECRETS)
    client.publish(volume, staging, first)
    stop(driver.bench.keeper, signal.SIGKILL)
    stop(driver.processes["cache"], signal.SIGKILL)
    driver.bench.start_keeper()
    for _ in range(2):  # the next daemon too knows what the first one lost
        driver.start("cache")
        retry(partial(client.stats, "static", first))
        assert client.stats("static", first).volume_condition.abnormal
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as found:
            client.publish(volume, staging, second)
        assert "nodePublishSecretRef" in found[0].message
        stop(driver.processes["cache"])
    driver.start("cache")
    for target in (second, first):
        retry(partial(client.publish, volume, staging, target, secrets=SECRETS))
        assert len(contents(target)) == 4
    for target in (second, first):
        client.unpublish("static", target)
    client.unstage("static", staging)
    client.close()
    assert MountTable.read().below(home) == ()
    wait_until(lambda: list((home / "state" / "mounts").iterdir()) == [])


@pytest.mark.promise("S248", "S249")
def test_pods_are_published_again_after_the_mount_was_aborted(
    driver: NodeProcesses, store: HostileS3, home: Path
) -> None:
    driver.start("cache")
    driver.start("csi")
    staging, first, second = home / "staging", home / "pods" / "a" / "mount", home / "pods" / "b" / "mount"
    staging.mkdir()
    context = {"url": "s3://data/data", "endpoint": store.endpoint, "view": "fuse"}
    volume = csi_pb2.Volume(volume_id="static", volume_context=context)
    client = CsiClient(driver.bench.run / "csi.sock")
    client.stage(volume, staging, secrets=SECRETS)
    client.publish(volume, staging, first)
    entry = mounting.find(staging)
    assert entry is not None
    mounting.abort(entry)
    wait_until(lambda: client.stats("static", first).volume_condition.abnormal)
    for target in (second, first):
        client.publish(volume, staging, target)  # without a Secret, as kubelet does for a volume that is staged
        assert len(contents(target)) == 4
        assert not client.stats("static", target).volume_condition.abnormal
    for target in (second, first):
        client.unpublish("static", target)
    client.unstage("static", staging)
    client.close()
    assert MountTable.read().below(home) == ()
    wait_until(lambda: list((home / "state" / "mounts").iterdir()) == [])


@pytest.mark.promise("S94")
def test_volumes_are_created_and_deleted_despite_kills_of_the_controller(
    driver: NodeProcesses, store: HostileS3, home: Path
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


@pytest.mark.promise("S333")
def test_snapshots_groups_clones_and_changes_end_as_if_the_controller_was_not_killed(
    driver: NodeProcesses, store: HostileS3, home: Path
) -> None:
    """Each new call once in a round, killed at a random moment and repeated; then everything is deleted."""
    registry = home / "registry"
    driver.start("controller")
    parameters = {"url": "s3://data/data", "endpoint": store.endpoint, "cacheReservation": "1000"}
    for number in range(COUNT):
        client = CsiClient(driver.bench.run / "controller.sock")
        controller, groups = client.controller, client.groups
        ids = [client.create(f"{name}-{number}", parameters=parameters, secrets=SECRETS).volume_id for name in "ab"]
        one = csi_pb2.CreateSnapshotRequest(name=f"s-{number}", source_volume_id=ids[0], secrets=SECRETS)
        several = csi_pb2.CreateVolumeGroupSnapshotRequest(name=f"g-{number}", source_volume_ids=ids, secrets=SECRETS)
        change = csi_pb2.ControllerModifyVolumeRequest(
            volume_id=ids[0], mutable_parameters={"warmup": "wait", "refresh": str(number)}, secrets=SECRETS
        )
        expansion = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=ids[0], capacity_range=csi_pb2.CapacityRange(required_bytes=1 << 30)
        )
        driver.interrupted("controller", partial(controller.CreateSnapshot, one, timeout=30))
        made = controller.CreateSnapshot(one, timeout=30).snapshot
        driver.interrupted("controller", partial(groups.CreateVolumeGroupSnapshot, several, timeout=30))
        group = groups.CreateVolumeGroupSnapshot(several, timeout=30).group_snapshot
        assert len(group.snapshots) == 2
        driver.interrupted("controller", partial(controller.ControllerModifyVolume, change, timeout=30))
        driver.interrupted("controller", partial(controller.ControllerExpandVolume, expansion, timeout=30))
        assert controller.ControllerExpandVolume(expansion, timeout=30).capacity_bytes == 1 << 30
        source = csi_pb2.VolumeContentSource
        for name, of in (
            ("restored", source(snapshot=source.SnapshotSource(snapshot_id=made.snapshot_id))),
            ("clone", source(volume=source.VolumeSource(volume_id=ids[1]))),
        ):
            make = partial(client.create, f"{name}-{number}", volume_content_source=of, parameters=parameters)
            driver.interrupted("controller", partial(make, secrets=SECRETS))
            copy = client.create(f"{name}-{number}", volume_content_source=of, parameters=parameters, secrets=SECRETS)
            assert copy.content_source == of
            ids.append(copy.volume_id)
        listed = [entry.volume.volume_id for entry in controller.ListVolumes(csi_pb2.ListVolumesRequest()).entries]
        assert sorted(listed) == sorted(ids)
        assert len(controller.ListSnapshots(csi_pb2.ListSnapshotsRequest()).entries) == 3
        members = [member.snapshot_id for member in group.snapshots]
        deletion = csi_pb2.DeleteVolumeGroupSnapshotRequest(
            group_snapshot_id=group.group_snapshot_id, snapshot_ids=members
        )
        driver.interrupted("controller", partial(groups.DeleteVolumeGroupSnapshot, deletion, timeout=30))
        gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=made.snapshot_id)
        driver.interrupted("controller", partial(controller.DeleteSnapshot, gone, timeout=30))
        for volume_id in ids:
            request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
            driver.interrupted("controller", partial(controller.DeleteVolume, request, timeout=30))
        client.close()
    for draft in registry.rglob("**/.*"):
        os.utime(draft, (0, 0))
    stop(driver.processes["controller"], signal.SIGKILL)
    driver.start("controller")
    assert [path.name for path in registry.rglob("*") if path.is_file()] == [".lock"]
