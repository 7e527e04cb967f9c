"""What an operator limits, and what a user reads in ``kubectl describe`` at the limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.datasets import READ_ALL, TRAIN
from tests.cluster.installation import Installation, claim, inline, of_claim, pod, python

ENDPOINT = "https://s3.elsewhere.example.com"
CACHE = "8MiB"
"""Less than the dataset ``train`` has."""


@pytest.fixture(scope="module")
def limited(hayloft: Installation) -> Iterator[Installation]:
    """One endpoint that volumes may name, and a cache that is smaller than a dataset."""
    before = {name: hayloft.values[name] for name in ("policy", "cache")}
    hayloft.upgrade(policy={"allowedEndpoints": [hayloft.store.endpoint]}, cache={"limit": CACHE})
    yield hayloft
    hayloft.wait_until_clean()
    hayloft.upgrade(**before)


@pytest.mark.promise("S504")
def test_an_inline_volume_of_an_endpoint_that_is_not_listed(limited: Installation) -> None:
    attributes = limited.parameters("train") | {"endpoint": ENDPOINT}
    limited.kubectl.apply(pod("elsewhere", inline(attributes), python("")))
    said = limited.described_warning("pod", "elsewhere", "FailedMount")
    assert ENDPOINT in said
    assert limited.store.endpoint in said, "what is allowed"
    assert "--allowed-endpoint" in said
    limited.kubectl.delete("pod", "elsewhere", now=True)


@pytest.mark.promise("S504")
def test_a_claim_of_an_endpoint_that_is_not_listed(limited: Installation) -> None:
    parameters = limited.class_parameters("train") | {"endpoint": ENDPOINT}
    limited.kubectl.apply(limited.storage_class("elsewhere", parameters), claim("elsewhere", "elsewhere"))
    said = limited.described_warning("pvc", "elsewhere", "ProvisioningFailed")
    assert ENDPOINT in said
    assert "--allowed-endpoint" in said
    limited.kubectl.delete("pvc", "elsewhere")
    limited.kubectl.delete("storageclass", "elsewhere")


@pytest.mark.promise("S505")
def test_a_claim_of_a_dataset_larger_than_the_cache_is_read_and_its_pod_says_so(limited: Installation) -> None:
    kubectl = limited.kubectl
    kubectl.apply(claim("larger-than-cache", "train"))
    limited.check(pod("larger-than-cache", of_claim("larger-than-cache")), TRAIN)
    kubectl.delete("pod", "larger-than-cache", now=True)
    kubectl.apply(pod("stays", of_claim("larger-than-cache"), python(READ_ALL)))
    kubectl.wait_for_pod("stays")
    said = limited.described_warning("pod", "stays", "CacheTooSmall", 120)
    assert "8.0 MiB" in said or "8 MiB" in said
    assert "cache.limit" in said
    assert kubectl("logs", "stays") == "", "no read has failed"
    kubectl.delete("pod", "stays", now=True)
    kubectl.delete("pvc", "larger-than-cache")


@pytest.mark.promise("S505")
def test_a_claim_that_reserves_more_than_the_cache_holds(limited: Installation) -> None:
    kubectl = limited.kubectl
    parameters = limited.class_parameters("train", cacheReservation="1GiB")
    kubectl.apply(limited.storage_class("reserving", parameters), claim("reserving", "reserving"))
    kubectl.apply(pod("reserving", of_claim("reserving"), python("")))
    said = limited.described_warning("pod", "reserving", "FailedMount", 120)
    assert "cacheReservation" in said
    assert "--cache-limit" in said
    kubectl.delete("pod", "reserving", now=True)
    kubectl.delete("pvc", "reserving")
    kubectl.delete("storageclass", "reserving")
