"""Pods that come to a node before the driver does."""

from __future__ import annotations

import pytest

from hayloft_lab.cluster.node import NODE_NAME
from tests.cluster.datasets import TRAIN
from tests.cluster.installation import NAMESPACE, Installation, claim, of_claim, pod


@pytest.mark.promise("S457")
def test_a_pod_that_came_before_the_driver_starts_when_it_is_there(hayloft: Installation) -> None:
    kubectl = hayloft.kubectl
    kubectl.apply(claim("early", "train"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/early", "--timeout=60s")
    kubectl("label", "node", NODE_NAME, "hayloft.dev/node=false")
    try:
        node_pods = "--selector=app.kubernetes.io/component in (node, keeper)"
        kubectl("wait", "--for=delete", "pods", node_pods, f"--namespace={NAMESPACE}", "--timeout=60s")
        kubectl.wait_for(lambda: not hayloft.is_registered(), "kubelet has forgotten the driver")
        kubectl.apply(pod("early", of_claim("early")))
        said = hayloft.warning("early", "FailedScheduling")
        assert "csi.hayloft.dev" in said or "CSI driver" in said, said
    finally:
        kubectl("label", "node", NODE_NAME, "hayloft.dev/node-")
    # Kubernetes 1.37 tries again because a limit of volumes appears, and else only after five minutes.
    hayloft.check(pod("early", of_claim("early")), TRAIN)
    kubectl.delete("pod", "early", now=True)
    kubectl.delete("pvc", "early")
    hayloft.wait_until_clean()
