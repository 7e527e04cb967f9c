"""What an operator has of a cluster: ``kubectl hayloft`` on their own machine."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hayloft_lab.cluster.node import NODE_NAME
from tests.architecture.source_tree import REPOSITORY
from tests.cluster.datasets import some_files, upload
from tests.cluster.installation import Installation, claim, of_claim, pod, start_reader

PLUGINS = REPOSITORY / "deploy/kubectl"
FINDINGS = 6
"""The exit code of a command that has found something wrong."""
FILES = some_files(40)
SIZE = sum(FILES.values())


def plugin(hayloft: Installation, *words: str) -> subprocess.CompletedProcess[str]:
    """``kubectl hayloft``, with kubectl and the plugin in the PATH and the cluster as the context."""
    cluster = hayloft.cluster
    command = cluster.node.network_command(
        "env",
        f"PATH={PLUGINS}:{cluster.programs}:/usr/bin:/bin",
        f"KUBECONFIG={cluster.kubeconfig}",
        *("kubectl", "hayloft", *words),
    )
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def volume_id(hayloft: Installation, name: str) -> str:
    """Of a bound claim."""
    (volume,) = hayloft.volumes_of(name)
    return str((hayloft.kubectl.get("pv", volume) or {})["spec"]["csi"]["volumeHandle"])


def document(hayloft: Installation, *words: str) -> Any:
    done = plugin(hayloft, *words, "--json")
    assert done.returncode == 0, done.stderr or done.stdout
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def own_claim(hayloft: Installation) -> Iterator[str]:
    """A claim of a dataset that no other test reads: nothing of it is cached."""
    kubectl = hayloft.kubectl
    upload(hayloft.cluster, hayloft.store, "operator", FILES)
    kubectl.apply(
        hayloft.storage_class("operator", hayloft.class_parameters("operator")), claim("operator", "operator")
    )
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/operator", "--timeout=60s")
    yield "operator"
    kubectl.delete("pod", "operator", now=True)  # of a test that failed
    kubectl.delete("pvc", "operator")
    kubectl.delete("storageclass", "operator")
    hayloft.wait_until_clean()


@pytest.mark.promise("S593", "S645")
def test_kubectl_hayloft_warms_a_claim_that_no_pod_mounts_and_shows_it(hayloft: Installation, own_claim: str) -> None:
    (node,) = document(hayloft, "status")["nodes"]
    assert (node["node"], node["healthy"]) == (NODE_NAME, True)
    nowhere = f"volume {volume_id(hayloft, own_claim)} of claim {own_claim} is mounted on no node\n"
    assert plugin(hayloft, "status", own_claim).stdout == nowhere
    selector = f"kubernetes.io/hostname={NODE_NAME}"
    without = plugin(hayloft, "warm", own_claim, "--nodes", selector)
    assert without.returncode == 1
    assert f"{NODE_NAME}: the claim is mounted by no pod there; --mount does it" in without.stdout
    warmed = plugin(hayloft, "warm", own_claim, "--nodes", selector, "--mount", "--wait")
    assert warmed.returncode == 0, warmed.stdout + warmed.stderr
    assert re.search(rf"^{NODE_NAME} +complete ", warmed.stdout, re.MULTILINE), warmed.stdout
    # The pod that mounted it meanwhile goes, and the bytes stay.
    kubectl = hayloft.kubectl
    kubectl.wait_for(
        lambda: not kubectl.objects("pods", selector="app.kubernetes.io/name=hayloft-warm"), "its pod has gone"
    )
    hayloft.wait_until_clean()
    reader = start_reader(hayloft, "operator", of_claim(own_claim))
    (there,) = document(hayloft, "status", own_claim)["nodes"]
    assert (there["node"], there["cached_bytes"], there["total_bytes"]) == (NODE_NAME, SIZE, SIZE)
    shown = plugin(hayloft, "status", own_claim).stdout
    assert re.search(rf"^{NODE_NAME} +100% ", shown, re.MULTILINE), shown
    reader.assert_faultless()
    kubectl.delete("pod", "operator", now=True)


@pytest.mark.promise("S593")
def test_kubectl_hayloft_passes_on_what_a_node_says(hayloft: Installation, own_claim: str) -> None:
    hayloft.kubectl.apply(pod("operator", of_claim(own_claim)))
    hayloft.kubectl.wait_for_pod("operator", "Succeeded")
    doctor = plugin(hayloft, "doctor", NODE_NAME)
    # A finding is of this machine; that it looked at all of these is of the pod's rights.
    assert doctor.returncode in (0, FINDINGS), doctor.stderr
    for what in ("daemon", "kernel", "fuse", "cache disk", "free space", "open files", "memory"):
        assert re.search(rf"^(ok|note|warning|problem) +{what}\b", doctor.stdout, re.MULTILINE), doctor.stdout
    listed = plugin(hayloft, "on", NODE_NAME, "status", "--json")
    assert json.loads(listed.stdout)["daemon"]["version"]
    unknown = plugin(hayloft, "doctor", "no-such-node")
    assert (unknown.returncode, unknown.stderr) == (
        1,
        f"kubectl hayloft: no pod of the driver runs on node no-such-node; it runs on {NODE_NAME}\n",
    )
    hayloft.kubectl.delete("pod", "operator", now=True)
