"""Configuration files of the cluster's programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hayloft_lab.cluster.node import NODE_ADDRESS

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
POD_NETWORK = "10.88.0.0/16"
POD_GATEWAY = "10.88.0.1"
"""The node's address on the bridge of the pods."""
CLUSTER_DNS = "10.96.0.10"
"""Nothing answers there: without an address kubelet reports an event for each pod."""


def kubeconfig(server: str, authority: str, token: str) -> str:
    """``authority`` is the path of a certificate."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": "e2e", "user": {"token": token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "current-context": "e2e",
        }
    )


def kubelet(cgroup: str, feature_gates: Mapping[str, bool]) -> str:
    """``cgroup`` is the parent of the cgroups of all containers; it exists."""
    configuration: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": NODE_ADDRESS,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        # The machine may have either version of cgroups, and other processes in their root.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        # The disk is shared with everything else on the machine.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "featureGates": dict(feature_gates),
    }
    return json.dumps(configuration)


def containerd(sandbox_image: str, runc: str) -> str:
    """Of version 3. ``runc`` is a path."""
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""\
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'

[grpc]
address = '{CONTAINERD_SOCKET}'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{sandbox_image}'

[{runtime}]
# Without CAP_SYS_RESOURCE no process may get a lower value than containerd has.
restrict_oom_score_adj = true

[{runtime}.cni]
bin_dirs = ['/usr/lib/cni', '/opt/cni/bin']
conf_dir = '/var/lib/cni/net.d'

[{runtime}.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[{runtime}.containerd.runtimes.runc.options]
BinaryName = '{runc}'
SystemdCgroup = false
"""


def pod_network() -> str:
    """A bridge on the node, without any way out of it."""
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "isDefaultGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NETWORK, "gateway": POD_GATEWAY}]]},
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})
