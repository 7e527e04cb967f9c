"""The programs that a cluster consists of. ``.ci/cluster`` makes them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "helm"),
    *("containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"),
    *("csi-provisioner", "csi-snapshotter", "snapshot-controller", "csi-resizer", "node-helper"),
)

API_SERVER_PROGRAMS = ("etcd", "kube-apiserver", "kubectl", "helm")
"""Of a cluster without a node (``control_plane_only``). ``.ci/cluster api-server`` makes them."""


def missing(tools: Path, programs: Iterable[str] = PROGRAMS) -> list[str]:
    """Those that ``.ci/cluster`` has not made in ``tools`` (``.tools``)."""
    return [name for name in programs if not os.access(tools / "bin" / name, os.X_OK)]
