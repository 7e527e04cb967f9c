"""Volumes that are read with the identity of their pod: kubelet's calls, a daemon, a service that exchanges tokens, and
a store that knows which keys may read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient, publish_request, refused, serving, stage_request
from tests.support.daemons import DaemonBench, digest_of_objects, digest_of_tree, stop, wait_until
from tests.support.guarded_s3 import GuardedS3
from tests.support.token_services import (
    OTHER_ROLE,
    ROLE,
    TokenServices,
    kubelet_tokens,
    make_token,
    subject,
)

pytestmark = pytest.mark.fuse

OBJECTS = {f"small/{number:02}": random.Random(number).randbytes(9_000) for number in range(8)}
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team"}


class Node:
    """A node plugin and a daemon, and inline volumes of one bucket as kubelet publishes them."""

    def __init__(
        self, home: Path, server: GuardedS3, services: TokenServices, bench: DaemonBench, driver: CsiClient
    ) -> None:
        self.home, self.server, self.services, self.bench, self.driver = home, server, services, bench, driver

    def context(self, **attributes: str) -> dict[str, str]:
        given = {"url": "s3://data/", "endpoint": self.server.endpoint, "identity": "pod", "awsRoleArn": ROLE}
        return given | {"deadline": "2s", "requestTimeout": "2s"} | attributes

    def request(
        self, volume_id: str, token: str | None, *, in_secrets: bool = True, pod: str = "pod-1", **attributes: str
    ) -> csi_pb2.NodePublishVolumeRequest:
        target = self.home / "pods" / pod / volume_id
        self.bench.mount_points.append(target)
        tokens = {} if token is None else kubelet_tokens(token, make_token("any", "vault"))
        return publish_request(
            csi_pb2.Volume(volume_id=volume_id),
            None,
            target,
            volume_context=self.context(**attributes) | EPHEMERAL | ({} if in_secrets else tokens),
            secrets=tokens if in_secrets else {},
        )

    def publish(self, volume_id: str, token: str | None, **more: Any) -> Path:
        return self.send(self.request(volume_id, token, **more))

    def send(self, request: csi_pb2.NodePublishVolumeRequest) -> Path:
        self.driver.node.NodePublishVolume(request, timeout=60)
        return Path(request.target_path)

    def gets(self) -> int:
        return len(self.server.seen("GET"))


@pytest.fixture(scope="module")
def services() -> Iterator[TokenServices]:
    with TokenServices({}) as services:
        yield services


@pytest.fixture
def server(services: TokenServices) -> Iterator[GuardedS3]:
    with GuardedS3(OBJECTS, {}) as server:

        def issued(key: str, secret: str) -> None:
            server.secrets[key] = secret
            server.readers.add(key)

        services.trusted = {ROLE: {subject("trainer")}, OTHER_ROLE: {subject("evaluator")}}
        services.issued, services.failure, services.life_s = issued, None, 3600.0
        services.asked.clear()
        yield server


@pytest.fixture(scope="module")
def processes(services: TokenServices) -> Iterator[tuple[Path, DaemonBench, CsiClient]]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-pods-"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment().items():
            patch.setenv(name, value)
        flags = ("--allowed-address=127.0.0.0/8", "--log-level=debug", "--free-floor=64MiB")
        bench = DaemonBench(home, flags=flags, log_path=home / "log")
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
def node(server: GuardedS3, services: TokenServices, processes: tuple[Path, DaemonBench, CsiClient]) -> Iterator[Node]:
    home, bench, driver = processes
    yield Node(home, server, services, bench, driver)
    for target in {*bench.mount_points}:
        driver.unpublish(target.name, target)
    bench.mount_points.clear()


def error_of(path: Path) -> int | None:
    with pytest.raises(OSError, match=r".") as caught:
        path.read_bytes()
    return caught.value.errno


def all_cached(target: Path) -> bool:
    def cached(path: str) -> bool:
        present, _, size = os.getxattr(target / path, "user.hayloft.cached").partition(b"/")
        return present == size

    return all(map(cached, OBJECTS))


@pytest.mark.promise("S403")
@pytest.mark.parametrize("in_secrets", [True, False], ids=["secrets", "context"])
def test_a_pod_reads_with_the_role_that_its_token_is_exchanged_for(node: Node, in_secrets: bool) -> None:
    target = node.send(node.request("csi-1", make_token("trainer"), in_secrets=in_secrets))
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    ((_, form),) = node.services.asked
    assert form["RoleArn"] == ROLE
    assert form["RoleSessionName"] == "hayloft-team-trainer"
    assert {request.headers["x-amz-security-token"] for request in node.server.seen("GET")} == {"session-1"}


@pytest.mark.promise("S404")
def test_pods_of_other_service_accounts_read_nothing_that_was_cached_without_their_own_permission(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    wait_until(lambda: all_cached(target))
    other = node.publish("csi-2", make_token("evaluator"), awsRoleArn=OTHER_ROLE, pod="pod-2")
    node.server.readers.remove("ASIA2")
    assert {error_of(other / path) for path in OBJECTS} == {errno.EACCES}
    node.server.readers.add("ASIA2")
    assert digest_of_tree(other) == digest_of_objects(OBJECTS)
    # Each object was asked for once, by a request for its first byte: its bytes are shared.
    permitted = [one for one in node.server.asked_by("ASIA2") if one.headers.get("range") == "bytes=0-0"]
    assert len(node.server.asked_by("ASIA2")) == len(permitted)


@pytest.mark.promise("S404")
def test_pods_of_one_service_account_share_what_is_cached_without_a_request(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    wait_until(lambda: all_cached(target))
    asked = node.gets()
    second = node.publish("csi-2", make_token("trainer", serial=2), pod="pod-2")
    assert digest_of_tree(second) == digest_of_objects(OBJECTS)
    assert node.gets() == asked


@pytest.mark.promise("S404")
def test_a_forged_token_is_refused_by_the_provider_and_reads_no_cached_byte(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    forged = make_token("trainer", key=b"a key of the attacker")
    request = node.request("csi-2", forged, in_secrets=False, pod="pod-2")
    with refused(grpc.StatusCode.UNAUTHENTICATED) as found:
        node.send(request)
    assert "InvalidIdentityToken" in found[0].message
    assert MountTable.read().at(Path(request.target_path)) is None


@pytest.mark.promise("S404")
def test_what_a_pod_wrote_into_its_own_context_does_not_replace_kubelets_tokens(node: Node) -> None:
    request = node.request("csi-1", make_token("trainer"))
    for key, text in kubelet_tokens(make_token("evaluator", key=b"forged")).items():
        request.volume_context[key] = text
    assert digest_of_tree(node.send(request)) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S404")
def test_a_volume_is_not_handed_to_the_pod_of_another_service_account(node: Node) -> None:
    node.services.trusted[ROLE].add(subject("evaluator"))
    target = node.publish("csi-1", make_token("trainer"))
    with refused(grpc.StatusCode.ALREADY_EXISTS) as found:
        node.publish("csi-1", make_token("evaluator"), pod="pod-2")
    assert "of another service account" in found[0].message
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S405")
def test_a_renewed_token_reaches_a_mounted_volume_and_an_equal_one_costs_no_request(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    first, *rest = sorted(OBJECTS)
    assert (target / first).read_bytes() == OBJECTS[first]
    node.publish("csi-1", make_token("trainer"))
    assert len(node.services.asked) == 1
    del node.server.secrets["ASIA1"]  # its hour is over
    assert error_of(target / rest[0]) == errno.EKEYREJECTED
    node.publish("csi-1", make_token("trainer", serial=2))
    assert len(node.services.asked) == 2
    asked = len(node.server.asked_by("ASIA2"))
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    # The first file is known to be permitted: the identity is the same.
    assert first not in [request.key for request in node.server.asked_by("ASIA2")[asked:]]


@pytest.mark.promise("S405")
def test_a_service_that_fails_while_the_keys_are_valid_fails_no_call(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    node.services.failure = (503, "<ErrorResponse/>")
    node.publish("csi-1", make_token("trainer", serial=2))
    assert len(node.services.asked) == 2
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S405")
def test_a_daemon_that_is_killed_leaves_the_keys_to_the_next_one(node: Node) -> None:
    target = node.publish("csi-1", make_token("trainer"))
    first = min(OBJECTS)
    assert (target / first).read_bytes() == OBJECTS[first]
    node.services.failure = (503, "<ErrorResponse/>")
    stop(node.bench.processes[-1], signal.SIGKILL)
    node.bench.start()
    assert digest_of_tree(target) == digest_of_objects(OBJECTS)
    assert first not in [request.key for request in node.server.seen("GET")[1:]]
    node.publish("csi-1", make_token("trainer"))
    assert len(node.services.asked) == 1


@pytest.mark.promise("S406")
@pytest.mark.parametrize(
    ("token", "code", "words"),
    [
        (None, grpc.StatusCode.PERMISSION_DENIED, ("sts.amazonaws.com", "tokenRequests", "none")),
        (make_token("trainer", "other"), grpc.StatusCode.PERMISSION_DENIED, ("'other'", "podIdentity.audiences")),
        (make_token("stranger"), grpc.StatusCode.UNAUTHENTICATED, ("AccessDenied", ROLE, subject("stranger"))),
    ],
    ids=["no token", "other audience", "no role"],
)
def test_a_pod_without_the_right_identity_is_told_what_to_do(
    node: Node, token: str | None, code: grpc.StatusCode, words: tuple[str, ...]
) -> None:
    request = node.request("csi-1", token)
    with refused(code) as found:
        node.send(request)
    for word in words:
        assert word in found[0].message
    assert not node.server.requests
    assert not list((node.home / "inline").iterdir())


@pytest.mark.promise("S407")
def test_the_volume_of_a_claim_cannot_have_the_identity_of_a_pod(node: Node) -> None:
    staging = node.home / "staging"
    staging.mkdir(exist_ok=True)
    volume = csi_pb2.Volume(volume_id="claim-1", volume_context=node.context())
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        node.driver.node.NodeStageVolume(stage_request(volume, staging), timeout=60)
    assert "one mount for all pods of a node" in found[0].message
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        node.driver.create("claim-1", parameters=node.context())
    assert "inline volume" in found[0].message


@pytest.mark.promise("S407")
def test_a_secret_beside_the_identity_of_a_pod_is_refused(node: Node) -> None:
    request = node.request("csi-1", make_token("trainer"))
    request.secrets["access_key_id"] = "AKID"
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        node.send(request)
    assert "nodePublishSecretRef" in found[0].message


@pytest.mark.promise("S408")
@pytest.mark.parametrize("in_secrets", [True, False], ids=["secrets", "context"])
def test_a_token_is_in_no_log_file_record_or_process_list(node: Node, in_secrets: bool) -> None:
    tokens = [make_token("trainer", serial=serial) for serial in (71, 72)] + [make_token("stranger")]
    messages = []
    for number, token in enumerate(tokens):
        try:
            node.send(node.request(f"csi-{max(1, number)}", token, in_secrets=in_secrets))
        except grpc.RpcError as error:
            messages.append(str(error))
    assert len(messages) == 1
    keys = [f"secret-of-{number}" for number in (1, 2)] + ["session-1", "session-2"]
    with node.bench.client() as daemon:
        shown = [*messages, repr(daemon.mounts()), repr(daemon.volume("csi-1"))]
    for process in (node.bench.keeper, node.bench.processes[-1]):
        shown += [Path(f"/proc/{process.pid}/{name}").read_text("latin-1") for name in ("cmdline", "environ")]
    files = [path for path in node.home.rglob("*") if path.is_file() and "pods" not in path.parts]
    shown += [path.read_text("latin-1") for path in files if not path.is_relative_to(node.home / "inline")]
    assert any("NodePublishVolume" in text or "Mount request" in text for text in shown)
    for secret in (*tokens, *(token.split(".")[2] for token in tokens), *keys):
        assert not [text for text in shown if secret in text]
