"""What holds for the driver's objects of Kubernetes, however they were rendered.

Each check takes the objects that are applied together, and fails with an AssertionError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer.main

from csi_driver import cli
from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.volumes.parameters import VolumeParameters
from tests.architecture.kubernetes_files import Container, Document, containers, pod_spec, references, variables_used
from tests.architecture.kubernetes_schema import violations

COMMANDS: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009  # of a group alone

_LEADER_ELECTION = (
    *("--leader-election", "--leader-election-namespace", "--leader-election-lease-duration"),
    *("--leader-election-renew-deadline", "--leader-election-retry-period"),
)

SIDECAR_FLAGS = {
    "csi-provisioner": {
        "--csi-address",
        "--extra-create-metadata",
        "--feature-gates",
        *_LEADER_ELECTION,
        "--retry-interval-max",
        "--retry-interval-start",
        "--timeout",
    },
    "csi-snapshotter": {
        "--csi-address",
        "--extra-create-metadata",
        "--feature-gates",
        *_LEADER_ELECTION,
        "--retry-interval-max",
        "--timeout",
    },
    "csi-resizer": {
        "--csi-address",
        "--feature-gates",
        "--handle-volume-inuse-error",
        *_LEADER_ELECTION,
        "--modify-timeout",
        "--retry-interval-max",
    },
    "node-driver-registrar": {"--csi-address", "--kubelet-registration-path"},
    "liveness-probe": {"--csi-address", "--health-port"},
    "nginx": set(),
    "owner": set(),
}
"""Of external-provisioner v6, external-snapshotter v8, external-resizer v2, node-driver-registrar v2 and livenessprobe
v2."""

WITHOUT_SCHEMA = {"Certificate", "ServiceMonitor", "VolumeSnapshot", "VolumeSnapshotClass"}
"""Their schemas come with cert-manager, with the Prometheus operator, and with external-snapshotter."""

CHECKS: list[Callable[[list[Document]], None]] = []
"""All checks of this file."""


def check(function: Callable[[list[Document]], None]) -> Callable[[list[Document]], None]:
    CHECKS.append(function)
    return function


def of_kind(*kinds: str, among: list[Document]) -> list[Document]:
    return [document for document in among if document.kind in kinds]


def workloads(driver: list[Document]) -> list[Document]:
    return of_kind("Deployment", "DaemonSet", "StatefulSet", among=driver)


def driver_container(driver: list[Document], workload: str, name: str) -> Container:
    return next(one for one in containers(driver) if (one.document.name, one.name) == (workload, name))


@check
def every_object_is_valid_for_kubernetes(driver: list[Document]) -> None:
    known = (document for document in driver if document.kind not in WITHOUT_SCHEMA)
    assert [fault for document in known for fault in violations(document.body)] == []


@check
def every_flag_exists_in_the_command(driver: list[Document]) -> None:
    for container in containers(driver):
        if container.is_ours:
            command = COMMANDS[container.command]
            known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            assert set(container.flags) <= known, container.name
            required = {parameter.opts[0] for parameter in command.params if parameter.required}
            assert required <= set(container.flags), container.name


@check
def every_flag_of_a_sidecar_is_known(driver: list[Document]) -> None:
    sidecars = [one for one in containers(driver) if not one.is_ours]
    assert {"csi-provisioner"} <= {one.name for one in sidecars} <= set(SIDECAR_FLAGS)
    for container in sidecars:
        assert set(container.flags) <= SIDECAR_FLAGS[container.name], container.name


@check
def every_variable_in_the_arguments_is_set(driver: list[Document]) -> None:
    for container in containers(driver):
        given = {entry["name"] for entry in container.body.get("env", [])}
        for source in container.body.get("envFrom", []):
            if "configMapRef" in source:
                name = source["configMapRef"]["name"]
                (config,) = (one for one in of_kind("ConfigMap", among=driver) if one.name == name)
                given |= set(config.body["data"])
        assert variables_used(container) <= given, container.name


@check
def every_variable_of_the_driver_is_a_setting(driver: list[Document]) -> None:
    known = {parameter.envvar for command in COMMANDS.values() for parameter in command.params}
    (config,) = of_kind("ConfigMap", among=driver)
    given = {entry["name"] for one in containers(driver) for entry in one.body.get("env", [])}
    assert {name for name in (*config.body["data"], *given) if name.startswith("HAYLOFT_")} <= known
    assert all(name.startswith(("HAYLOFT_", "OTEL_")) for name in config.body["data"])


@check
def services_of_the_cluster_cannot_change_settings(driver: list[Document]) -> None:
    """Kubernetes sets HAYLOFT_METRICS_PORT in every pod beside a Service called hayloft-metrics."""
    assert all(pod_spec(document)["enableServiceLinks"] is False for document in workloads(driver))


@check
def every_mounted_volume_exists_and_is_used(driver: list[Document]) -> None:
    for document in workloads(driver):
        mounted = {mount["name"] for one in containers([document]) for mount in one.body.get("volumeMounts", [])}
        claims = document.body["spec"].get("volumeClaimTemplates", [])
        made = [volume["name"] for volume in pod_spec(document)["volumes"]]
        assert mounted == {*made, *(claim["metadata"]["name"] for claim in claims)}, document.name


@check
def every_object_that_is_named_exists(driver: list[Document]) -> None:
    present = {(one.kind, one.name) for one in driver}
    for document in workloads(driver):
        wanted = {("ServiceAccount", name) for _, name in references(document.body, {"serviceAccountName"})}
        wanted |= {("ConfigMap", value["name"]) for _, value in references(document.body, {"configMapRef"})}
        secrets = [value for _, value in references(document.body, {"secretRef"})]
        wanted |= {("Secret", value["name"]) for value in secrets if not value.get("optional")}
        assert wanted <= present, document.name


@check
def every_selector_finds_pods_and_every_port_has_a_number(driver: list[Document]) -> None:
    pods = [one.body["spec"]["template"] for one in workloads(driver)]

    def selected(labels: dict[str, str]) -> list[dict[str, Any]]:
        found = [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]
        assert len(found) == 1, labels
        return [port for one in found[0]["spec"]["containers"] for port in one.get("ports", [])]

    for document in workloads(driver):
        selected(document.body["spec"]["selector"]["matchLabels"])
        for container in containers([document]):
            names = {port["name"] for port in container.body.get("ports", [])}
            probes = [
                probe["httpGet"]["port"]
                for key, probe in container.body.items()
                if key.endswith("Probe") and "exec" not in probe
            ]
            assert set(probes) <= names, container.name
    for document in of_kind("PodDisruptionBudget", among=driver):
        selected(document.body["spec"]["selector"]["matchLabels"])
    for document in of_kind("NetworkPolicy", among=driver):
        ports = {port["name"] for port in selected(document.body["spec"]["podSelector"]["matchLabels"])}
        named = {port for _, port in references(document.body, {"port"}) if isinstance(port, str)}
        assert named <= ports, document.name
    for document in of_kind("Service", among=driver):
        numbers = {port["name"]: port["containerPort"] for port in selected(document.body["spec"]["selector"])}
        for port in document.body["spec"]["ports"]:
            # The address of a headless Service is that of the pod, where the port is the container's.
            assert port["port"] == numbers[port["targetPort"]]
    for document in of_kind("ServiceMonitor", among=driver):
        wanted = document.body["spec"]["selector"]["matchLabels"]
        services = [
            one for one in of_kind("Service", among=driver) if wanted.items() <= one.body["metadata"]["labels"].items()
        ]
        assert services
        assert {one.namespace for one in services} == {document.namespace}
        offered = {port["name"] for one in services for port in one.body["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in document.body["spec"]["endpoints"]} <= offered


@check
def a_binding_gives_an_existing_role_to_an_existing_account(driver: list[Document]) -> None:
    accounts = {(one.name, one.namespace) for one in of_kind("ServiceAccount", among=driver)}
    bindings = of_kind("ClusterRoleBinding", "RoleBinding", among=driver)
    assert bindings
    for document in bindings:
        role = document.body["roleRef"]
        place = document.namespace if role["kind"] == "Role" else "default"
        assert (role["kind"], role["name"], place) in {(one.kind, one.name, one.namespace) for one in driver}
        assert {(subject["name"], subject["namespace"]) for subject in document.body["subjects"]} <= accounts


@check
def containers_meet_at_the_same_sockets(driver: list[Document]) -> None:
    node, cache = driver_container(driver, "hayloft-node", "hayloft"), driver_container(driver, "hayloft-node", "cache")
    keeper = driver_container(driver, "hayloft-keeper", "keeper")
    assert node.on_the_host(node.flags["--daemon-socket"]) == cache.on_the_host(cache.flags["--socket"])
    assert cache.on_the_host(cache.flags["--keeper-socket"]) == keeper.on_the_host(keeper.flags["--socket"])


@check
def kubelet_is_told_the_socket_that_the_node_plugin_serves(driver: list[Document]) -> None:
    node = driver_container(driver, "hayloft-node", "hayloft")
    endpoint, registry = node.on_the_host(node.flags["--endpoint"]), f"{node.flags['--kubelet-dir']}/plugins_registry"
    assert endpoint.startswith(f"{node.flags['--kubelet-dir']}/plugins/{DRIVER_NAME}/")
    registrars = [one for one in containers(driver) if one.name == "node-driver-registrar"]
    assert len(registrars) + ("--registration-dir" in node.flags) == 1, "one of them registers the driver"
    for registrar in registrars:
        assert registrar.flags["--kubelet-registration-path"] == endpoint
        assert registrar.on_the_host("/registration") == registry
    if not registrars:
        assert f"unix://{endpoint}" == node.flags["--endpoint"], "it tells kubelet the path that it serves at"
        assert node.on_the_host(node.flags["--registration-dir"]) == node.flags["--registration-dir"] == registry


@check
def sidecars_talk_to_the_driver_of_their_pod(driver: list[Document]) -> None:
    for beside in containers(workloads(driver)):
        if not beside.is_ours and beside.document.name != "hayloft-tier":
            plugin = driver_container(driver, beside.document.name, "hayloft")
            assert beside.on_the_host(beside.flags["--csi-address"]) == plugin.on_the_host(plugin.flags["--endpoint"])


@check
def something_answers_the_probes_of_kubelet(driver: list[Document]) -> None:
    for workload in ("hayloft-node", "hayloft-controller"):
        plugin = driver_container(driver, workload, "hayloft")
        assert plugin.body["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "healthz"}
        (port,) = (port["containerPort"] for port in plugin.body["ports"] if port["name"] == "healthz")
        beside = [one for one in containers(driver) if (one.document.name, one.name) == (workload, "liveness-probe")]
        answering = [one.flags["--health-port"] for one in (plugin, *beside) if "--health-port" in one.flags]
        assert answering == [str(port)], "one of them listens there"
        assert ("readinessProbe" in plugin.body) == (not beside)


@check
def mounts_of_the_node_pod_reach_the_host(driver: list[Document]) -> None:
    """Without Bidirectional a pod would silently read an empty directory of the host."""
    for name in ("hayloft", "cache"):
        container = driver_container(driver, "hayloft-node", name)
        mount = next(one for one in container.body["volumeMounts"] if one["name"] == "kubelet-dir")
        assert mount["mountPropagation"] == "Bidirectional"
        # A mount has one path for everybody who speaks about it: kubelet, the node plugin and the daemon.
        assert container.on_the_host(mount["mountPath"]) == mount["mountPath"]
        assert container.body["securityContext"]["privileged"] is True


@check
def directories_of_the_daemon_are_mounted(driver: list[Document]) -> None:
    cache = driver_container(driver, "hayloft-node", "cache")
    mounted = {mount["mountPath"] for mount in cache.body["volumeMounts"]}
    assert {cache.flags["--cache-dir"], cache.flags["--state-dir"]} <= mounted
    (config,) = of_kind("ConfigMap", among=driver)
    registry = config.body["data"]["HAYLOFT_REGISTRY"]
    for container in (cache, driver_container(driver, "hayloft-controller", "hayloft")):
        of_registry = {one["mountPath"] for one in container.body["volumeMounts"] if one["name"] == "registry-dir"}
        assert of_registry == (set() if "://" in registry else {registry})


@check
def the_keeper_is_never_updated_together_with_the_rest(driver: list[Document]) -> None:
    (keeper,) = (one for one in of_kind("DaemonSet", among=driver) if one.name == "hayloft-keeper")
    assert keeper.body["spec"]["updateStrategy"] == {"type": "OnDelete"}


@check
def keeper_and_daemon_run_on_the_same_nodes(driver: list[Document]) -> None:
    node, keeper = (one for one in of_kind("DaemonSet", among=driver) if one.name != "hayloft-tier")
    for field in ("affinity", "tolerations", "priorityClassName", "securityContext"):
        assert pod_spec(node).get(field) == pod_spec(keeper).get(field)


@check
def the_driver_object_says_what_the_driver_does(driver: list[Document]) -> None:
    (document,) = of_kind("CSIDriver", among=driver)
    assert document.name == DRIVER_NAME
    assert document.body["spec"]["attachRequired"] is False
    assert document.body["spec"]["volumeLifecycleModes"] in (["Persistent", "Ephemeral"], ["Persistent"])


@check
def the_driver_learns_the_namespace_of_every_volume(driver: list[Document]) -> None:
    """Without these an inline volume of any tenant would be trusted as one of an administrator."""
    (document,) = of_kind("CSIDriver", among=driver)
    assert document.body["spec"]["podInfoOnMount"] is True
    assert "--extra-create-metadata" in driver_container(driver, "hayloft-controller", "csi-provisioner").flags


@check
def several_controllers_have_one_registry_and_a_leader(driver: list[Document]) -> None:
    (controller,) = of_kind("Deployment", among=driver)
    (config,) = of_kind("ConfigMap", among=driver)
    assert controller.body["spec"]["replicas"] == 1 or "://" in config.body["data"]["HAYLOFT_REGISTRY"]
    assert "--leader-election" in driver_container(driver, "hayloft-controller", "csi-provisioner").flags


@check
def every_pod_has_a_network_policy_or_none_has(driver: list[Document]) -> None:
    selected = [one.body["spec"]["podSelector"]["matchLabels"] for one in of_kind("NetworkPolicy", among=driver)]
    if selected:
        for document in workloads(driver):
            labels = document.body["spec"]["template"]["metadata"]["labels"]
            assert any(wanted.items() <= labels.items() for wanted in selected), document.name
    pods = [pod_spec(one) for one in workloads(driver)]
    assert not any(pod.get("hostNetwork") for pod in pods), "policies do not hold for the host's network"


@check
def everything_is_in_one_namespace_and_has_the_name_of_the_driver(driver: list[Document]) -> None:
    cluster_wide = {
        "ClusterRole",
        "ClusterRoleBinding",
        "CSIDriver",
        "Namespace",
        "StorageClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "VolumeSnapshotClass",
    }
    secrets = [one for one in driver if one.name == "hayloft-provisioner-secrets"]
    places = {one.namespace for one in driver if one.kind not in cluster_wide and one not in secrets}
    assert len(places) == 1
    for document in driver:
        assert document.body["metadata"]["labels"]["app.kubernetes.io/name"] == "hayloft"
        assert document.kind in cluster_wide or "namespace" in document.body["metadata"], document.name


@check
def every_image_has_a_version(driver: list[Document]) -> None:
    for container in containers(driver):
        assert re.search(r"(:v?\d|@sha256:)", container.body["image"]), container.name


@check
def classes_are_of_this_driver_with_parameters_that_it_accepts(driver: list[Document]) -> None:
    for document in of_kind("StorageClass", among=driver):
        assert document.body["provisioner"] == DRIVER_NAME
        assert VolumeParameters.parse(document.body["parameters"]).url.bucket
