"""Every way to a volume, from the objects that a user writes to the bytes in a pod."""

from __future__ import annotations

import pytest

from hayloft_lab.cluster.kubectl import Object
from tests.cluster.datasets import TRAIN
from tests.cluster.installation import DRIVER, SECRET, Installation, claim, inline, of_claim, pod

pytestmark = pytest.mark.promise("S311")


def delete_pod(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.delete("pod", name, now=True)


def test_a_claim_of_a_class_is_provisioned_and_read(hayloft: Installation) -> None:
    hayloft.kubectl.apply(claim("dynamic", "train"))
    # Until then the scheduler says of a pod that its claim is unbound, with every driver.
    hayloft.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/dynamic", "--timeout=60s")
    hayloft.check(pod("dynamic", of_claim("dynamic")), TRAIN)
    reasons = [reason for reason, _, _ in hayloft.kubectl.events("dynamic")]
    assert "ProvisioningSucceeded" in reasons
    assert hayloft.warnings("dynamic") == []
    delete_pod(hayloft, "dynamic")
    hayloft.wait_until_clean()
    hayloft.kubectl.delete("pvc", "dynamic")
    hayloft.kubectl.wait_for(lambda: not hayloft.volumes_of("dynamic"), "its volume is deleted")


def static_volume(hayloft: Installation, name: str) -> list[Object]:
    reference = {"name": SECRET, "namespace": "default"}
    source = {
        "driver": DRIVER,
        "volumeHandle": name,
        "readOnly": True,
        "volumeAttributes": hayloft.parameters("train"),
        "nodeStageSecretRef": reference,
        "nodePublishSecretRef": reference,
    }
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": "default", "name": name},
            "csi": source,
        },
    }
    of_it = claim(name, "")
    of_it["spec"]["volumeName"] = name
    return [volume, of_it]


def test_a_volume_that_an_administrator_wrote_is_read(hayloft: Installation) -> None:
    hayloft.kubectl.apply(*static_volume(hayloft, "static"))
    hayloft.check(pod("static", of_claim("static")), TRAIN)
    assert hayloft.warnings("static") == []
    delete_pod(hayloft, "static")
    hayloft.wait_until_clean()
    hayloft.kubectl.delete("pvc", "static")
    hayloft.kubectl.delete("pv", "static")


def test_an_inline_volume_is_read(hayloft: Installation) -> None:
    volume = inline(hayloft.parameters("train"))
    hayloft.check(pod("inline", volume), TRAIN)
    assert hayloft.warnings("inline") == []
    delete_pod(hayloft, "inline")
    hayloft.wait_until_clean()


def test_a_generic_ephemeral_volume_lives_as_long_as_its_pod(hayloft: Installation) -> None:
    template = {"spec": claim("", "train")["spec"]}
    hayloft.check(pod("generic", {"ephemeral": {"volumeClaimTemplate": template}}), TRAIN)
    assert hayloft.kubectl.get("pvc", "generic-data") is not None
    # With every driver: the scheduler says that the claim does not exist yet, and kubelet that it may not read it yet.
    others = ("FailedScheduling", "no relationship found")
    assert [one for one in hayloft.warnings("generic") if not any(text in f"{one}" for text in others)] == []
    delete_pod(hayloft, "generic")
    hayloft.wait_until_clean()
    hayloft.kubectl.wait_for(lambda: hayloft.kubectl.get("pvc", "generic-data") is None, "its claim is deleted")
    hayloft.kubectl.wait_for(lambda: not hayloft.volumes_of("generic-data"), "its volume is deleted")
