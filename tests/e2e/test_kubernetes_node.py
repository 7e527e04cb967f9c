"""The Kubernetes files on a node: containers with their volumes, mount propagation and rights, and the life of a
volume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from tests.architecture.kubernetes_files import DEPLOY, Container, containers, documents
from tests.support.all_in_one import until
from tests.support.csi_calls import CsiClient, Mode, mount_capability
from tests.support.hostile_s3 import HostileS3
from tests.support.kubernetes_node import KubernetesNode
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.fuse

FILES = documents(DEPLOY / "kubernetes")
OURS = {f"{one.document.name}/{one.name}": one for one in containers(FILES) if one.is_ours and "args" in one.body}
CONTROLLER, NODE = OURS["hayloft-controller/hayloft"], OURS["hayloft-node/hayloft"]
CACHE, KEEPER = OURS["hayloft-node/cache"], OURS["hayloft-keeper/keeper"]
CONFIG: dict[str, str] = {
    **next(one.body["data"] for one in FILES if one.kind == "ConfigMap"),
    "HAYLOFT_ALLOWED_ADDRESS": "127.0.0.1",  # the store of the test, for the inline volume
}

KUBELET = "/var/lib/kubelet"
STAGING = f"{KUBELET}/plugins/kubernetes.io/csi/csi.hayloft.dev/0123/globalmount"
TARGET = f"{KUBELET}/pods/uid-1/volumes/kubernetes.io~csi/data/mount"
INLINE_TARGET = f"{KUBELET}/pods/uid-2/volumes/kubernetes.io~csi/data/mount"
SECOND_TARGET = f"{KUBELET}/pods/uid-3/volumes/kubernetes.io~csi/data/mount"
READ_ONLY_MANY = [mount_capability(Mode.MULTI_NODE_READER_ONLY)]


DATASET = {f"a/{number}.jpg": random_bytes(number, 110_000) for number in range(5)}
DATASET["large.bin"] = random_bytes(9, 6_000_000)
SECRETS = {"access_key_id": "key", "secret_access_key": "secret"}


@pytest.fixture
def parameters() -> Iterator[dict[str, str]]:
    """The parameters of a volume that shows DATASET."""
    with HostileS3({f"train/{name}": content for name, content in DATASET.items()}) as server:
        location = {"endpoint": server.endpoint, "region": "us-east-1", "addressingStyle": "path"}
        yield {"url": f"s3://{server.bucket}/train", **location}


@pytest.fixture
def node() -> Iterator[KubernetesNode]:
    """A node with all four processes running and ready."""
    made = KubernetesNode()
    try:
        for container in (KEEPER, CACHE, NODE, CONTROLLER):
            made.start(container, CONFIG)
        for container in (NODE, CONTROLLER):
            client = client_of(made, container)
            until(partial(is_ready, client), f"{container.name} is ready: {logs(made)}")
            client.close()
        yield made
    finally:
        made.close()


def logs(node: KubernetesNode) -> str:
    return "\n".join(path.read_text() for path in node.home.glob("*.log"))


def client_of(node: KubernetesNode, container: Container) -> CsiClient:
    return CsiClient(node.socket(container, container.flags["--endpoint"]))


def is_ready(client: CsiClient) -> bool:
    try:
        return bool(client.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value)
    except grpc.RpcError:
        return False


def digests_on_the_host(node: KubernetesNode, directory: str) -> dict[str, str]:
    lines = node.on_the_host("find", directory, "-type", "f", "-exec", "sha256sum", "{}", "+").splitlines()
    return {line[66:].removeprefix(f"{directory}/"): line[:64] for line in lines}


def mounts_on_the_host(node: KubernetesNode) -> list[str]:
    lines = node.on_the_host("cat", "/proc/self/mountinfo").splitlines()
    return sorted(line.split()[4] for line in lines if " fuse.hayloft " in line)


def mount_on_the_host(node: KubernetesNode, path: str) -> str:
    lines = node.on_the_host("cat", "/proc/self/mountinfo").splitlines()
    return "".join(line for line in lines if line.split()[4] == path)


def test_a_claim_a_restart_of_the_daemon_and_an_inline_volume(node: KubernetesNode, parameters: dict[str, str]) -> None:
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in DATASET.items()}
    controller, plugin = client_of(node, CONTROLLER), client_of(node, NODE)
    volume = controller.create("pvc-1", parameters=parameters, secrets=SECRETS, volume_capabilities=READ_ONLY_MANY)
    node.outside(STAGING).mkdir(parents=True)
    node.outside(TARGET).parent.mkdir(parents=True)
    plugin.stage(volume, Path(STAGING), secrets=SECRETS)
    plugin.publish(volume, Path(STAGING), Path(TARGET))
    assert mounts_on_the_host(node) == sorted((STAGING, TARGET))
    assert digests_on_the_host(node, TARGET) == expected

    objects = node.outside("/var/lib/hayloft/cache/objects")
    until(lambda: sum(path.is_file() for path in objects.rglob("*")) == len(DATASET), "every object is complete")
    node.outside(INLINE_TARGET).parent.mkdir(parents=True)
    facts_of_kubelet = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team-a"}
    context = {**parameters, **facts_of_kubelet}
    inline = csi_pb2.Volume(volume_id="csi-inline-1", volume_context=context)
    plugin.publish(inline, None, Path(INLINE_TARGET), secrets=SECRETS)
    assert digests_on_the_host(node, INLINE_TARGET) == expected
    assert INLINE_TARGET in mounts_on_the_host(node), "no namespace is trusted, so the inline volume gets no view"
    node.outside(SECOND_TARGET).parent.mkdir(parents=True)
    plugin.publish(volume, Path(STAGING), Path(SECOND_TARGET))
    assert SECOND_TARGET not in mounts_on_the_host(node), (
        "the complete dataset was on the node, so there is no FUSE mount"
    )
    assert "/views/hayloft-view-" in mount_on_the_host(node, SECOND_TARGET)

    node.kill("hayloft-node-cache")
    node.start(CACHE, CONFIG)
    until(lambda: is_ready(plugin), f"the daemon is back: {logs(node)}")
    assert digests_on_the_host(node, TARGET) == expected
    assert not plugin.stats(volume.volume_id, TARGET).volume_condition.abnormal
    assert digests_on_the_host(node, INLINE_TARGET) == expected
    assert digests_on_the_host(node, SECOND_TARGET) == expected, "plain files need no daemon"

    plugin.unpublish("csi-inline-1", Path(INLINE_TARGET))
    plugin.unpublish(volume.volume_id, Path(SECOND_TARGET))
    plugin.unpublish(volume.volume_id, Path(TARGET))
    plugin.unstage(volume.volume_id, Path(STAGING))
    controller.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id), timeout=30)
    assert mounts_on_the_host(node) == []
    assert mount_on_the_host(node, SECOND_TARGET) == ""
    controller.close()
    plugin.close()


def publish_inline(node: KubernetesNode, parameters: dict[str, str]) -> None:
    plugin = client_of(node, NODE)
    node.outside(INLINE_TARGET).parent.mkdir(parents=True)
    context = {**parameters, "csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team-a"}
    volume = csi_pb2.Volume(volume_id="csi-inline-1", volume_context=context)
    plugin.publish(volume, None, Path(INLINE_TARGET), secrets=SECRETS)
    plugin.close()
    assert INLINE_TARGET in mounts_on_the_host(node)


def replace_node_plugin(node: KubernetesNode) -> CsiClient:
    """The new container is started with the mounts that exist by then, in each of its volumes."""
    node.kill("hayloft-node-hayloft")
    node.start(NODE, CONFIG)
    plugin = client_of(node, NODE)
    until(partial(is_ready, plugin), f"the node plugin is back: {logs(node)}")
    return plugin


def nothing_of_an_inline_volume_is_left(node: KubernetesNode) -> None:
    records = node.outside("/var/lib/hayloft/state/mounts")
    until(lambda: mounts_on_the_host(node) == [], f"it is unmounted: {logs(node)}")
    until(lambda: list(records.iterdir()) == [], f"no record is left: {logs(node)}")
    until(lambda: list(node.outside(KUBELET).rglob("inline/*")) == [], "no directory is left")


@pytest.mark.promise("S246")
def test_an_inline_volume_that_was_published_by_an_earlier_node_pod_is_unmounted(
    node: KubernetesNode, parameters: dict[str, str]
) -> None:
    publish_inline(node, parameters)
    plugin = replace_node_plugin(node)
    plugin.unpublish("csi-inline-1", Path(INLINE_TARGET))
    nothing_of_an_inline_volume_is_left(node)
    assert not node.outside(INLINE_TARGET).exists()
    plugin.close()


@pytest.mark.promise("S247")
def test_an_inline_volume_that_is_published_nowhere_is_unmounted_at_the_next_start(
    node: KubernetesNode, parameters: dict[str, str]
) -> None:
    publish_inline(node, parameters)
    replace_node_plugin(node).close()
    assert INLINE_TARGET in mounts_on_the_host(node), "a published volume stays"
    node.on_the_host("umount", INLINE_TARGET)
    replace_node_plugin(node).close()
    nothing_of_an_inline_volume_is_left(node)


@pytest.mark.promise("S389")
def test_a_pod_is_replaced_by_one_that_was_started_beside_it_while_files_are_read(
    node: KubernetesNode, parameters: dict[str, str]
) -> None:
    """As a DaemonSet with a surge does: the new containers run for a while before the old ones get SIGTERM."""
    controller, plugin = client_of(node, CONTROLLER), client_of(node, NODE)
    volume = controller.create("pvc-1", parameters=parameters, secrets=SECRETS, volume_capabilities=READ_ONLY_MANY)
    node.outside(STAGING).mkdir(parents=True)
    node.outside(TARGET).parent.mkdir(parents=True)
    plugin.stage(volume, Path(STAGING), secrets=SECRETS)
    plugin.publish(volume, Path(STAGING), Path(TARGET))
    plugin.close()

    def waits(container: Container) -> bool:
        return "takes over when" in node.log(f"hayloft-node-{container.name}-new").read_text()

    # dd with O_DIRECT: each read is a request to the daemon, or to the cache by passthrough.
    reader = node.in_the_background(
        "while [ ! -e {end} ]; do dd if={file} bs=64k iflag=direct status=none | sha256sum || exit 1; done",
        file=f"{TARGET}/large.bin",
    )
    for container in (CACHE, NODE):
        node.start(container, CONFIG, pod="-new")
    for container in (CACHE, NODE):
        until(partial(waits, container), f"{container.name} waits: {logs(node)}")
    plugin = client_of(node, NODE)
    assert is_ready(plugin), "the old pod still serves"
    old = [node.stop(f"hayloft-node-{container.name}") for container in (CACHE, NODE)]
    assert [process.wait(60) for process in old] == [0, 0]
    until(partial(is_ready, plugin), f"the new pod serves: {logs(node)}")
    assert "volume adopted from an earlier daemon" in node.log("hayloft-node-cache-new").read_text()
    assert digests_on_the_host(node, TARGET)["large.bin"] == hashlib.sha256(DATASET["large.bin"]).hexdigest()
    digests = {line[:64] for line in reader.finish().splitlines()}
    assert digests == {hashlib.sha256(DATASET["large.bin"]).hexdigest()}
    plugin.unpublish(volume.volume_id, Path(TARGET))
    plugin.unstage(volume.volume_id, Path(STAGING))
    assert mounts_on_the_host(node) == []
    controller.close()
    plugin.close()
