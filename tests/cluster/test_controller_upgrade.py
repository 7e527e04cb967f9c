"""What waits for a controller that is replaced."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from hayloft_lab.cluster.kubectl import Object
from tests.cluster.installation import NAMESPACE, Installation, claim


def leases(hayloft: Installation) -> dict[str, str]:
    """Holders of the sidecars' leases."""
    listed: list[Object] = hayloft.kubectl.objects("leases", NAMESPACE)
    return {one["metadata"]["name"]: str(one["spec"].get("holderIdentity") or "") for one in listed}


def leads(hayloft: Installation, pod: str) -> bool:
    """Whether a sidecar of the pod holds a lease."""
    return any(holder.startswith(pod) for holder in leases(hayloft).values())


@pytest.mark.promise("S508")
def test_sidecars_of_an_ended_controller_leave_their_leases_to_the_next_one(
    hayloft: Installation, measured: Callable[[str], None]
) -> None:
    kubectl = hayloft.kubectl
    old = hayloft.pod_name("controller")
    kubectl.wait_for(lambda: leads(hayloft, old), "the old controller leads")
    kubectl("rollout", "restart", "deployment/hayloft-controller", f"--namespace={NAMESPACE}")
    kubectl("wait", "--for=delete", f"pod/{old}", f"--namespace={NAMESPACE}", "--timeout=60s")
    # Not released, they would be the old ones until they run out, after fifteen seconds.
    assert not leads(hayloft, old), leases(hayloft)
    begun = time.time()
    kubectl.apply(claim("after-the-upgrade", "train"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/after-the-upgrade", "--timeout=120s")
    measured(f"a claim that is made when the old controller is gone is bound after {time.time() - begun:.1f} s")
    assert hayloft.warnings("after-the-upgrade") == []
    kubectl.delete("pvc", "after-the-upgrade")
