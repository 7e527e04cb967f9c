"""The Kubernetes files are valid, name nothing that does not exist, and fit the commands that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from csi_driver import cli
from csi_driver.objects.credentials import parse_secret
from csi_driver.settings import DRIVER_NAME
from csi_driver.volumes.parameters import VolumeParameters
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
    references,
    variables_used,
)
from tests.architecture.source_tree import REPOSITORY

KUBERNETES = "1.36"

COMMANDS: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009  # of a group alone

SIDECAR_FLAGS = {
    "csi-provisioner": {
        "--csi-address",
        "--extra-create-metadata",
        "--leader-election",
        "--leader-election-namespace",
        "--retry-interval-max",
        "--retry-interval-start",
        "--timeout",
    },
    "node-driver-registrar": {"--csi-address", "--kubelet-registration-path"},
    "liveness-probe": {"--csi-address", "--health-port"},
}
"""Of external-provisioner v6, node-driver-registrar v2 and livenessprobe v2."""

DRIVER = documents(DEPLOY / "kubernetes")
ALL = [*documents(DEPLOY), *documents(EXAMPLES), *documents_in_markdown(REPOSITORY / "README.md")]


def driver_container(workload: str, name: str) -> Container:
    return next(one for one in containers(DRIVER) if (one.document.name, one.name) == (workload, name))


def of_kind(*kinds: str, among: list[Document]) -> list[Document]:
    return [document for document in among if document.kind in kinds]


def neighbours(document: Document) -> list[Document]:
    """What is applied together with a document: the whole folder for driver and benchmark, the file for an example."""
    if DEPLOY / "benchmarks" in document.path.parents:
        return documents(DEPLOY / "benchmarks")
    return DRIVER if DEPLOY in document.path.parents else [one for one in ALL if one.path == document.path]


@pytest.mark.parametrize("document", ALL, ids=str)
def test_document_is_valid_for_kubernetes(document: Document) -> None:
    assert kubernetes_validate.validate(document.body, KUBERNETES, strict=True) == KUBERNETES


@pytest.mark.parametrize("path", kustomizations(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_kustomization_lists_every_file_beside_it(path: Path) -> None:
    listed = {(path.parent / name).resolve() for name in yaml.safe_load(path.read_text())["resources"]}
    assert all(entry.exists() for entry in listed)
    assert set(path.parent.glob("*.yaml")) - {path} <= listed


@pytest.mark.parametrize(
    "container", [one for one in containers(DRIVER) if one.is_ours], ids=lambda one: f"{one.document.name}/{one.name}"
)
def test_every_flag_exists_in_the_command(container: Container) -> None:
    command = COMMANDS[container.command]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert set(container.flags) <= known
    required = {parameter.opts[0] for parameter in command.params if parameter.required}
    assert required <= set(container.flags)


@pytest.mark.parametrize(
    "container",
    [one for one in containers(DRIVER) if one.body["image"].startswith("registry.k8s.io/sig-storage/")],
    ids=lambda one: f"{one.document.name}/{one.name}",
)
def test_every_flag_of_a_sidecar_is_known(container: Container) -> None:
    assert set(container.flags) <= SIDECAR_FLAGS[container.name]


@pytest.mark.parametrize("container", containers(DRIVER), ids=lambda one: f"{one.document.name}/{one.name}")
def test_every_variable_in_the_arguments_is_set(container: Container) -> None:
    given = {entry["name"] for entry in container.body.get("env", [])}
    for source in container.body.get("envFrom", []):
        if "configMapRef" in source:
            (config,) = (
                one for one in of_kind("ConfigMap", among=DRIVER) if one.name == source["configMapRef"]["name"]
            )
            given |= set(config.body["data"])
    assert variables_used(container) <= given


def test_every_variable_of_the_configuration_is_a_setting() -> None:
    known = {parameter.envvar for command in COMMANDS.values() for parameter in command.params}
    (config,) = of_kind("ConfigMap", among=DRIVER)
    assert set(config.body["data"]) <= known


@pytest.mark.parametrize("document", of_kind("Deployment", "DaemonSet", among=DRIVER), ids=str)
def test_services_of_the_cluster_cannot_change_settings(document: Document) -> None:
    """Kubernetes sets HAYLOFT_METRICS_PORT in every pod beside a Service called hayloft-metrics."""
    assert pod_spec(document)["enableServiceLinks"] is False


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


@pytest.mark.parametrize("document", of_kind("ClusterRoleBinding", "RoleBinding", among=DRIVER), ids=str)
def test_a_binding_gives_an_existing_role_to_an_existing_account(document: Document) -> None:
    role = document.body["roleRef"]
    assert (role["kind"], role["name"]) in {(one.kind, one.name) for one in DRIVER}
    accounts = {(one.name, one.namespace) for one in of_kind("ServiceAccount", among=DRIVER)}
    assert {(subject["name"], subject["namespace"]) for subject in document.body["subjects"]} <= accounts


def test_containers_meet_at_the_same_sockets() -> None:
    node, cache = driver_container("hayloft-node", "hayloft"), driver_container("hayloft-node", "cache")
    keeper = driver_container("hayloft-keeper", "keeper")
    assert node.on_the_host(node.flags["--daemon-socket"]) == cache.on_the_host(cache.flags["--socket"])
    assert cache.on_the_host(cache.flags["--keeper-socket"]) == keeper.on_the_host(keeper.flags["--socket"])


def test_kubelet_is_told_the_socket_that_the_node_plugin_serves() -> None:
    node = driver_container("hayloft-node", "hayloft")
    registrar = driver_container("hayloft-node", "node-driver-registrar")
    assert registrar.flags["--kubelet-registration-path"] == node.on_the_host(node.flags["--endpoint"])
    assert f"/plugins/{DRIVER_NAME}/" in registrar.flags["--kubelet-registration-path"]


@pytest.mark.parametrize(
    ("workload", "sidecar"),
    [
        ("hayloft-node", "node-driver-registrar"),
        ("hayloft-node", "liveness-probe"),
        ("hayloft-controller", "csi-provisioner"),
        ("hayloft-controller", "liveness-probe"),
    ],
)
def test_sidecars_talk_to_the_driver_of_their_pod(workload: str, sidecar: str) -> None:
    driver, beside = driver_container(workload, "hayloft"), driver_container(workload, sidecar)
    assert beside.on_the_host(beside.flags["--csi-address"]) == driver.on_the_host(driver.flags["--endpoint"])


def test_mounts_of_the_node_pod_reach_the_host() -> None:
    """Without Bidirectional a pod would silently read an empty directory of the host."""
    for name in ("hayloft", "cache"):
        container = driver_container("hayloft-node", name)
        mount = next(one for one in container.body["volumeMounts"] if one["name"] == "kubelet-dir")
        assert mount["mountPropagation"] == "Bidirectional"
        # A mount has one path for everybody who speaks about it: kubelet, the node plugin and the daemon.
        assert container.on_the_host(mount["mountPath"]) == mount["mountPath"]
        assert container.body["securityContext"]["privileged"] is True


def test_the_keeper_is_never_updated_together_with_the_rest() -> None:
    (keeper,) = (one for one in of_kind("DaemonSet", among=DRIVER) if one.name == "hayloft-keeper")
    assert keeper.body["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_keeper_and_daemon_run_on_the_same_nodes() -> None:
    node, keeper = of_kind("DaemonSet", among=DRIVER)
    for field in ("affinity", "tolerations", "priorityClassName"):
        assert pod_spec(node)[field] == pod_spec(keeper)[field]


def test_driver_object_says_what_the_driver_does() -> None:
    (driver,) = of_kind("CSIDriver", among=DRIVER)
    assert driver.name == DRIVER_NAME
    assert driver.body["spec"]["attachRequired"] is False
    assert driver.body["spec"]["podInfoOnMount"] is True
    assert driver.body["spec"]["volumeLifecycleModes"] == ["Persistent", "Ephemeral"]


def _volume_attributes() -> list[Any]:
    cases = [(one, one.body["parameters"]) for one in of_kind("StorageClass", among=ALL)]
    cases += [(one, value) for one in ALL for _, value in references(one.body, {"volumeAttributes"})]
    return [pytest.param(attributes, id=str(document)) for document, attributes in cases]


@pytest.mark.parametrize("attributes", _volume_attributes())
def test_parameters_of_examples_are_accepted(attributes: dict[str, str]) -> None:
    assert VolumeParameters.parse(attributes).url.bucket


@pytest.mark.parametrize("document", of_kind("Secret", among=ALL), ids=str)
def test_keys_of_secrets_are_known(document: Document) -> None:
    assert parse_secret(document.body["stringData"])


@pytest.mark.parametrize("document", of_kind("StorageClass", "PersistentVolume", among=ALL), ids=str)
def test_examples_use_this_driver(document: Document) -> None:
    name = document.body.get("provisioner") or document.body["spec"]["csi"]["driver"]
    assert name == DRIVER_NAME
