"""The Kubernetes files are valid, name nothing that does not exist, and fit the commands that they start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.objects.credentials import parse_secret
from csi_driver.settings import GIB, ListingSettings
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_changes import split_refresh
from csi_driver.volumes.volume_snapshots import pin_mode
from tests.architecture.driver_manifests import CHECKS, WITHOUT_SCHEMA, driver_container, of_kind
from tests.architecture.kubernetes_files import (
    DEPLOY,
    EXAMPLES,
    Container,
    Document,
    containers,
    documents,
    documents_in_markdown,
    kustomizations,
    pod_spec,
    programs_called,
    references,
)
from tests.architecture.kubernetes_schema import amount, violations
from tests.architecture.source_tree import REPOSITORY

DRIVER = documents(DEPLOY / "kubernetes")
PLAIN = [one for one in DRIVER if one.path.parent == DEPLOY / "kubernetes"]
"""Without the example."""
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "docs" / "security.md",
    REPOSITORY / "docs" / "getting-started-cluster.md",
    REPOSITORY / "docs" / "migration.md",
]
ALL = [*documents(DEPLOY), *documents(EXAMPLES), *(one for page in PAGES for one in documents_in_markdown(page))]


def neighbours(document: Document) -> list[Document]:
    """What is applied together with a document: the whole folder for driver and benchmark, the file for an example."""
    if DEPLOY / "benchmarks" in document.path.parents:
        return documents(DEPLOY / "benchmarks")
    return DRIVER if DEPLOY in document.path.parents else [one for one in ALL if one.path == document.path]


@pytest.mark.parametrize("document", [one for one in ALL if one.kind not in WITHOUT_SCHEMA], ids=str)
def test_document_is_valid_for_kubernetes(document: Document) -> None:
    assert violations(document.body) == []


NODE = ("node.yaml", "DaemonSet")
_CONTAINER = "/spec/template/spec/containers"

MISTAKES = [
    (NODE, f"{_CONTAINER}/0/imagePullPolicy", "Sometimes"),
    (NODE, f"{_CONTAINER}/0/resources/limits/memory", "256MB"),
    (NODE, f"{_CONTAINER}/0/resources/limits/memory", "256 Mi"),
    (NODE, f"{_CONTAINER}/0/resources/requests/cpu", "20 millicores"),
    (NODE, f"{_CONTAINER}/0/resources/requests/memory", "1Gi"),
    (NODE, f"{_CONTAINER}/0/livenessProbe/httpGet/port", "health"),
    (NODE, f"{_CONTAINER}/0/livenessProbe/periodSeconds", 0),
    (NODE, f"{_CONTAINER}/0/ports/0/containerPort", 98080),
    (NODE, f"{_CONTAINER}/0/ports/0/name", "the-port-of-health-checks"),
    (NODE, f"{_CONTAINER}/0/env/0/valueFrom/fieldRef/fieldPath", "spec.nodename"),
    (NODE, f"{_CONTAINER}/0/volumeMounts/0/mountPropagation", "Both"),
    (NODE, f"{_CONTAINER}/0/volumeMounts/0/name", "kubelet"),
    (NODE, f"{_CONTAINER}/0/volumeMounts/1/mountPath", "/var/lib/kubelet"),
    (NODE, f"{_CONTAINER}/0/securityContext/privileged", False),
    (NODE, f"{_CONTAINER}/0/name", "Hayloft"),
    (NODE, f"{_CONTAINER}/1/name", "hayloft"),
    (NODE, "/spec/template/spec/volumes/0/hostPath/type", "Dir"),
    (NODE, "/spec/template/spec/volumes/0/hostPath/path", "var/lib/kubelet"),
    (NODE, "/spec/template/spec/volumes/0/emptyDir", {}),
    (NODE, "/spec/template/spec/tolerations/0/operator", "Any"),
    (NODE, "/spec/template/spec/tolerations/0/value", "x"),
    (NODE, "/spec/template/spec/restartPolicy", "Never"),
    (NODE, "/spec/template/metadata/labels/app.kubernetes.io~1component", "cache"),
    (NODE, "/spec/template/metadata/labels/app.kubernetes.io~1name", "Hayloft!"),
    (NODE, "/spec/updateStrategy/type", "OnDelete"),
    (NODE, "/spec/updateStrategy/type", "Rolling"),
    (NODE, "/metadata/name", "hayloft_node"),
    (NODE, "/spec/template/spec/dnsPolicy", "Host"),
    (("csidriver.yaml", "CSIDriver"), "/spec/fsGroupPolicy", "Never"),
    (("csidriver.yaml", "CSIDriver"), "/spec/volumeLifecycleModes/1", "Inline"),
    (("rbac.yaml", "ClusterRole"), "/rules/0/resources/0", "persistentvolume"),
    (("rbac.yaml", "ClusterRole"), "/rules/0/verbs/0", "read"),
    (("storageclass.yaml", "StorageClass"), "/reclaimPolicy", "Keep"),
    (("storageclass.yaml", "StorageClass"), "/volumeBindingMode", "Late"),
    (("pod.yaml", "PersistentVolumeClaim"), "/spec/accessModes/0", "ReadMany"),
    (("pod.yaml", "PersistentVolumeClaim"), "/spec/resources/requests/storage", "1GB "),
    (("pod.yaml", "PersistentVolumeClaim"), "/spec/resources/requests/storage", "0"),
    (("static.yaml", "PersistentVolume"), "/spec/persistentVolumeReclaimPolicy", "retain"),
    (("static.yaml", "PersistentVolume"), "/spec/csi/nodeStageSecretRef", {"name": "tokens"}),
    (("networkpolicy.yaml", "NetworkPolicy"), "/spec/policyTypes/0", "Inbound"),
    (("networkpolicy.yaml", "NetworkPolicy"), "/spec/ingress/0/ports/0/protocol", "tcp"),
    (("job.yaml", "Job"), "/spec/template/spec/restartPolicy", "Always"),
    (("job.yaml", "Job"), "/spec/completionMode", "indexed"),
]
"""A document, a field of it (a JSON pointer), and a value that an API server refuses, or that does nothing there."""


@pytest.mark.parametrize(("where", "pointer", "value"), MISTAKES, ids=lambda value: str(value)[-60:])
def test_a_wrong_value_is_found(where: tuple[str, str], pointer: str, value: object) -> None:
    document = next(one for one in ALL if (one.path.name, one.kind) == where)
    assert violations(with_value(document.body, pointer, value)) != []


def with_value(body: dict[str, Any], pointer: str, value: object) -> dict[str, Any]:
    """A copy with another value at a JSON pointer."""
    changed = copy.deepcopy(body)
    *path, last = [step.replace("~1", "/") for step in pointer.split("/")[1:]]
    place: Any = changed
    for step in path:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("text", "number"), [("512Mi", 512 << 20), ("20m", "0.02"), ("1e3", 1000), ("1.5G", 15 * 10**8), ("2E", 2 * 10**18)]
)
def test_quantities_are_compared_as_numbers(text: str, number: int | str) -> None:
    assert amount(text) == Decimal(number)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_plain_manifests(check: Callable[[list[Document]], None]) -> None:
    check(PLAIN)


@pytest.mark.parametrize("path", kustomizations(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_kustomization_lists_every_file_beside_it(path: Path) -> None:
    listed = {(path.parent / name).resolve() for name in yaml.safe_load(path.read_text())["resources"]}
    assert all(entry.exists() for entry in listed)
    assert set(path.parent.glob("*.yaml")) - {path} <= listed


@pytest.mark.parametrize("document", [one for one in ALL if pod_spec(one)], ids=str)
def test_every_mounted_volume_exists_and_is_used(document: Document) -> None:
    mounted = {mount["name"] for one in containers([document]) for mount in one.body.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in pod_spec(document)["volumes"]}


@pytest.mark.parametrize("document", ALL, ids=str)
def test_everything_that_is_named_exists(document: Document) -> None:
    present = {(one.kind, one.name) for one in neighbours(document)}
    if document.path.name == "several-pods.yaml":
        present |= {(one.kind, one.name) for one in documents(EXAMPLES) if one.path.name == "dynamic.yaml"}
    wanted = {("ServiceAccount", name) for _, name in references(document.body, {"serviceAccountName"})}
    wanted |= {("PersistentVolumeClaim", name) for _, name in references(document.body, {"claimName"})}
    wanted |= {("PersistentVolume", name) for _, name in references(document.body, {"volumeName"})}
    wanted |= {("StorageClass", name) for _, name in references(document.body, {"storageClassName"}) if name}
    wanted |= {("ConfigMap", value["name"]) for _, value in references(document.body, {"configMapRef"})}
    secrets = {"secretRef", "nodeStageSecretRef", "nodePublishSecretRef"}
    wanted |= {
        ("Secret", value["name"])
        for _, value in references(document.body, secrets)
        if not value.get("optional") and value["name"]
    }
    parameters = {key: value for key, value in document.body.get("parameters", {}).items() if key.endswith("-name")}
    wanted |= {("Secret", name) for name in parameters.values()}
    assert wanted - present == set()


@pytest.mark.promise("S263")
def test_kubelet_brings_the_secrets_of_pods_that_run_again() -> None:
    (driver,) = of_kind("CSIDriver", among=DRIVER)
    assert driver.body["spec"]["requiresRepublish"] is True
    for path in [*EXAMPLES.glob("*.yaml"), *(DEPLOY / "kubernetes").rglob("*.yaml"), REPOSITORY / "README.md"]:
        text = path.read_text()
        assert text.count("node-stage-secret-name") == text.count("node-publish-secret-name"), path
        assert text.count("nodeStageSecretRef") <= text.count("nodePublishSecretRef"), path


def test_namespaces_that_enforce_restricted_refuse_inline_volumes() -> None:
    (driver,) = of_kind("CSIDriver", among=DRIVER)
    profile = driver.body["metadata"]["labels"]["security.kubernetes.io/csi-ephemeral-volume-profile"]
    assert profile == "baseline"


@pytest.mark.parametrize("policy", of_kind("NetworkPolicy", among=ALL), ids=str)
def test_a_network_policy_opens_ports_that_its_pods_have(policy: Document) -> None:
    wanted = policy.body["spec"]["podSelector"].get("matchLabels", {}).items()
    ports = {
        name
        for one in containers(of_kind("DaemonSet", "Deployment", among=DRIVER))
        if wanted <= one.document.body["spec"]["template"]["metadata"]["labels"].items()
        for port in one.body.get("ports", [])
        for name in (port["name"], port["containerPort"])
    }
    opened = {port["port"] for rule in policy.body["spec"].get("ingress", []) for port in rule.get("ports", [])}
    assert opened <= ports


@pytest.mark.parametrize("service", of_kind("Service", among=ALL), ids=str)
def test_a_service_selects_pods_that_have_its_ports(service: Document) -> None:
    wanted = service.body["spec"]["selector"].items()
    selected = [
        one
        for one in containers(neighbours(service))
        if wanted <= one.document.body["spec"]["template"]["metadata"]["labels"].items()
    ]
    ports = {
        name for one in selected for port in one.body.get("ports", []) for name in (port["name"], port["containerPort"])
    }
    assert selected != []
    assert {port.get("targetPort", port["port"]) for port in service.body["spec"]["ports"]} <= ports


@pytest.mark.parametrize(
    "claim", [one for one in ALL if one.kind == "PersistentVolumeClaim" and one.body["spec"].get("volumeName")], ids=str
)
def test_a_claim_fits_the_volume_that_it_names(claim: Document) -> None:
    """Otherwise it stays pending."""
    spec = claim.body["spec"]
    (volume,) = (one for one in of_kind("PersistentVolume", among=ALL) if one.name == spec["volumeName"])
    assert spec["storageClassName"] == volume.body["spec"]["storageClassName"]
    assert set(spec["accessModes"]) <= set(volume.body["spec"]["accessModes"])
    assert amount(spec["resources"]["requests"]["storage"]) <= amount(volume.body["spec"]["capacity"]["storage"])
    reference = volume.body["spec"].get("claimRef", {"namespace": claim.namespace, "name": claim.name})
    assert (reference["namespace"], reference["name"]) == (claim.namespace, claim.name)


PROGRAMS = {
    "python:3.12-slim-bookworm": {
        *("awk", "bash", "cat", "du", "find", "head", "id", "ls", "python3", "sh", "sleep", "tar", "wc", "xargs")
    }
}
"""That examples may call, by image: of Python, and of Debian's packages that are essential or required."""


@pytest.mark.parametrize(
    "container", [one for one in containers(ALL) if one.body["image"] in PROGRAMS], ids=lambda one: str(one.document)
)
def test_an_example_calls_programs_that_its_image_has(container: Container) -> None:
    assert programs_called(container) <= PROGRAMS[container.body["image"]]


@pytest.mark.parametrize(
    "container", containers(of_kind("Pod", "Job", among=documents(EXAMPLES))), ids=lambda one: str(one.document)
)
def test_the_image_of_an_example_is_known(container: Container) -> None:
    assert container.body["image"] in PROGRAMS


def test_the_cache_has_a_limit_of_memory_that_leaves_room_for_listings() -> None:
    """Without one the page cache of the whole dataset counts as used by the daemon."""
    resources = driver_container(PLAIN, "hayloft-node", "cache").body["resources"]
    assert amount(resources["limits"]["memory"]) >= ListingSettings().memory_bytes + 2 * GIB


def _volume_attributes() -> list[Any]:
    cases = [(one, one.body["parameters"]) for one in of_kind("StorageClass", among=ALL)]
    cases += [(one, value) for one in ALL for _, value in references(one.body, {"volumeAttributes"})]
    return [pytest.param(attributes, id=str(document)) for document, attributes in cases]


@pytest.mark.parametrize("attributes", _volume_attributes())
def test_parameters_of_examples_are_accepted(attributes: dict[str, str]) -> None:
    assert VolumeParameters.parse(attributes).url.bucket


@pytest.mark.parametrize("document", of_kind("VolumeSnapshotClass", "VolumeAttributesClass", among=ALL), ids=str)
def test_parameters_of_classes_for_snapshots_and_changes_are_accepted(document: Document) -> None:
    parameters = document.body["parameters"]
    assert document.body.get("driver", document.body.get("driverName")) == DRIVER_NAME
    if document.kind == "VolumeSnapshotClass":
        assert pin_mode(parameters)
    else:
        assert any(split_refresh(parameters))


@pytest.mark.parametrize("document", of_kind("Secret", among=ALL), ids=str)
def test_keys_of_secrets_are_known(document: Document) -> None:
    assert parse_secret(document.body["stringData"])


@pytest.mark.parametrize("document", of_kind("StorageClass", "PersistentVolume", among=ALL), ids=str)
def test_examples_use_this_driver(document: Document) -> None:
    name = document.body.get("provisioner") or document.body["spec"]["csi"]["driver"]
    assert name == DRIVER_NAME
