"""Random volumes through the driver's processes: every call succeeds or is refused by a status of the tables, and no
process writes a secret into its log, at any level."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.statuses import ERROR_METADATA
from hayloft_lab.emulated_kubelet import EmulatedKubelet
from hayloft_lab.node_driver import NodeDriver
from tests.support.csi_calls import mount_capability
from tests.support.examples import random_examples
from tests.support.hostile_s3 import HostileS3
from tests.support.random_volumes import MARK, contexts, secrets

pytestmark = [pytest.mark.fuse, pytest.mark.promise("S180"), pytest.mark.timeout(0)]

EXAMPLES = random_examples(100)
CALL_S = 60.0
DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}


class Node:
    """Calls of kubelet, with facts about the pod that its author cannot change."""

    def __init__(self, home: Path, driver: NodeDriver, endpoint: str) -> None:
        self.driver, self.endpoint, self._home = driver, endpoint, home
        self._channel = grpc.insecure_channel(driver.endpoint)
        self._stub = csi_pb2_grpc.NodeStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def publish(self, context: Mapping[str, str], secret: Mapping[str, str], namespace: str) -> None:
        """An inline volume is published and unpublished. Raises grpc.RpcError."""
        volume_id = f"csi-{uuid.uuid4().hex * 2}"
        target = self._home / "kubelet" / "pods" / volume_id[:20] / "mount"
        target.parent.mkdir(parents=True)
        facts = {"ephemeral": "true", "pod.namespace": namespace}
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            target_path=str(target),
            volume_capability=mount_capability(),
            readonly=True,
            secrets=secret,
            volume_context={**context, **{f"csi.storage.k8s.io/{key}": value for key, value in facts.items()}},
        )
        undo = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        try:
            self._stub.NodePublishVolume(request, timeout=CALL_S)
        finally:
            self._stub.NodeUnpublishVolume(undo, timeout=CALL_S)

    def stage(self, context: Mapping[str, str], secret: Mapping[str, str]) -> None:
        """A volume of an administrator is staged and unstaged. Raises grpc.RpcError."""
        volume_id = f"volume-{uuid.uuid4().hex}"
        staging = self._home / "kubelet" / "plugins" / volume_id / "globalmount"
        staging.mkdir(parents=True)
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            volume_capability=mount_capability(),
            secrets=secret,
            volume_context=context,
        )
        undo = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(staging))
        try:
            self._stub.NodeStageVolume(request, timeout=CALL_S)
        finally:
            self._stub.NodeUnstageVolume(undo, timeout=CALL_S)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    home = Path(tempfile.mkdtemp(prefix="hr-"))
    objects = {f"train/{number}.bin": bytes(number) for number in range(5)}
    with pytest.MonkeyPatch.context() as patch, HostileS3(objects, bucket="bucket") as store:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # the node's identity
            patch.setenv(name, f"of-the-node-{MARK}")
        patch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # names of no host
        flags = ["--allowed-address=127.0.0.0/8", "--trusted-namespace=trusted", "--listing-deadline=2s"]
        driver = NodeDriver(home, flags, log_level="debug")
        driver.start()
        kubelet = EmulatedKubelet(driver.endpoint, driver.kubelet_directory)
        one = Node(home, driver, store.endpoint)
        try:
            driver.wait_until_ready(kubelet)
            yield one
        finally:
            one.close()
            kubelet.close()
            driver.stop()
            rmtree(home, ignore_errors=True)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_a_random_volume_is_mounted_or_refused_and_no_secret_is_logged(node: Node, data: st.DataObject) -> None:
    # No request leaves the machine: a URL of a provider without an endpoint would.
    context = {"endpoint": node.endpoint, **data.draw(contexts(node.endpoint))}
    secret = data.draw(secrets() | st.just({}))
    namespace = data.draw(st.sampled_from(["", "team", "trusted", "administrator"]))
    try:
        if namespace == "administrator":
            node.stage(context, secret)
        else:
            node.publish(context, secret, namespace)
    except grpc.RpcError as error:
        _assert_refused(error)
    with suppress(FileNotFoundError):
        written = node.driver.log_path.read_text(errors="replace")
        os.truncate(node.driver.log_path, 0)  # the processes append
        assert MARK not in written
        assert "Traceback" not in written
    assert node.driver.is_running()


def _assert_refused(call: grpc.Call) -> None:
    assert MARK not in (call.details() or "")
    (name,) = (value for key, value in call.trailing_metadata() or () if key == ERROR_METADATA)
    assert name != "InternalFailure", call.details()
    # INTERNAL is the status of an answer of the store that is not one of its kind of store, too.
    assert call.code() not in DEFECTS or name == "StoreProtocolError", call.details()
