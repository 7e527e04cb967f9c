"""The programs that a cluster consists of. ``.ci/cluster`` makes them."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "helm"),
    *("containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"),
    *("csi-provisioner", "csi-snapshotter", "snapshot-controller", "csi-resizer", "node-helper"),
)


def missing(tools: Path) -> list[str]:
    """Those that ``.ci/cluster`` has not made in ``tools`` (``.tools``)."""
    return [name for name in PROGRAMS if not os.access(tools / "bin" / name, os.X_OK)]
