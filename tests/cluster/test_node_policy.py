"""What a node plugin may change at Nodes, against the real API server with the rendered role and policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.kubernetes.api_server import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Answer, ApiServer
from csi_driver.kubernetes.own_node import READY_CONDITION, STARTUP_TAINT, remove_startup_taint, report_ready
from hayloft_lab.cluster.cluster import Cluster
from hayloft_lab.cluster.kubectl import Object
from hayloft_lab.cluster.node import SERVICE_ADDRESS
from tests.cluster.installation import TOOLS
from tests.support.chart_cases import CASES, rendered

pytestmark = pytest.mark.api_server

NAMESPACE = "storage"
OURS = {"key": STARTUP_TAINT, "effect": "NoSchedule"}
OTHER = {"key": "example.com/of-others", "effect": "PreferNoSchedule"}
OWN, FOREIGN = "gpu-1", "gpu-2"
KINDS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy")

Patch = Callable[..., Answer]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An API server with two Nodes, and a pod of the node plugin on one of them."""
    with Cluster(TOOLS, control_plane_only=True) as made:
        kubectl = made.kubectl
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        driver = rendered(CASES["start-up taint"])
        kubectl.apply(*(one.body for one in driver if one.kind.startswith(KINDS)))
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "plugin", "namespace": NAMESPACE},
            "spec": {
                "serviceAccountName": "hayloft-node",
                "automountServiceAccountToken": False,
                "nodeName": OWN,
                "containers": [{"name": "hayloft", "image": "hayloft/hayloft:1"}],
            },
        }
        kubectl.apply(node(OWN), node(FOREIGN), pod)
        yield made


def node(name: str, *taints: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": list(taints)}}


class InTheNetwork:
    """An ``ApiServer`` that is reached from the cluster's network."""

    def __init__(self, cluster: Cluster, api: ApiServer) -> None:
        self._cluster, self._api = cluster, api

    def send(self, method: str, path: str, body: Any, content_type: str = "application/json") -> Answer:
        return self._cluster.node.in_the_network(lambda: self._api.send(method, path, body, content_type))


@pytest.fixture
def api(cluster: Cluster, tmp_path: Path) -> InTheNetwork:
    """With a token such as kubelet gives the pod."""
    cluster.kubectl.apply(node(OWN, OTHER, OURS), node(FOREIGN, OTHER, OURS))
    bound = ("--bound-object-kind=Pod", "--bound-object-name=plugin")
    token = cluster.kubectl("create", "token", "hayloft-node", f"--namespace={NAMESPACE}", *bound)
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.crt").write_text((cluster.files / "certificates/apiserver.crt").read_text())
    found = InTheNetwork(cluster, ApiServer(SERVICE_ADDRESS, 443, tmp_path))

    def is_in_effect() -> bool:
        answer = found.send("PATCH", f"/api/v1/nodes/{FOREIGN}", {}, MERGE_PATCH)
        return "the Node that it runs on" in str(answer.body.get("message"))

    cluster.kubectl.wait_for(is_in_effect, "the policy is in effect")
    return found


def taints(cluster: Cluster, name: str) -> list[str]:
    found = cluster.kubectl.get("node", name)
    assert found is not None
    return [one["key"] for one in found["spec"].get("taints", ())]


@pytest.mark.promise("S507")
def test_a_node_plugin_removes_its_taint_and_sets_its_condition(cluster: Cluster, api: InTheNetwork) -> None:
    assert remove_startup_taint(api, OWN).is_success
    assert taints(cluster, OWN) == [OTHER["key"]]
    assert remove_startup_taint(api, OWN).is_success, "there is nothing to be done"
    for second in (1, 2):  # the second one replaces the first
        assert report_ready(api, OWN, f"2026-01-02T00:00:0{second}Z").is_success
    found = cluster.kubectl.get("node", OWN)
    assert found is not None
    (condition,) = (one for one in found["status"]["conditions"] if one["type"] == READY_CONDITION)
    assert (condition["status"], condition["reason"]) == ("True", "DriverRegistered")
    assert condition["lastTransitionTime"].endswith(":02Z")


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": kind, "status": status, "reason": "Test"}]}}


@pytest.mark.promise("S507")
@pytest.mark.parametrize(
    ("path", "change", "why"),
    [
        (FOREIGN, {"spec": {"taints": [OTHER]}}, "the Node that it runs on"),
        (f"{FOREIGN}/status", condition(READY_CONDITION), "the Node that it runs on"),
        (OWN, {"spec": {"taints": None}}, "change no other"),
        (OWN, {"spec": {"taints": [OURS]}}, "change no other"),
        (OWN, {"spec": {"taints": [OTHER, OURS, {"key": "a", "effect": "NoSchedule"}]}}, "change no other"),
        (OWN, {"spec": {"unschedulable": True}}, "nothing else"),
        (OWN, {"metadata": {"labels": {"pool": "trusted"}}}, "nothing else"),
        (OWN, {"metadata": {"annotations": {"a": "b"}}}, "nothing else"),
        (f"{OWN}/status", condition("Ready", "False"), "and no other"),
        (f"{OWN}/status", {"status": {"capacity": {"example.com/gpu": "8"}}}, "nothing else"),
        (f"{OWN}/status", {"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]}}, "nothing else"),
        (f"{OWN}/status", {"metadata": {"labels": {"pool": "trusted"}}}, "nothing else"),
    ],
    ids=str,
)
def test_a_node_plugin_may_change_nothing_else(
    cluster: Cluster, api: InTheNetwork, path: str, change: dict[str, Any], why: str
) -> None:
    before = cluster.kubectl.get("node", path.partition("/")[0])
    kind = STRATEGIC_MERGE_PATCH if "status" in change else MERGE_PATCH
    answer = api.send("PATCH", f"/api/v1/nodes/{path}", change, kind)
    assert answer.status in (403, 422), answer
    assert why in answer.body["message"], answer
    assert cluster.kubectl.get("node", path.partition("/")[0]) == before


@pytest.mark.promise("S507")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/nodes"),
        ("GET", f"/api/v1/nodes/{OWN}"),
        ("DELETE", f"/api/v1/nodes/{OWN}"),
        ("POST", "/api/v1/nodes"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
    ],
)
def test_a_node_plugin_may_neither_read_nor_make_nor_delete_nodes(api: InTheNetwork, method: str, path: str) -> None:
    assert api.send(method, path, node("gpu-3")).status == 403
