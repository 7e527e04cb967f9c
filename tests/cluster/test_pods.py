"""What pods may ask of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.datasets import CHECK_ONCE, TRAIN
from tests.cluster.installation import CHECK, Installation, claim, of_claim, pod, python

pytestmark = pytest.mark.promise("S317")

WRITE = """
import os, sys

try:
    open("/data/written", "w")
except OSError as error:
    print(os.strerror(error.errno))
else:
    sys.exit("it was written")
"""


@pytest.fixture(scope="module")
def shared(hayloft: Installation) -> Iterator[str]:
    """A claim for the tests of this file."""
    hayloft.kubectl.apply(claim("shared", "train"))
    yield "shared"
    hayloft.kubectl("delete", "pods", "--all", "--now", "--namespace=default")
    hayloft.kubectl.delete("pvc", "shared")
    hayloft.wait_until_clean()


def run(hayloft: Installation, one: dict[str, Any]) -> str:
    """What a pod printed until it succeeded."""
    name = one["metadata"]["name"]
    hayloft.kubectl.apply(one)
    hayloft.kubectl.wait_for_pod(name, "Succeeded")
    assert hayloft.warnings(name) == []
    return hayloft.kubectl("logs", name)


def test_two_pods_read_one_claim(hayloft: Installation, shared: str) -> None:
    names = ("first", "second")
    hayloft.kubectl.apply(*(pod(name, of_claim(shared)) for name in names))
    said = []
    for name in names:
        hayloft.kubectl.wait_for_pod(name, "Succeeded")
        said.append(hayloft.kubectl("logs", name))
    assert said == [f"read {len(TRAIN)} files, {sum(TRAIN.values())} bytes\n"] * 2


def test_a_part_of_a_volume(hayloft: Installation, shared: str) -> None:
    script = "import os; print(*sorted(os.listdir('/data')), os.path.getsize('/data/shard-0.tar'))"
    one = pod("part", of_claim(shared), python(script), mount={"subPath": "large"})
    assert run(hayloft, one) == "shard-0.tar shard-1.tar 5000000\n"


@pytest.mark.parametrize(
    ("name", "of_the_claim", "mount"),
    [
        ("claim-read-only", True, {}),
        ("mount-read-only", False, {"readOnly": True}),
        ("recursively", False, {"readOnly": True, "recursiveReadOnly": "Enabled"}),
        ("not-read-only", False, {}),
    ],
)
def test_nothing_can_be_written_however_a_pod_asks(
    hayloft: Installation, shared: str, name: str, of_the_claim: bool, mount: dict[str, Any]
) -> None:
    volume = of_claim(shared, read_only=of_the_claim)
    assert run(hayloft, pod(name, volume, python(WRITE), mount=mount)) == "Read-only file system\n"


def test_a_pod_without_root(hayloft: Installation, shared: str) -> None:
    security = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "fsGroup": 2000}
    one = pod("without-root", of_claim(shared), CHECK, securityContext=security)
    hayloft.check(one, TRAIN)
    assert hayloft.warnings("without-root") == []


def test_a_restricted_pod(hayloft: Installation, shared: str) -> None:
    """As the Pod Security level of that name demands it."""
    container = {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    security = {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    one = pod("restricted", of_claim(shared), CHECK, container=container, securityContext=security)
    hayloft.check(one, TRAIN)


def test_a_pod_in_a_user_namespace_of_its_own(hayloft: Installation, shared: str) -> None:
    script = f"print(open('/proc/self/uid_map').read().split()[1] != '0')\n{CHECK_ONCE}"
    one = pod("own-users", of_claim(shared), python(script, "/data"), hostUsers=False)
    assert run(hayloft, one) == f"True\nread {len(TRAIN)} files, {sum(TRAIN.values())} bytes\n"
