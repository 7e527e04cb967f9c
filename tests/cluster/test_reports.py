"""What Kubernetes shows of a volume: events of claim and pod, and its health."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from hayloft_lab.cluster.kubectl import Object
from hayloft_lab.cluster.node import NODE_NAME
from tests.cluster.datasets import READ_ALL, TRAIN, some_files, upload
from tests.cluster.installation import DRIVER, NAMESPACE, Installation, claim, of_claim, pod, python

FILES = some_files(10)

READ = python(READ_ALL)

OF_AN_OLDER_KUBELET = "VolumeConditionAbnormal"
"""The reason of its own event about an abnormal volume."""


@pytest.fixture(scope="module")
def changed(hayloft: Installation) -> Iterator[str]:
    """Name of a claim and of its pod, which has read objects that were overwritten after the claim was made."""
    kubectl = hayloft.kubectl
    upload(hayloft.cluster, hayloft.store, "reports", FILES)
    kubectl.apply(
        hayloft.storage_class("reports", hayloft.class_parameters("reports")), claim("overwritten", "reports")
    )
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/overwritten", "--timeout=60s")
    upload(hayloft.cluster, hayloft.store, "reports", FILES, version="new ")
    kubectl.apply(pod("overwritten", of_claim("overwritten"), READ))
    kubectl.wait_for_pod("overwritten")
    yield "overwritten"
    kubectl.delete("pod", "overwritten", now=True)
    kubectl.delete("pvc", "overwritten")
    kubectl.delete("storageclass", "reports")
    hayloft.wait_until_clean()


def health_of(hayloft: Installation, name: str) -> list[Object]:
    found = hayloft.kubectl.get("pod", name)
    assert found is not None
    return [dict(one) for one in found["status"].get("volumeHealth", ())]


@pytest.mark.promise("S455")
def test_a_claim_says_what_was_found_and_its_pod_that_it_is_warm(hayloft: Installation, changed: str) -> None:
    kubectl = hayloft.kubectl
    kubectl.apply(
        hayloft.storage_class("warm", hayloft.class_parameters("train", warmup="background")), claim("warm", "warm")
    )
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/warm", "--timeout=60s")
    kubectl.apply(pod("warm", of_claim("warm"), READ))
    kubectl.wait_for_pod("warm")
    described = kubectl("describe", "pvc", "warm")
    assert "DatasetListed" in described
    assert f"The dataset has {len(TRAIN)} files" in described
    kubectl.wait_for(lambda: "WarmupComplete" in kubectl("describe", "pod", "warm"), "its warmup is complete", 60)
    assert hayloft.warnings("warm") == []
    kubectl.delete("pod", "warm", now=True)
    kubectl.delete("pvc", "warm")
    kubectl.delete("storageclass", "warm")


@pytest.mark.promise("S455")
def test_a_pod_says_that_objects_were_overwritten(hayloft: Installation, changed: str) -> None:
    said = hayloft.warning(changed, "ObjectsChanged", 120)
    assert said in hayloft.kubectl("describe", "pod", changed)
    # Once, however many objects and reads it were.
    found = [(reason, count) for reason, _, count in hayloft.warnings(changed) if reason != OF_AN_OLDER_KUBELET]
    assert found == [("ObjectsChanged", 1)]
    assert not any(name in said for name in FILES)


@pytest.mark.newest_kubelet
@pytest.mark.promise("S456")
def test_the_health_of_a_volume_is_in_the_status_of_its_pod(hayloft: Installation, changed: str) -> None:
    """Kubelet asks once a minute."""
    found = hayloft.kubectl.wait_for(
        lambda: health_of(hayloft, changed), "its health", 150, lambda: hayloft.kubectl("get", "pod", "--output=yaml")
    )
    (volume,) = found
    assert volume["name"] == "data"
    (condition,) = volume["healthConditions"]
    assert (condition["status"], condition["reason"]) == ("DataLoss", "ObjectsChanged")
    assert condition["message"].endswith(".")
    assert not any(name in condition["message"] for name in FILES)


def storage_health(hayloft: Installation) -> dict[tuple[str, str], str]:
    """What kubelet has written to the status of the CSINode about the driver: messages, by status and reason."""
    found = hayloft.kubectl.get("csinode", NODE_NAME) or {}
    listed = found.get("status", {}).get("storageHealth", ())
    conditions = [one for entry in listed if entry["name"] == DRIVER for one in entry.get("healthConditions", ())]
    return {(one["status"], one["reason"]): one["message"] for one in conditions}


@pytest.mark.older_kubelet
@pytest.mark.promise("S456")
def test_a_kubelet_without_the_calls_of_health_shows_the_condition_of_the_volume(
    hayloft: Installation, changed: str
) -> None:
    """As an event of the pod, once a minute while the volume is abnormal, and as a metric."""
    kubectl = hayloft.kubectl
    said = hayloft.warning(changed, OF_AN_OLDER_KUBELET, 180)
    assert said.startswith("Volume data: ")
    assert "new snapshot" in said
    assert not any(name in said for name in FILES)
    assert health_of(hayloft, changed) == []
    page = kubectl("get", "--raw", f"/api/v1/nodes/{NODE_NAME}/proxy/metrics")
    shown = [line for line in page.splitlines() if line.startswith("kubelet_volume_stats_health_status_abnormal{")]
    assert any('persistentvolumeclaim="overwritten"' in line and line.endswith(" 1") for line in shown), shown


@pytest.mark.newest_kubelet
@pytest.mark.promise("S503")
def test_a_daemon_that_hangs_is_in_the_status_of_the_csinode_until_it_answers_again(hayloft: Installation) -> None:
    """Kubelet asks once a minute."""
    kubectl, node_pod = hayloft.kubectl, hayloft.pod_name("node")

    def shown() -> str:
        return kubectl("get", "csinode", NODE_NAME, "--output=yaml")

    expected = ("StorageUnreachable", "CacheDaemonUnavailable")
    hayloft.cluster.kill_child(node_pod, "cache", NAMESPACE, signal.SIGSTOP)
    try:
        kubectl.wait_for(lambda: expected in storage_health(hayloft), "its health", 150, shown)
        assert "look at the log of its container" in storage_health(hayloft)[expected]
    finally:
        hayloft.cluster.kill_child(node_pod, "cache", NAMESPACE, signal.SIGCONT)
    kubectl.wait_for(lambda: not storage_health(hayloft), "it is healthy again", 150, shown)
    assert hayloft.restarts(node_pod) == 0
