"""The interceptor of every call: status, log line, deadline, and redaction of secrets."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.model.errors import AccessDenied
from csi_driver.rpc import deadlines
from csi_driver.rpc.interceptor import describe
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc, hayloft_pb2
from csi_driver.rpc.socket_server import SocketServer
from tests.support.csi_calls import CsiClient, mount_capability, refused

SECRET = "AKIA-not-for-the-log"
LOGGER = "csi_driver.rpc.interceptor"


class ScriptedNode(csi_pb2_grpc.NodeServicer):
    def __init__(self) -> None:
        self.action: Callable[[], object] = lambda: None

    def NodeStageVolume(self, request: Any, context: Any) -> csi_pb2.NodeStageVolumeResponse:
        self.action()
        return csi_pb2.NodeStageVolumeResponse()

    def NodeGetInfo(self, request: Any, context: Any) -> csi_pb2.NodeGetInfoResponse:
        self.action()
        return csi_pb2.NodeGetInfoResponse(node_id="n")


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
def client(node: ScriptedNode) -> Iterator[CsiClient]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-"))
    server = SocketServer(home / "s", (lambda made: csi_pb2_grpc.add_NodeServicer_to_server(node, made),))
    server.start()
    connected = CsiClient(home / "s")
    yield connected
    connected.close()
    server.stop(1.0)
    shutil.rmtree(home)


def stage(client: CsiClient, **more: Any) -> None:
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id="vol-1",
        secrets={"access_key": SECRET},
        volume_context={"url": "s3://b/p", "csi.storage.k8s.io/serviceAccount.tokens": SECRET},
        volume_capability=mount_capability(1, f"password={SECRET}"),
    )
    client.node.NodeStageVolume(request, **{"timeout": 30, **more})


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


def test_a_call_logs_one_line_with_method_volume_code_and_duration(
    client: CsiClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        stage(client)
    (record,) = [one for one in caplog.records if one.name == LOGGER]
    assert record.levelno == logging.INFO
    assert record.getMessage() == "NodeStageVolume"
    facts = record.fields  # type: ignore[attr-defined]
    assert (facts["volume_id"], facts["code"]) == ("vol-1", "OK")
    assert float(facts["seconds"]) >= 0


def test_successful_calls_that_are_polled_log_nothing(
    client: CsiClient, node: ScriptedNode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        client.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=30)
        assert not caplog.records
        node.action = raising(AccessDenied("no"))
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            client.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=30)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_hayloft_error_becomes_its_status_and_keeps_its_class(client: CsiClient, node: ScriptedNode) -> None:
    node.action = raising(AccessDenied("s3://b: the store refuses; ask its owner"))
    with refused(grpc.StatusCode.PERMISSION_DENIED) as found:
        stage(client)
    assert found[0].message == "s3://b: the store refuses; ask its owner"
    assert found[0].class_name == "AccessDenied"


def test_an_unexpected_error_becomes_an_internal_status_and_a_traceback_in_the_log(
    client: CsiClient, node: ScriptedNode, caplog: pytest.LogCaptureFixture
) -> None:
    node.action = raising(KeyError("some detail"))
    with refused(grpc.StatusCode.INTERNAL) as found:
        stage(client)
    assert "KeyError" in found[0].message
    assert "some detail" not in found[0].message
    assert "Traceback" not in found[0].message
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "NodeStageVolume failed"
    traceback = record.fields["traceback"]  # type: ignore[attr-defined]
    assert f"{__file__}:" in traceback
    assert "KeyError" in traceback
    assert "some detail" not in traceback


@pytest.mark.promise("S220")
def test_a_call_is_answered_when_its_work_panics(client: CsiClient, node: ScriptedNode) -> None:
    class Panic(BaseException):
        pass

    for error in (Panic(), SystemExit(1)):
        node.action = raising(error)
        with refused(grpc.StatusCode.INTERNAL):
            stage(client)


def test_a_call_that_is_not_implemented_is_unimplemented(client: CsiClient) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        client.node.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_id="v"), timeout=30)


@pytest.mark.promise("S110")
def test_a_secret_is_redacted_even_if_an_exception_repeats_it(
    client: CsiClient, node: ScriptedNode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER):
        stage(client)
        for error in (AccessDenied(f"refused for key {SECRET}"), ValueError(f"cannot sign with {SECRET}")):
            node.action = raising(error)
            with pytest.raises(grpc.RpcError) as caught:
                stage(client)
            assert SECRET not in caught.value.details()
    logged = [record.getMessage() + str(getattr(record, "fields", "")) for record in caplog.records]
    assert len(logged) == 6
    assert SECRET not in "".join(logged)


def test_the_deadline_of_the_caller_is_passed_to_the_handler(client: CsiClient, node: ScriptedNode) -> None:
    seen: list[float] = []
    node.action = lambda: seen.append(deadlines.remaining_s(1000.0))
    stage(client, timeout=50)
    stage(client, timeout=None)
    assert 0 < seen[0] <= 51, "gRPC rounds a time-out up"
    assert seen[1] == 1000.0


def test_a_deadline_is_never_longer_than_an_outer_one() -> None:
    with deadlines.within(5.0):
        with deadlines.within(50.0):
            assert deadlines.remaining_s(100.0) <= 5.0
        with deadlines.within(None):
            assert deadlines.remaining_s(100.0) <= 5.0
        assert deadlines.remaining_s(1.0) == 1.0
    with deadlines.within(-1.0):
        assert deadlines.remaining_s(100.0) == 0.0
    assert deadlines.remaining_s(100.0) == 100.0


def test_a_message_is_described_with_its_structure_and_without_its_secrets() -> None:
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id="v", secrets={"a": SECRET, "b": SECRET}, volume_capability=mount_capability(1, SECRET)
    )
    described = describe(request)
    assert described["secrets"] == "*** (2)"
    assert described["volume_capability"] == {"mount": {"mount_flags": "*** (1)"}, "access_mode": {"mode": 1}}
    mount = hayloft_pb2.MountRequest(volume_id="v", secrets={"a": SECRET}, attributes={"url": "s3://b"})
    assert describe(mount) == {"volume_id": "v", "attributes": {"url": "s3://b"}, "secrets": "*** (1)"}
