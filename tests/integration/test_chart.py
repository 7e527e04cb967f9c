"""The chart renders what the driver can start, for every kind of cluster, and refuses wrong values by name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import yaml

from csi_driver.volumes.parameters import PARAMETERS
from tests.architecture.driver_manifests import CHECKS, driver_container, of_kind
from tests.architecture.kubernetes_files import CHART, Document, containers, pod_spec
from tools import plain_manifests
from tools.chart_values import parameters, settings

pytestmark = pytest.mark.helm

S3 = {"registry": {"url": "s3://my-bucket/hayloft-registry"}}

CLASS = {
    "name": "train",
    "default": True,
    "mountOptions": ["read_ahead_kb=8192"],
    "parameters": {
        "url": "s3://my-bucket/${pvc.namespace}/train",
        "csi.storage.k8s.io/provisioner-secret-name": "train",
        "csi.storage.k8s.io/provisioner-secret-namespace": "default",
    },
}

EVERYTHING: dict[str, Any] = {
    "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": ["registry"],
    "registry": {"url": "s3://my-bucket/hayloft-registry", "endpoint": "https://s3.example.com"},
    "policy": {
        "allowedEndpoints": ["https://s3.example.com", "https://other.example.com"],
        "allowedAddresses": ["10.1.0.0/16", "10.2.0.0/16"],
        "refusedAddresses": ["203.0.113.0/24"],
        "identityEndpoints": ["https://s3.example.com"],
        "trustedNamespaces": ["platform"],
        "sharedCacheNamespaces": ["*"],
        "inlineVolumes": False,
        "inlineVolumeProfile": "restricted",
    },
    "settings": {"HAYLOFT_LISTING_OBJECTS": 20_000_000, "HAYLOFT_PASSTHROUGH": False, "HAYLOFT_FREE_FLOOR": "5%"},
    "cache": {"limit": "80%", "volume": {"hostPath": "/mnt/k8s-disks/0/hayloft"}},
    "nodes": {
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "maxUnavailable": 3,
        "podLabels": {"azure.workload.identity/use": "true"},
        "podAnnotations": {"example.com/team": "storage"},
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"},
    },
    "controller": {
        "replicas": 3,
        "nodeSelector": {"pool": "system"},
        "podLabels": {"azure.workload.identity/use": "true"},
        "podAnnotations": {"example.com/team": "storage"},
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"},
    },
    "rbac": {"secretNamespaces": ["default", "research"]},
    "storageClasses": [CLASS, {"name": "plain", "parameters": {"url": "gs://bucket/data"}}],
    "metrics": {"port": 9999, "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "p"}}},
    "networkPolicy": {"metricsNamespaces": ["monitoring", "prometheus"]},
    "namespace": {"create": True},
}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "object store": S3,
    "everything": EVERYTHING,
    "all nodes": {"nodes": {"all": True}},
    "instance store": S3 | {"cache": {"limit": "800GiB", "volume": {"hostPath": "/mnt/k8s-disks/0/hayloft"}}},
    "ephemeral cache": S3 | {"cache": {"volume": {"type": "ephemeral", "ephemeral": {"storageClassName": "nvme"}}}},
    "Bottlerocket": S3
    | {"nodes": {"seLinuxOptions": {"user": "system_u", "role": "system_r", "type": "super_t", "level": "s0"}}},
    "other kubelet": {"nodes": {"kubeletDir": "/var/lib/k0s/kubelet"}, "registry": {"url": "/srv/registry"}},
    "nothing optional": {
        "metrics": {"port": 0},
        "networkPolicy": {"enabled": False},
        "namespace": {"criticalPodsQuota": False},
        "restartOnChange": False,
        "nodes": {"all": True, "tolerations": []},
        "controller": {"tolerations": []},
    },
}


def run_helm(*arguments: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    helm = plain_manifests.find_helm()
    assert helm is not None
    return subprocess.run(
        [helm, *arguments, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@cache
def _rendered(values: str, kubernetes: str) -> list[Document]:
    arguments = ("template", "hayloft", str(CHART), "--namespace", "storage", "--kube-version", kubernetes)
    result = run_helm(*arguments, values=json.loads(values))
    assert result.returncode == 0, result.stderr
    return [Document(CHART / "templates", body) for body in yaml.safe_load_all(result.stdout) if body]


def rendered(values: dict[str, Any], kubernetes: str = "1.37.2") -> list[Document]:
    return _rendered(json.dumps(values), kubernetes)


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
        *(("events", verb) for verb in ("create", "update", "patch")),
        ("secrets", "get"),
    }
    bound = {subject["name"] for binding in driver for subject in binding.body.get("subjects", [])}
    assert bound == {"hayloft-controller"}
    assert one("ServiceAccount", "hayloft-node", driver).body["automountServiceAccountToken"] is False


@pytest.mark.promise("S305")
def test_secrets_can_be_limited_to_namespaces() -> None:
    driver = rendered({"rbac": {"secretNamespaces": ["default", "research"]}})
    rules = one("ClusterRole", "hayloft-provisioner", driver).body["rules"]
    assert not any("secrets" in rule["resources"] for rule in rules)
    roles = [document for document in of_kind("Role", among=driver) if document.name == "hayloft-provisioner-secrets"]
    assert [document.namespace for document in roles] == ["default", "research"]
    assert all(document.body["rules"][0]["verbs"] == ["get"] for document in roles)


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
        "HAYLOFT_TRUSTED_NAMESPACE": "platform",
        "HAYLOFT_SHARED_CACHE_NAMESPACE": "*",
        "HAYLOFT_LOG_LEVEL": "info",
        "HAYLOFT_LOG_FORMAT": "json",
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
    (document,) = of_kind("CSIDriver", among=driver)
    assert document.body["spec"]["volumeLifecycleModes"] == ["Persistent"]
    assert {container.body["image"] for container in containers(driver) if container.is_ours} == {
        f"hayloft/hayloft@sha256:{'0' * 64}"
    }


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
