"""Annotations of claims, from the API server of the cluster that this process runs in.

external-provisioner passes names and no annotations. Its account, which is the pod's, may read claims already, since it
looks for those that wait for a volume; so this needs no right of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from csi_driver.csi.parameter_templates import Annotations
from csi_driver.model.errors import InvalidParameter, KubernetesUnavailable

ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 5.0
_MOST_BYTES = 2 << 20
"""etcd holds objects of up to 1.5 MiB."""


def claim_annotations(directory: Path = ACCOUNT_DIRECTORY) -> Annotations | None:
    """None outside of a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (directory / "token").exists():
        return None
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return lambda namespace, name: _read(server, directory, namespace, name)


def _read(server: str, directory: Path, namespace: str, name: str) -> Mapping[str, str]:
    """One request; the pod's token is read anew, since it is replaced each hour. Raises InvalidParameter,
    KubernetesUnavailable."""
    import urllib3  # here: most controllers never need it

    where = f"{server}/api/v1/namespaces/{quote(namespace, safe='')}/persistentvolumeclaims/{quote(name, safe='')}"
    try:
        headers = {"Authorization": f"Bearer {(directory / 'token').read_text().strip()}", "Accept": "application/json"}
        with urllib3.PoolManager(ca_certs=str(directory / "ca.crt"), timeout=_TIMEOUT_S, retries=False) as pool:
            answer = pool.request("GET", where, headers=headers, redirect=False, preload_content=False)
            body = answer.read(_MOST_BYTES + 1)
            status = int(answer.status)
            answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise KubernetesUnavailable(
            f"the claim {namespace}/{name} cannot be read from the API server ({type(error).__name__}), and the "
            "StorageClass uses its annotations; the call is retried"
        ) from None
    if status == 403:
        raise KubernetesUnavailable(
            f"the API server does not let the controller's account read the claim {namespace}/{name}, and the "
            "StorageClass uses its annotations; the account needs get on persistentvolumeclaims (rbac.yaml)"
        )
    if status == 404:
        raise InvalidParameter("csi.storage.k8s.io/pvc/name", f"{namespace}/{name}", "a claim that exists")
    try:
        if status != 200 or len(body) > _MOST_BYTES:
            raise ValueError("no claim")
        found = json.loads(body)["metadata"].get("annotations") or {}
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KubernetesUnavailable(
            f"the API server answered HTTP {status} for the claim {namespace}/{name}, and the StorageClass uses its "
            "annotations; the call is retried"
        ) from None
