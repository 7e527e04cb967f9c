"""The API server accepts what the chart renders, and the manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_lab.cluster.cluster import Cluster
from tests.architecture.kubernetes_files import DEPLOY, EXAMPLES, Document, documents
from tests.cluster.installation import TOOLS, define_snapshots
from tests.support.chart_cases import CASES, rendered

pytestmark = [pytest.mark.api_server, pytest.mark.promise("S310")]

OF_OTHERS = {"ServiceMonitor", "Certificate"}
"""Kinds that are no part of Kubernetes, but of the Prometheus operator and of cert-manager."""


@pytest.fixture(scope="module")
def api_server() -> Iterator[Cluster]:
    """One without an installation, whose fixed fields would be compared."""
    with Cluster(TOOLS, control_plane_only=True) as made:
        define_snapshots(made)
        yield made


def accept(cluster: Cluster, objects: list[Document]) -> None:
    """A server-side dry run: values, names, quantities, references, admission."""
    for namespace in sorted({one.namespace for one in objects}):
        cluster.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            # Of the controller-manager otherwise; without it pods are refused.
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}},
        )
    # Pods are refused without theirs.
    if accounts := [one.body for one in objects if one.kind == "ServiceAccount"]:
        cluster.kubectl.apply(*accounts)
    cluster.kubectl.apply(*(one.body for one in objects if one.kind not in OF_OTHERS), dry_run=True)


@pytest.mark.parametrize("case", CASES)
def test_a_rendering_of_the_chart(api_server: Cluster, case: str) -> None:
    accept(api_server, rendered(CASES[case]))


@pytest.mark.parametrize("folder", [DEPLOY, EXAMPLES], ids=lambda folder: folder.name)
def test_the_manifests_of_a_folder(api_server: Cluster, folder: Path) -> None:
    accept(api_server, documents(folder))
