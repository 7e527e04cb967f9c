"""Threads of a server: calls that may take minutes never occupy those of short calls, and end with their callers."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.model.errors import BudgetExceeded
from csi_driver.rpc import callers
from csi_driver.rpc.long_calls import MOST, NAMESPACE_OF, OF_ONE_NAMESPACE, OF_UNKNOWN_NAMESPACES, THREADS, LongCalls
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc, hayloft_pb2
from csi_driver.rpc.socket_server import SocketServer
from tests.support.csi_calls import CsiClient
from tests.support.daemons import wait_until


class BlockingNode(csi_pb2_grpc.NodeServicer):
    """Publishing blocks until it is released or the caller is gone."""

    def __init__(self) -> None:
        self.publishing: set[str] = set()
        self.release = threading.Event()

    def NodePublishVolume(self, request: Any, context: Any) -> csi_pb2.NodePublishVolumeResponse:
        caller = callers.current()
        self.publishing.add(request.volume_id)
        while not self.release.wait(0.02) and not caller.gone:
            pass
        self.publishing.discard(request.volume_id)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(self, request: Any, context: Any) -> csi_pb2.NodeUnpublishVolumeResponse:
        return csi_pb2.NodeUnpublishVolumeResponse()


@pytest.fixture
def node() -> BlockingNode:
    return BlockingNode()


@pytest.fixture
def client(node: BlockingNode) -> Iterator[CsiClient]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-"))
    server = SocketServer(home / "s", (lambda made: csi_pb2_grpc.add_NodeServicer_to_server(node, made),))
    server.start()
    connected = CsiClient(home / "s")
    yield connected
    node.release.set()
    connected.close()
    server.stop(1.0)
    shutil.rmtree(home)


def publish(client: CsiClient, number: int, namespace: str) -> Any:
    context = {"csi.storage.k8s.io/pod.namespace": namespace}
    request = csi_pb2.NodePublishVolumeRequest(volume_id=f"{namespace}-{number}", volume_context=context)
    return client.node.NodePublishVolume.future(request, timeout=60)


@pytest.mark.promise("S152")
def test_unmounts_are_answered_while_more_mounts_block_than_the_server_has_threads(
    client: CsiClient, node: BlockingNode
) -> None:
    calls = [publish(client, number, f"team-{number % 8}") for number in range(2 * THREADS)]
    wait_until(lambda: len(node.publishing) + sum(call.done() for call in calls) == len(calls))
    assert THREADS - MOST < len(node.publishing) < MOST
    refused = next(call for call in calls if call.done())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    client.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="any"), timeout=30)


@pytest.mark.promise("S152")
def test_a_namespace_has_its_share_of_the_long_calls(client: CsiClient, node: BlockingNode) -> None:
    calls = [publish(client, number, "attackers") for number in range(THREADS)]
    wait_until(lambda: sum(call.done() for call in calls) == THREADS - OF_ONE_NAMESPACE)
    assert "attackers" in next(call for call in calls if call.done()).details()
    victim = publish(client, 0, "victims")  # held: a call that is forgotten is cancelled
    wait_until(lambda: "victims-0" in node.publishing)
    assert not victim.done()


@pytest.mark.promise("S154")
def test_a_call_sees_that_its_caller_is_gone(client: CsiClient, node: BlockingNode) -> None:
    call = publish(client, 1, "team")
    wait_until(lambda: node.publishing == {"team-1"})
    call.cancel()
    wait_until(lambda: not node.publishing)


def test_places_are_free_again_after_success_and_failure() -> None:
    long_calls, request = LongCalls(most=2, of_one_namespace=1), hayloft_pb2.MountRequest(namespace="team")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), long_calls.admitted("Mount", request):
            raise ZeroDivisionError
    with long_calls.admitted("Mount", request), pytest.raises(BudgetExceeded, match="team"):  # noqa: SIM117
        with long_calls.admitted("Mount", request):
            pass


@pytest.mark.promise("S152")
def test_eight_namespaces_that_block_all_they_get_leave_a_place() -> None:
    long_calls = LongCalls()
    with contextlib.ExitStack() as in_flight:

        def call(namespace: str) -> bool:
            try:
                in_flight.enter_context(long_calls.admitted("Mount", hayloft_pb2.MountRequest(namespace=namespace)))
            except BudgetExceeded:
                return False
            return True

        for number in range(8):
            while call(f"attacker-{number}"):
                pass
        assert call("victim")


def test_every_long_call_exists_and_shares_leave_room_for_others() -> None:
    services = (*csi_pb2.DESCRIPTOR.services_by_name.values(), *hayloft_pb2.DESCRIPTOR.services_by_name.values())
    methods = {method.name for service in services for method in service.methods}
    assert set(NAMESPACE_OF) <= methods
    assert OF_ONE_NAMESPACE < OF_UNKNOWN_NAMESPACES < MOST < THREADS


def test_the_count_is_right_under_concurrent_calls() -> None:
    long_calls = LongCalls(most=5, of_one_namespace=5)
    lock, running, most = threading.Lock(), [0], [0]

    def call(number: int) -> None:
        try:
            with long_calls.admitted("Mount", hayloft_pb2.MountRequest(namespace=f"n{number % 3}")):
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                with lock:
                    running[0] -= 1
        except BudgetExceeded:
            pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(2000)))
    assert 1 <= most[0] <= 5
    with long_calls.admitted("Mount", hayloft_pb2.MountRequest(namespace="n0")):
        pass
