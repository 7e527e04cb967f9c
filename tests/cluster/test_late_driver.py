"""Pods that come to a node before the driver does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from csi_driver.kubernetes.api_server import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Answer, ApiServer
from csi_driver.kubernetes.own_node import READY_CONDITION, STARTUP_TAINT
from hayloft_lab.cluster.node import NODE_NAME, SERVICE_ADDRESS
from tests.cluster.datasets import TRAIN
from tests.cluster.installation import NAMESPACE, Installation, claim, of_claim, pod, python

ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
OTHER_TAINT = "example.com/of-others"


@contextlib.contextmanager
def without_the_driver(hayloft: Installation) -> Iterator[None]:
    """During the body the node is one on which the driver has not come up yet."""
    kubectl = hayloft.kubectl
    kubectl("label", "node", NODE_NAME, "hayloft.dev/node=false")
    try:
        node_pods = "--selector=app.kubernetes.io/component in (node, keeper)"
        kubectl("wait", "--for=delete", "pods", node_pods, f"--namespace={NAMESPACE}", "--timeout=60s")
        kubectl.wait_for(lambda: not hayloft.is_registered(), "kubelet has forgotten the driver")
        yield
    finally:
        kubectl("label", "node", NODE_NAME, "hayloft.dev/node-")


@pytest.mark.promise("S457")
def test_a_pod_that_came_before_the_driver_starts_when_it_is_there(hayloft: Installation) -> None:
    kubectl = hayloft.kubectl
    kubectl.apply(claim("early", "train"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/early", "--timeout=60s")
    with without_the_driver(hayloft):
        kubectl.apply(pod("early", of_claim("early")))
        said = hayloft.described_warning("pod", "early", "FailedScheduling")
        assert "csi.hayloft.dev" in said or "CSI driver" in said, said
    # Kubernetes 1.37 tries again because a limit of volumes appears, and else only after five minutes.
    hayloft.check(pod("early", of_claim("early")), TRAIN)
    kubectl.delete("pod", "early", now=True)
    kubectl.delete("pvc", "early")
    hayloft.wait_until_clean()


@pytest.fixture(scope="module")
def announcing(hayloft: Installation) -> Iterator[Installation]:
    """Installed for nodes that are made with the start-up taint, and with a NodeReadinessRule."""
    before = hayloft.values["nodes"]
    hayloft.upgrade(nodes={**before, "startupTaint": True, "readyCondition": True})
    yield hayloft
    hayloft.upgrade(nodes=before)


def taints(hayloft: Installation) -> list[str]:
    found = hayloft.kubectl.get("node", NODE_NAME)
    assert found is not None
    return [one["key"] for one in found["spec"].get("taints", ())]


@pytest.mark.promise("S506")
def test_pods_come_to_a_node_with_the_startup_taint_when_the_driver_has_removed_it(announcing: Installation) -> None:
    hayloft, kubectl = announcing, announcing.kubectl
    kubectl("taint", "node", NODE_NAME, f"{OTHER_TAINT}:PreferNoSchedule")
    # A pod without a volume of the driver: nothing but the taint keeps it away.
    patient = pod("patient", {"emptyDir": {}}, python("print('begun')"))
    with without_the_driver(hayloft):
        kubectl("taint", "node", NODE_NAME, f"{STARTUP_TAINT}=:NoSchedule")
        kubectl.apply(patient)
        assert STARTUP_TAINT in hayloft.described_warning("pod", "patient", "FailedScheduling")
    kubectl.wait_for_pod("patient", "Succeeded", timeout_s=120)
    assert hayloft.is_registered()
    assert taints(hayloft) == [OTHER_TAINT]
    kubectl("taint", "node", NODE_NAME, f"{OTHER_TAINT}-")
    kubectl.delete("pod", "patient", now=True)
    status = kubectl.wait_for(
        lambda: kubectl(
            "get", "node", NODE_NAME, f"--output=jsonpath={{.status.conditions[?(@.type=='{READY_CONDITION}')].status}}"
        ),
        "the condition of the Node",
    )
    assert status == "True"


@pytest.mark.promise("S507")
def test_the_token_of_a_node_plugin_changes_nothing_but_taint_and_condition_of_its_own_node(
    announcing: Installation,
) -> None:
    hayloft, kubectl = announcing, announcing.kubectl
    kubectl("taint", "node", NODE_NAME, f"{OTHER_TAINT}:PreferNoSchedule")
    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node2"}, "spec": {"taints": [TAINT]}}
    kubectl.apply(other)
    process = hayloft.cluster.node.root / "proc" / str(hayloft.process("node"))
    api = ApiServer(SERVICE_ADDRESS, 443, process / "root" / ACCOUNT)

    def patch(path: str, change: dict[str, Any], kind: str = MERGE_PATCH) -> Answer:
        return hayloft.cluster.node.in_the_network(lambda: api.send("PATCH", f"/api/v1/nodes/{path}", change, kind))

    try:
        assert patch(NODE_NAME, {}).status == 200
        refused = [
            (patch("node2", {"spec": {"taints": None}}), "the Node that it runs on"),
            (
                patch("node2/status", ready_condition("hayloft.dev/AgentReady"), STRATEGIC_MERGE_PATCH),
                "that it runs on",
            ),
            (patch(NODE_NAME, {"spec": {"taints": None}}), "change no other"),
            (patch(NODE_NAME, {"spec": {"taints": [TAINT, {**TAINT, "key": "a"}]}}), "change no other"),
            (patch(NODE_NAME, {"spec": {"unschedulable": True}}), "nothing else"),
            (patch(NODE_NAME, {"metadata": {"labels": {"a": "b"}}}), "nothing else"),
            (patch(NODE_NAME, {"metadata": {"annotations": {"a": "b"}}}), "nothing else"),
            (patch(f"{NODE_NAME}/status", ready_condition("Ready", "False"), STRATEGIC_MERGE_PATCH), "and no other"),
            (patch(f"{NODE_NAME}/status", {"status": {"capacity": {"example.com/gpu": "8"}}}), "nothing else"),
        ]
        for answer, why in refused:
            assert answer.status in (403, 422), answer
            assert why in answer.body["message"], answer
        assert hayloft.cluster.node.in_the_network(lambda: api.send("GET", "/api/v1/nodes", {})).status == 403
        assert hayloft.cluster.node.in_the_network(lambda: api.send("DELETE", "/api/v1/nodes/node2", {})).status == 403
    finally:
        kubectl.delete("node", "node2")
        kubectl("taint", "node", NODE_NAME, f"{OTHER_TAINT}-")


TAINT = {"key": STARTUP_TAINT, "effect": "NoSchedule"}


def ready_condition(kind: str, status: str = "True") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": kind, "status": status, "reason": "Test"}]}}
