"""A claim that is deleted in each phase of its life leaves no volume and nothing on the node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.installation import Installation, claim, of_claim, pod, start_reader

pytestmark = pytest.mark.promise("S315")


def records(hayloft: Installation) -> set[str]:
    """Of volumes, in the registry. That of a volume that an administrator wrote stays."""
    places = ("/var/lib/hayloft/registry", "-path", "*/volumes/*", "-type", "f")
    return set(hayloft.cluster.node.run("find", *places).split())


def nothing_is_left(hayloft: Installation, name: str, before: set[str]) -> None:
    hayloft.kubectl.wait_for(lambda: hayloft.kubectl.get("pvc", name) is None, "the claim is gone", 60)
    hayloft.kubectl.wait_for(lambda: not hayloft.volumes_of(name), "its volume is gone", 60)
    hayloft.wait_until_clean()
    # Of a claim that goes while it is provisioned, external-provisioner makes the volume and deletes it then.
    hayloft.kubectl.wait_for(lambda: records(hayloft) == before, "its record is gone", 60)


def before_it_is_provisioned(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.apply(claim(name, "train"))


def while_it_is_bound(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.apply(claim(name, "train"))
    hayloft.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", f"pvc/{name}", "--timeout=60s")


def while_its_pod_starts(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.apply(claim(name, "train"), pod(name, of_claim(name)))


def while_its_pod_reads(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.apply(claim(name, "train"))
    start_reader(hayloft, name, of_claim(name))


def after_its_pod_has_ended(hayloft: Installation, name: str) -> None:
    hayloft.kubectl.apply(claim(name, "train"), pod(name, of_claim(name)))
    hayloft.kubectl.wait_for_pod(name, "Succeeded")


@pytest.mark.parametrize(
    "phase",
    [before_it_is_provisioned, while_it_is_bound, while_its_pod_starts, while_its_pod_reads, after_its_pod_has_ended],
    ids=lambda phase: phase.__name__.replace("_", "-"),
)
def test_a_claim_is_deleted(hayloft: Installation, phase: Callable[[Installation, str], None]) -> None:
    name, before = phase.__name__.replace("_", "-"), records(hayloft)
    phase(hayloft, name)
    hayloft.kubectl.delete("pvc", name, wait=False)
    # Kubernetes keeps a claim as long as a pod uses it.
    hayloft.kubectl.delete("pod", name, now=True)
    nothing_is_left(hayloft, name, before)


def test_a_claim_that_cannot_be_provisioned_is_deleted(hayloft: Installation) -> None:
    before = records(hayloft)
    parameters = hayloft.class_parameters("train") | {"url": "s3://no-such-bucket/train"}
    hayloft.kubectl.apply(hayloft.storage_class("never", parameters), claim("never", "never"))
    hayloft.warning("never", "ProvisioningFailed")
    hayloft.kubectl.delete("pvc", "never", wait=False)
    nothing_is_left(hayloft, "never", before)
    hayloft.kubectl.delete("storageclass", "never")
