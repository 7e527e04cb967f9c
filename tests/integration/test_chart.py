"""The chart renders what the driver can start, for every kind of cluster, and refuses wrong values by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from csi_driver.cli.options import _POLICY as POLICY_PANEL
from csi_driver.volumes.parameters import PARAMETERS
from tests.architecture.driver_manifests import CHECKS, COMMANDS, driver_container, of_kind
from tests.architecture.kubernetes_files import CHART, Document, containers, pod_spec
from tests.architecture.test_pod_security import check_level
from tests.support.chart_cases import CASES, CLASS, EVERYTHING, S3, rendered, run_helm
from tools import plain_manifests
from tools.chart_values import parameters, settings

pytestmark = pytest.mark.helm


def one(kind: str, name: str, among: list[Document]) -> Document:
    (found,) = (document for document in of_kind(kind, among=among) if document.name == name)
    return found


@pytest.mark.promise("S300")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_rendering(check: Callable[[list[Document]], None], case: str) -> None:
    check(rendered(CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case: str) -> None:
    result = run_helm("lint", "--strict", str(CHART), values=CASES[case])
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_object_is_in_the_namespace_of_the_release() -> None:
    driver = rendered(EVERYTHING)
    assert one("Namespace", "storage", driver)
    assert {document.namespace for document in of_kind("Deployment", "DaemonSet", "Service", among=driver)} == {
        "storage"
    }


@pytest.mark.promise("S302")
def test_a_registry_in_an_object_store_has_two_controllers_and_a_disruption_budget() -> None:
    driver = rendered(S3)
    controller = one("Deployment", "hayloft-controller", driver)
    assert controller.body["spec"]["replicas"] == 2
    assert "podAntiAffinity" in pod_spec(controller)["affinity"]
    assert one("PodDisruptionBudget", "hayloft-controller", driver).body["spec"]["maxUnavailable"] == 1


@pytest.mark.promise("S302")
def test_a_registry_of_one_node_has_one_controller() -> None:
    driver = rendered({})
    assert one("Deployment", "hayloft-controller", driver).body["spec"]["replicas"] == 1
    assert of_kind("PodDisruptionBudget", among=driver) == []


@pytest.mark.promise("S304")
@pytest.mark.parametrize(
    ("kubernetes", "asked", "given"),
    [("1.36.9", True, None), ("1.37.0", True, True), ("v1.38.1-gke.100", True, True), ("1.37.0", False, None)],
)
def test_the_scheduler_waits_for_the_driver_where_kubernetes_can(
    kubernetes: str, asked: bool, given: bool | None
) -> None:
    driver = rendered({"csiDriver": {"preventPodSchedulingIfMissing": asked}}, kubernetes)
    (document,) = of_kind("CSIDriver", among=driver)
    assert document.body["spec"].get("preventPodSchedulingIfMissing") is given


@pytest.mark.promise("S304")
def test_nodes_have_a_limit_of_volumes_whose_appearance_lets_waiting_pods_run() -> None:
    plugin = driver_container(rendered({}), "hayloft-node", "hayloft")
    assert int(plugin.flags["--max-volumes"]) >= 1000


@pytest.mark.promise("S304")
def test_kubernetes_that_external_provisioner_does_not_support_is_refused() -> None:
    result = run_helm("template", "hayloft", str(CHART), "--kube-version", "1.33.9", values={})
    assert result.returncode != 0
    assert "kubeVersion: >=1.34.0-0" in result.stderr


def node_expressions(driver: list[Document]) -> list[list[tuple[str, str]]]:
    """Keys and operators of each term by which a node is selected."""
    affinity = pod_spec(one("DaemonSet", "hayloft-node", driver))["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [[(entry["key"], entry["operator"]) for entry in term["matchExpressions"]] for term in terms]


@pytest.mark.promise("S306")
def test_the_driver_runs_on_gpu_nodes_and_on_those_that_are_labelled() -> None:
    terms = node_expressions(rendered({}))
    assert all(("hayloft.dev/node", "NotIn") in term and ("kubernetes.io/os", "In") in term for term in terms)
    assert {term[-1][0] for term in terms} >= {"nvidia.com/gpu.present", "hayloft.dev/node"}


@pytest.mark.promise("S306")
def test_one_value_makes_it_run_on_all_nodes() -> None:
    assert node_expressions(rendered({"nodes": {"all": True}})) == [
        [("kubernetes.io/os", "In"), ("hayloft.dev/node", "NotIn")]
    ]


@pytest.mark.promise("S305")
def test_the_accounts_have_the_rights_that_the_provisioner_uses_and_no_others() -> None:
    driver = rendered({})
    rules = one("ClusterRole", "hayloft-provisioner", driver).body["rules"]
    assert {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]} == {
        *(("persistentvolumes", verb) for verb in ("get", "list", "watch", "create", "patch", "delete")),
        *(("persistentvolumeclaims", verb) for verb in ("get", "list", "watch", "update")),
        *(("storageclasses", verb) for verb in ("get", "list", "watch")),
        ("volumeattributesclasses", "get"),
        *(("events", verb) for verb in ("create", "update", "patch")),
        ("secrets", "get"),
    }
    assert roles_of("hayloft-controller", driver) == {"hayloft-provisioner", "hayloft-resizer"}
    assert roles_of("hayloft-node", driver) == {"hayloft-node-events"}
    assert one("ServiceAccount", "hayloft-node", driver).body["automountServiceAccountToken"] is False


def roles_of(account: str, driver: list[Document]) -> set[str]:
    bindings = of_kind("ClusterRoleBinding", "RoleBinding", among=driver)
    subjects = [(one.body["roleRef"]["name"], subject["name"]) for one in bindings for subject in one.body["subjects"]]
    return {role for role, name in subjects if name == account}


@pytest.mark.promise("S305")
def test_the_node_plugin_alone_has_a_token_and_may_make_events_and_nothing_else() -> None:
    driver = rendered({})
    (rule,) = one("ClusterRole", "hayloft-node-events", driver).body["rules"]
    assert rule == {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
    node = one("DaemonSet", "hayloft-node", driver)
    having = [
        container.name
        for container in containers([node])
        for mount in container.body["volumeMounts"]
        if mount["name"] == "api-access"
    ]
    assert having == ["hayloft"]
    off = rendered({"events": {"enabled": False}})
    assert roles_of("hayloft-node", off) == set()
    assert "api-access" not in str(one("DaemonSet", "hayloft-node", off).body)


def rights_of(role: str, driver: list[Document]) -> set[tuple[str, str]]:
    rules = one("ClusterRole", role, driver).body["rules"]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.promise("S507")
@pytest.mark.parametrize(
    ("value", "flag", "right"),
    [
        ("startupTaint", "--remove-startup-taint", ("nodes", "patch")),
        ("readyCondition", "--ready-condition", ("nodes/status", "patch")),
    ],
)
def test_a_node_plugin_may_change_its_node_only_where_that_is_asked_for_and_under_a_policy(
    value: str, flag: str, right: tuple[str, str]
) -> None:
    plain = rendered({})
    assert flag not in driver_container(plain, "hayloft-node", "hayloft").flags
    assert of_kind("ValidatingAdmissionPolicy", among=plain) == []
    driver = rendered({"nodes": {value: True}, "events": {"enabled": False}})
    assert flag in driver_container(driver, "hayloft-node", "hayloft").flags
    assert roles_of("hayloft-node", driver) == {"hayloft-node-readiness"}
    assert rights_of("hayloft-node-readiness", driver) == {right}
    policy = one("ValidatingAdmissionPolicy", "hayloft-node", driver).body["spec"]
    assert policy["failurePolicy"] == "Fail"
    assert "'system:serviceaccount:storage:hayloft-node'" in policy["matchConditions"][0]["expression"]
    binding = one("ValidatingAdmissionPolicyBinding", "hayloft-node", driver).body["spec"]
    assert binding == {"policyName": "hayloft-node", "validationActions": ["Deny"]}
    having = [one.name for one in containers(driver) if "api-access" in str(one.body["volumeMounts"])]
    assert having == ["hayloft"]


@pytest.mark.promise("S508")
@pytest.mark.parametrize("release", [True, False])
def test_each_sidecar_of_the_controller_has_the_lease_times_and_may_release_its_lease(release: bool) -> None:
    values = {"leaderElection": {"leaseDuration": "1m", "release": release}, **CASES["snapshots"]}
    driver = rendered(values)
    for name in ("csi-provisioner", "csi-snapshotter", "csi-resizer"):
        sidecar = driver_container(driver, "hayloft-controller", name)
        assert sidecar.flags["--leader-election-lease-duration"] == "1m"
        assert sidecar.flags["--leader-election-retry-period"] == "2s"
        assert ("ReleaseLeaderElectionOnExit=true" in sidecar.flags.get("--feature-gates", "")) is release


@pytest.mark.promise("S389")
@pytest.mark.parametrize(
    ("nodes", "strategy"),
    [
        ({}, {"maxSurge": "10%", "maxUnavailable": 0}),
        ({"maxUnavailable": 3}, {"maxSurge": 3, "maxUnavailable": 0}),
        ({"surge": False}, {"maxUnavailable": "10%"}),
    ],
)
def test_an_upgrade_starts_the_new_pod_beside_the_old_one(nodes: dict[str, Any], strategy: dict[str, Any]) -> None:
    driver = rendered({"nodes": nodes, "sidecars": {"registrar": ""}})
    spec = one("DaemonSet", "hayloft-node", driver).body["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": strategy}
    # With minReadySeconds, Kubernetes 1.37 may let old and new pod run on.
    assert "minReadySeconds" not in spec
    probe = driver_container(driver, "hayloft-node", "cache").body.get("startupProbe", {})
    assert probe.get("initialDelaySeconds") == (10 if "maxSurge" in strategy else None)
    for name, flags in (("cache", {"--supervise", "--standby"}), ("hayloft", {"--standby"})):
        assert flags <= set(driver_container(driver, "hayloft-node", name).flags)
    ports = [port for container in containers(driver) for port in container.body.get("ports", [])]
    assert not any("hostPort" in port for port in ports), "two pods on one node cannot have one"


@pytest.mark.promise("S389")
def test_an_upgrade_ends_the_old_pod_first_where_a_registrar_would_unregister_the_new_one() -> None:
    image = "registry.k8s.io/sig-storage/csi-node-driver-registrar:v2.17.0"
    driver = rendered({"sidecars": {"registrar": image}})
    strategy = one("DaemonSet", "hayloft-node", driver).body["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": "10%"}


@pytest.mark.promise("S305")
def test_secrets_can_be_limited_to_namespaces() -> None:
    driver = rendered({"rbac": {"secretNamespaces": ["default", "research"]}})
    rules = one("ClusterRole", "hayloft-provisioner", driver).body["rules"]
    assert not any("secrets" in rule["resources"] for rule in rules)
    roles = [document for document in of_kind("Role", among=driver) if document.name == "hayloft-provisioner-secrets"]
    assert [document.namespace for document in roles] == ["default", "research"]
    assert all(document.body["rules"][0]["verbs"] == ["get"] for document in roles)


@pytest.mark.promise("S335")
def test_snapshots_are_a_sidecar_its_rights_and_classes() -> None:
    driver = rendered(CASES["snapshots"])
    controller = one("Deployment", "hayloft-controller", driver)
    names = {container["name"] for container in pod_spec(controller)["containers"]}
    assert names >= {"csi-provisioner", "csi-snapshotter", "csi-resizer"}
    (snapshot_class,) = of_kind("VolumeSnapshotClass", among=driver)
    assert snapshot_class.body["driver"] == "csi.hayloft.dev"
    assert snapshot_class.body["deletionPolicy"] == "Retain"
    assert snapshot_class.body["parameters"] == {"versions": "required"}
    assert snapshot_class.body["metadata"]["annotations"] == {"snapshot.storage.kubernetes.io/is-default-class": "true"}
    rules = one("ClusterRole", "hayloft-provisioner", driver).body["rules"]
    assert any("volumesnapshots" in rule["resources"] for rule in rules)
    plain = rendered({})
    assert not any(document.name == "hayloft-snapshotter" for document in of_kind("ClusterRole", among=plain))
    without = one("Deployment", "hayloft-controller", plain)
    assert "csi-snapshotter" not in {container["name"] for container in pod_spec(without)["containers"]}


@pytest.mark.promise("S335")
def test_the_resizer_has_no_right_to_secrets_pods_and_to_write_claims() -> None:
    rules = one("ClusterRole", "hayloft-resizer", rendered({})).body["rules"]
    assert {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]} == {
        *(("persistentvolumes", verb) for verb in ("get", "list", "watch", "patch")),
        *(("persistentvolumeclaims", verb) for verb in ("get", "list", "watch")),
        ("persistentvolumeclaims/status", "patch"),
        *(("volumeattributesclasses", verb) for verb in ("get", "list", "watch")),
    }
    nothing = rendered(CASES["nothing optional"])
    assert not any(document.name == "hayloft-resizer" for document in of_kind("ClusterRole", among=nothing))


def test_a_pod_whose_cache_ends_with_it_is_replaced_by_hand() -> None:
    driver = rendered(CASES["ephemeral cache"])
    node = one("DaemonSet", "hayloft-node", driver)
    assert node.body["spec"]["updateStrategy"] == {"type": "OnDelete"}
    (volume,) = (volume for volume in pod_spec(node)["volumes"] if volume["name"] == "cache-dir")
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "nvme"
    assert claim["resources"]["requests"]["storage"] == "500Gi"


def test_options_of_selinux_are_those_of_node_plugin_daemon_and_keeper() -> None:
    driver = rendered(CASES["Bottlerocket"])
    for document in of_kind("DaemonSet", among=driver):
        assert pod_spec(document)["securityContext"]["seLinuxOptions"]["type"] == "super_t"


def test_a_changed_setting_restarts_the_pods_that_read_it() -> None:
    def checksums(values: dict[str, Any]) -> list[str]:
        return [
            one(kind, name, rendered(values)).body["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for kind, name in (("Deployment", "hayloft-controller"), ("DaemonSet", "hayloft-node"))
        ]

    before, after = checksums({}), checksums({"settings": {"HAYLOFT_SCRUB_RATE": "0"}})
    assert all(old != new for old, new in zip(before, after, strict=True))
    keeper = one("DaemonSet", "hayloft-keeper", rendered({}))
    assert "annotations" not in keeper.body["spec"]["template"]["metadata"]


def test_values_reach_the_processes() -> None:
    driver = rendered(EVERYTHING)
    (config,) = of_kind("ConfigMap", among=driver)
    assert config.body["data"] == {
        "HAYLOFT_REGISTRY": "s3://my-bucket/hayloft-registry",
        "HAYLOFT_REGISTRY_ENDPOINT": "https://s3.example.com",
        "HAYLOFT_CACHE_LIMIT": "80%",
        "HAYLOFT_ALLOWED_ENDPOINT": "https://s3.example.com https://other.example.com",
        "HAYLOFT_ALLOWED_ADDRESS": "10.1.0.0/16 10.2.0.0/16",
        "HAYLOFT_IDENTITY_ENDPOINT": "https://s3.example.com",
        "HAYLOFT_ALLOWED_DATASET": "*=s3://public team-a=s3://team-a-data team-a=https://minio.team-a.svc:9000",
        "HAYLOFT_IDENTITY_NAMESPACE": "team-a team-b",
        "HAYLOFT_TRUSTED_NAMESPACE": "platform",
        "HAYLOFT_SHARED_CACHE_NAMESPACE": "*",
        "HAYLOFT_LOG_LEVEL": "info",
        "HAYLOFT_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.observability:4317",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
        "HAYLOFT_LISTING_OBJECTS": "20000000",
        "HAYLOFT_PASSTHROUGH": "false",
        "HAYLOFT_FREE_FLOOR": "5%",
    }
    cache = driver_container(driver, "hayloft-node", "cache")
    # The flag of the node's own address would hide a variable.
    refused = [argument for argument in cache.body["args"] if argument.startswith("--refused-address=")]
    assert refused == ["--refused-address=$(NODE_ADDRESS)", "--refused-address=203.0.113.0/24"]
    assert cache.on_the_host(cache.flags["--cache-dir"]) == "/mnt/k8s-disks/0/hayloft"
    assert cache.flags["--metrics-port"] == "9999"
    assert cache.flags["--web-port"] == "9811"
    assert "9811" not in str(cache.body["ports"]), "it listens on loopback alone"
    (document,) = of_kind("CSIDriver", among=driver)
    assert document.body["spec"]["volumeLifecycleModes"] == ["Persistent"]
    assert {container.body["image"] for container in containers(driver) if container.is_ours} == {
        f"hayloft/hayloft@sha256:{'0' * 64}"
    }


@pytest.mark.promise("S403")
@pytest.mark.parametrize(("kubernetes", "in_secrets"), [("1.34.0", None), ("1.35.0", True), ("1.37.2", True)])
def test_kubelet_makes_tokens_for_the_audiences_and_puts_them_among_the_secrets_where_it_can(
    kubernetes: str, in_secrets: bool | None
) -> None:
    spec = one("CSIDriver", "csi.hayloft.dev", rendered(EVERYTHING, kubernetes)).body["spec"]
    assert spec["tokenRequests"] == [
        {"audience": "sts.amazonaws.com", "expirationSeconds": 7200},
        {"audience": "api://AzureADTokenExchange", "expirationSeconds": 7200},
    ]
    assert spec["requiresRepublish"] is True
    assert spec.get("serviceAccountTokenInSecrets") is in_secrets


def test_no_token_is_made_unless_an_audience_is_named() -> None:
    spec = one("CSIDriver", "csi.hayloft.dev", rendered({})).body["spec"]
    assert not {"tokenRequests", "serviceAccountTokenInSecrets"} & set(spec)


def test_every_flag_of_the_policy_has_a_value_of_the_chart_or_a_setting() -> None:
    flags = {parameter.envvar for parameter in COMMANDS["cache"].params if parameter.rich_help_panel == POLICY_PANEL}
    assert "HAYLOFT_ALLOWED_DATASET" in flags
    of_values = set(one("ConfigMap", "hayloft-config", rendered(EVERYTHING)).body["data"])
    of_values.add("HAYLOFT_REFUSED_ADDRESS")  # as flags: test_values_reach_the_processes
    assert flags - of_values <= set(settings())


@pytest.mark.promise("S413")
def test_a_controller_with_a_registry_in_an_object_store_passes_the_level_of_the_page() -> None:
    name = "hayloft-controller with a registry in an object store"
    check_level(name, "hayloft-controller", rendered(S3))


def test_a_storage_class_has_the_parameters_and_is_the_default() -> None:
    document = one("StorageClass", "train", rendered({"storageClasses": [CLASS]}))
    assert document.body["parameters"] == CLASS["parameters"]
    assert document.body["mountOptions"] == ["read_ahead_kb=8192"]
    assert document.body["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}


def test_every_parameter_of_volumes_is_allowed_in_a_class() -> None:
    assert set(parameters()) >= set(PARAMETERS)
    values = {"storageClasses": [{"name": "a", "parameters": dict.fromkeys(parameters(), "x")}]}
    assert set(one("StorageClass", "a", rendered(values)).body["parameters"]) == set(parameters())


def test_every_setting_is_allowed() -> None:
    (config,) = of_kind("ConfigMap", among=rendered({"settings": dict.fromkeys(settings(), "1")}))
    assert set(settings()) <= set(config.body["data"])


@pytest.mark.promise("S301")
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"regsitry": {"url": "s3://b/p"}}, "additional properties 'regsitry' not allowed"),
        ({"registry": {"ulr": "s3://b/p"}}, "at '/registry': additional properties 'ulr' not allowed"),
        ({"registry": {"url": "relative"}}, "at '/registry/url'"),
        ({"registry": "s3://b/p"}, "registry"),
        ({"controller": {"replicas": "two"}}, "at '/controller/replicas': got string"),
        ({"controller": {"replicas": 2}}, "controller.replicas: 2 replicas need one registry"),
        ({"nodes": {"all": "yes"}}, "at '/nodes/all': got string, want boolean"),
        ({"nodes": {"labels": []}}, "nodes.labels: no label is given"),
        ({"nodes": {"kubeletDir": "kubelet"}}, "at '/nodes/kubeletDir'"),
        ({"cache": {"limit": 800}}, "at '/cache/limit': got number, want string"),
        ({"cache": {"limit": "much"}}, "at '/cache/limit'"),
        ({"cache": {"volume": {"type": "emptyDir"}}}, "at '/cache/volume/type'"),
        ({"log": {"level": "loud"}}, "at '/log/level'"),
        ({"settings": {"HAYLOFT_TURBO": "1"}}, "at '/settings': additional properties 'HAYLOFT_TURBO' not allowed"),
        ({"settings": {"HAYLOFT_SOCKET": "/x"}}, "at '/settings': additional properties 'HAYLOFT_SOCKET' not allowed"),
        ({"policy": {"allowedDatasets": {"team-a": "s3://b"}}}, "at '/policy/allowedDatasets/team-a': got string"),
        ({"policy": {"allowedDatasets": {"team-a": ["b"]}}}, "at '/policy/allowedDatasets/team-a/0'"),
        (
            {"policy": {"allowedDatasets": {"Team": ["s3://b"]}}},
            "at '/policy/allowedDatasets': additional properties 'Team'",
        ),
        ({"podIdentity": {"tokenExpirationSeconds": 60}}, "at '/podIdentity/tokenExpirationSeconds'"),
        ({"policy": {"trustedNamespaces": "platform"}}, "at '/policy/trustedNamespaces': got string, want array"),
        (
            {"storageClasses": [{"name": "a", "parameters": {"url": "s3://b/p", "bucket": "b"}}]},
            "at '/storageClasses/0/parameters': additional properties 'bucket' not allowed",
        ),
        (
            {"storageClasses": [{"name": "a", "parameters": {"url": "s3://b/p", "fileMode": 292}}]},
            "at '/storageClasses/0/parameters/fileMode': got number, want string",
        ),
        ({"storageClasses": [{"name": "a"}]}, "at '/storageClasses/0': missing property 'parameters'"),
        ({"storageClasses": [{"name": "a", "parameters": {}}]}, "missing property 'url'"),
        ({"metrics": {"port": 0, "serviceMonitor": {"enabled": True}}}, "metrics.serviceMonitor.enabled: there are no"),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled: it finds the metrics through the Service",
        ),
        ({"leaderElection": {"leaseDuration": 15}}, "at '/leaderElection/leaseDuration'"),
        ({"tracing": {"endpoint": "collector:4317"}}, "at '/tracing/endpoint'"),
        ({"tracing": {"sampler": "sometimes"}}, "at '/tracing/sampler'"),
        ({"tracing": {"ratio": 10}}, "at '/tracing/ratio'"),
        ({"leaderElection": {"retryPeriod": "often"}}, "at '/leaderElection/retryPeriod'"),
        (
            {"nodes": {"startupTaint": True}, "sidecars": {"registrar": "registry.example.com/registrar:v2"}},
            "nodes.startupTaint, nodes.readyCondition: with sidecars.registrar",
        ),
        # By these labels the pods are found.
        ({"nodes": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "at '/nodes/podLabels/app.kubernetes.io~1name'"),
        ({"cache": {"resources": {"limit": {}}}}, "at '/cache/resources': additional properties 'limit' not allowed"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    result = run_helm("template", "hayloft", str(CHART), values=values)
    assert result.returncode != 0
    assert named in result.stderr


def notes(values: dict[str, Any]) -> str:
    """What an installation prints at its end."""
    result = run_helm("install", "hayloft", str(CHART), "--namespace", "storage", "--dry-run=client", values=values)
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("defaults", ["hayloft.dev/node=true", "suits a cluster of ONE node", "Name a dataset by a StorageClass"]),
        ("all nodes", ["runs on every Linux node"]),
        ("everything", ["create secret generic hayloft-credentials", "train  (s3://my-bucket/${pvc.namespace}/train)"]),
        ("instance store", ["in /var/lib/hayloft and /mnt/k8s-disks/0/hayloft, until it is deleted"]),
        ("ephemeral cache", ["drain the node first"]),
    ],
)
def test_the_notes_say_what_to_do_next_and_what_an_uninstallation_leaves(case: str, said: list[str]) -> None:
    text = notes(CASES[case])
    assert "kubectl -n storage rollout status daemonset/hayloft-node" in text
    assert "helm uninstall hayloft" in text
    for part in said:
        assert part in text


@pytest.mark.promise("S303")
def test_the_plain_manifests_are_rendered_from_the_chart() -> None:
    assert plain_manifests.differences(helm=plain_manifests.find_helm()) == []
