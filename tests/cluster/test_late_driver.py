"""Pods that come to a node before the driver does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from csi_driver.kubernetes.own_node import READY_CONDITION, STARTUP_TAINT
from hayloft_lab.cluster.node import NODE_NAME
from tests.cluster.datasets import TRAIN
from tests.cluster.installation import NAMESPACE, Installation, claim, of_claim, pod, python

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
        assert "untolerated taint" in hayloft.described_warning("pod", "patient", "FailedScheduling")
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
