"""What the node plugin takes from kubelet: who made a volume."""

from __future__ import annotations

import pytest

from csi_driver.csi.mount_requests import _tenant
from csi_driver.model.tenant import ADMINISTRATOR, Tenant

EPHEMERAL, NAMESPACE = "csi.storage.k8s.io/ephemeral", "csi.storage.k8s.io/pod.namespace"


@pytest.mark.parametrize(
    ("context", "tenant"),
    [
        ({EPHEMERAL: "true", NAMESPACE: "team-a"}, Tenant("team-a", inline=True)),
        # kubelet says it of the volumes of a PersistentVolume too
        ({EPHEMERAL: "false", NAMESPACE: "team-a"}, ADMINISTRATOR),
        ({NAMESPACE: "team-a"}, ADMINISTRATOR),
        # of a client on this socket that is not kubelet, which always says both
        ({EPHEMERAL: "true"}, ADMINISTRATOR),
        ({EPHEMERAL: "true", NAMESPACE: ""}, ADMINISTRATOR),
        ({"hayloft.dev/namespace": "team-a", "inline": "true"}, ADMINISTRATOR),
    ],
)
def test_only_kubelets_facts_make_a_volume_inline(context: dict[str, str], tenant: Tenant) -> None:
    assert _tenant({"url": "s3://bucket", **context}) == tenant
