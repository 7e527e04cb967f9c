"""What a user reads in ``kubectl describe`` when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.installation import Installation, claim, inline, of_claim, pod, python

pytestmark = pytest.mark.promise("S314")

NOTHING = python("")


@pytest.fixture
def objects(hayloft: Installation) -> Iterator[list[dict[str, Any]]]:
    """Objects to delete after the test."""
    made: list[dict[str, Any]] = []
    yield made
    for one in reversed(made):
        hayloft.kubectl.delete(one["kind"], one["metadata"]["name"], now=one["kind"] == "Pod")
    hayloft.wait_until_clean()


def apply(hayloft: Installation, objects: list[dict[str, Any]], *made: dict[str, Any]) -> None:
    objects += made
    hayloft.kubectl.apply(*made)


def test_a_bucket_that_does_not_exist(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    parameters = hayloft.class_parameters("train") | {"url": "s3://no-such-bucket/train"}
    apply(hayloft, objects, hayloft.storage_class("bad-bucket", parameters), claim("bad-bucket", "bad-bucket"))
    said = hayloft.warning("bad-bucket", "ProvisioningFailed")
    assert "no-such-bucket" in said


def test_a_parameter_that_does_not_exist(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    parameters = hayloft.class_parameters("train", endpiont="https://s3.example.com")
    apply(hayloft, objects, hayloft.storage_class("bad-name", parameters), claim("bad-name", "bad-name"))
    said = hayloft.warning("bad-name", "ProvisioningFailed")
    assert "endpiont" in said
    assert "endpoint" in said


def test_a_secret_that_does_not_exist(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    parameters = hayloft.class_parameters("train") | {"csi.storage.k8s.io/provisioner-secret-name": "no-such-secret"}
    apply(hayloft, objects, hayloft.storage_class("no-secret", parameters), claim("no-secret", "no-secret"))
    assert "no-such-secret" in hayloft.warning("no-secret", "ProvisioningFailed")


def test_a_secret_of_an_inline_volume_that_does_not_exist(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    apply(hayloft, objects, pod("no-pod-secret", inline(hayloft.parameters("train"), "no-such-secret"), NOTHING))
    assert "no-such-secret" in hayloft.warning("no-pod-secret", "FailedMount")


def test_an_endpoint_that_inline_volumes_may_not_reach(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    attributes = hayloft.parameters("train") | {"endpoint": "http://10.88.0.1:9"}
    apply(hayloft, objects, pod("bad-endpoint", inline(attributes), NOTHING))
    said = hayloft.warning("bad-endpoint", "FailedMount")
    assert "10.88.0.1" in said
    assert "--allowed-address" in said


def test_a_claim_that_can_be_written_to(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    apply(hayloft, objects, claim("to-write", "train", "ReadWriteMany"))
    said = hayloft.warning("to-write", "ProvisioningFailed")
    assert "ReadOnlyMany" in said or "read-only" in said


def test_a_block_volume(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    one = claim("block", "train")
    one["spec"]["volumeMode"] = "Block"
    apply(hayloft, objects, one)
    assert "lock" in hayloft.warning("block", "ProvisioningFailed")


def test_repeated_failures_are_one_event(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    """Kubernetes counts events of one text: a number that changes in it would make each try an event of its own."""
    attributes = hayloft.parameters("train") | {"url": "s3://no-such-bucket/train"}
    apply(hayloft, objects, pod("repeated", inline(attributes), NOTHING))

    def tries() -> int:
        return sum(count for reason, _, count in hayloft.warnings("repeated") if reason == "FailedMount")

    hayloft.kubectl.wait_for(lambda: tries() >= 3, "three tries", 60)
    texts = [text for reason, text, _ in hayloft.warnings("repeated") if reason == "FailedMount"]
    assert len(texts) == 1, texts


def test_a_pod_of_a_claim_that_waits_says_so(hayloft: Installation, objects: list[dict[str, Any]]) -> None:
    parameters = hayloft.class_parameters("train") | {"url": "s3://no-such-bucket/train"}
    apply(hayloft, objects, hayloft.storage_class("waiting", parameters), claim("waiting", "waiting"))
    apply(hayloft, objects, pod("waiting-pod", of_claim("waiting"), NOTHING))
    assert "unbound" in hayloft.warning("waiting-pod", "FailedScheduling")
