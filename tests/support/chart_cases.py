"""Values of the chart for every kind of cluster, and what they render."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from typing import Any

from tests.architecture.kubernetes_files import CHART, Document, bodies_in
from tools import plain_manifests

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
        "allowedDatasets": {"team-a": ["s3://team-a-data", "https://minio.team-a.svc:9000"], "*": ["s3://public"]},
        "identityNamespaces": ["team-a", "team-b"],
        "trustedNamespaces": ["platform"],
        "sharedCacheNamespaces": ["*"],
        "inlineVolumes": False,
        "inlineVolumeProfile": "restricted",
    },
    "podIdentity": {"audiences": ["sts.amazonaws.com", "api://AzureADTokenExchange"], "tokenExpirationSeconds": 7200},
    "tracing": {"endpoint": "http://collector.observability:4317", "ratio": 0.1},
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
    "web": {"port": 9811},
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
    "sidecars": {
        "sidecars": {
            "registrar": "registry.example.com/registrar:v2.17.0",
            "livenessProbe": "example.com/probe:v2.19.0",
        }
    },
    "start-up taint": {"nodes": {"startupTaint": True, "readyCondition": True}, "events": {"enabled": False}},
    "own lease times": S3
    | {
        "leaderElection": {"leaseDuration": "1m", "renewDeadline": "40s", "retryPeriod": "5s", "release": False},
        "snapshots": {"enabled": True},
    },
    "a limit and no topology": {"nodes": {"maxVolumes": 100, "topologyFromLabels": False}},
    "other kubelet": {"nodes": {"kubeletDir": "/var/lib/k0s/kubelet"}, "registry": {"url": "/srv/registry"}},
    "snapshots": S3
    | {
        "snapshots": {
            "enabled": True,
            "groups": True,
            "classes": [
                {"name": "pinned", "default": True, "deletionPolicy": "Retain", "parameters": {"versions": "required"}}
            ],
        },
    },
    "a tier": S3 | {"tier": {"enabled": True}},
    "a tier on nodes": S3
    | {
        "tier": {
            "enabled": True,
            "kind": "DaemonSet",
            "nodeSelector": {"hayloft.dev/tier": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "storage": {"hostPath": "/mnt/k8s-disks/0/tier"},
            "origins": ["https://my-bucket.s3.eu-west-1.amazonaws.com"],
            "tls": {"mode": "certManager", "issuer": {"name": "tier"}},
        },
        "imagePullSecrets": ["registry"],
    },
    "a tier without TLS": {
        "tier": {"enabled": True, "tls": {"mode": "none"}, "storage": {"storageClassName": "local-nvme"}},
        "events": {"enabled": False},
        "nodes": {"topologyFromLabels": False},
        "networkPolicy": {"enabled": False},
    },
    "nothing optional": {
        "resizer": {"enabled": False},
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
    return [Document(CHART / "templates", body) for body in bodies_in(result.stdout)]


def rendered(values: dict[str, Any], kubernetes: str = "1.37.2") -> list[Document]:
    return _rendered(json.dumps(values), kubernetes)
