"""What an uninstallation leaves."""

from __future__ import annotations

import pytest

from tests.cluster.datasets import TRAIN
from tests.cluster.installation import DRIVER, NAMESPACE, Installation, claim, of_claim, pod

pytestmark = pytest.mark.promise("S316")


def test_an_uninstallation_leaves_the_cache_alone_and_says_so(hayloft: Installation) -> None:
    hayloft.kubectl.apply(claim("last", "train"))
    hayloft.check(pod("last", of_claim("last")), TRAIN)
    notes = hayloft.kubectl.helm("get", "notes", "hayloft", f"--namespace={NAMESPACE}")
    assert "/var/lib/hayloft, until it is deleted" in notes.replace("\n", " ")
    # As the notes say: pods and claims first.
    hayloft.kubectl.delete("pod", "last", now=True)
    hayloft.kubectl.delete("pvc", "last")
    hayloft.kubectl.wait_for(lambda: not hayloft.volumes_of("last"), "no volume is left")
    hayloft.kubectl.helm("uninstall", "hayloft", f"--namespace={NAMESPACE}", "--wait")
    # Helm has waited for the objects that it made, and their pods end after them.
    hayloft.kubectl.wait_for(lambda: not hayloft.kubectl.objects("pods", NAMESPACE), "the pods are gone")
    try:
        kinds = "all,configmap,serviceaccount,role,rolebinding,networkpolicy,resourcequota,poddisruptionbudget,lease"
        listed = hayloft.kubectl("get", kinds, f"--namespace={NAMESPACE}", "--output=name").split()
        # What every namespace has, and the lease that the provisioner has made itself.
        assert [one for one in listed if "hayloft" in one and not one.startswith("lease")] == []
        cluster_wide = "csidriver,storageclass,clusterrole,clusterrolebinding,priorityclass,validatingadmissionpolicy"
        assert "hayloft" not in hayloft.kubectl("get", cluster_wide, "--output=name")
        assert hayloft.left_over() == []
        node = hayloft.cluster.node
        processes = node.run("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
        assert "hayloft cache" not in processes
        assert "hayloft keeper" not in processes
        assert f"/{DRIVER}" not in node.run("find", "/var/lib/kubelet/plugins_registry")
        hayloft.kubectl.wait_for(lambda: not hayloft.is_registered(), "kubelet has forgotten the driver")
        left = set(node.run("find", "/var/lib/hayloft", "-maxdepth", "1", "-mindepth", "1").split())
        assert left <= {f"/var/lib/hayloft/{name}" for name in ("cache", "registry", "run", "state")}
    finally:
        hayloft.install()
        hayloft.wait_for_rollout()
