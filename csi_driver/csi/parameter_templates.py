"""Templates in StorageClass parameters: ``url: s3://data/${pvc.namespace}/${pvc.name}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from csi_driver.model.errors import InvalidParameter

_METADATA_PREFIX = "csi.storage.k8s.io/"

_SOURCES = {
    "pvc.name": "csi.storage.k8s.io/pvc/name",
    "pvc.metadata.name": "csi.storage.k8s.io/pvc/name",
    "pvc.namespace": "csi.storage.k8s.io/pvc/namespace",
    "pvc.metadata.namespace": "csi.storage.k8s.io/pvc/namespace",
    "pv.name": "csi.storage.k8s.io/pv/name",
    "pv.metadata.name": "csi.storage.k8s.io/pv/name",
}
"""The keys that external-provisioner adds with --extra-create-metadata. Kubernetes allows only letters, digits, dots
and dashes in these names, so none can change the structure of a URL. A name with dots could be a host of its own, which
the author of the claim would choose."""

_HOST_SOURCES = ("pvc.namespace", "pvc.metadata.namespace")
"""What may be part of a host's name: namespaces have no dots, and are made by administrators."""

_HOST = re.compile(r"(?:https?|ftp|sftp|ssh|hdfs|webhdfs)://([^/]*)", re.IGNORECASE)

_TEMPLATE = re.compile(r"\$\{([^}]*)\}")


def expand_templates(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters with their templates replaced, without those that Kubernetes added. Raises InvalidParameter."""
    for key, value in parameters.items():
        host = _HOST.match(value.strip())
        for name in _TEMPLATE.findall(host[1]) if host else ():
            if name not in _HOST_SOURCES:
                raise InvalidParameter(key, f"${{{name}}}", "${pvc.namespace} in the name of a host")
    return {
        key: _TEMPLATE.sub(lambda match, key=key: _value(key, match[1], parameters), value)  # type: ignore[misc]
        for key, value in parameters.items()
        if not key.startswith(_METADATA_PREFIX)
    }


def _value(parameter: str, name: str, parameters: Mapping[str, str]) -> str:
    source = _SOURCES.get(name)
    if source is None:
        allowed = "the templates " + ", ".join(f"${{{known}}}" for known in _SOURCES)
        raise InvalidParameter(parameter, f"${{{name}}}", allowed)
    value = parameters.get(source, "")
    if not value:
        remedy = "Start external-provisioner with --extra-create-metadata, which passes these names to the driver"
        raise InvalidParameter(parameter, f"${{{name}}}", "a template whose name is known", remedy)
    return value
