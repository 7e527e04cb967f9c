"""What the API server adds to an object, and `kubectl get -o yaml` prints."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from csi_driver.cli.migration.yaml_documents import mapping_of

_METADATA = (
    *("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink"),
    "finalizers",  # of another driver: its successor would never be deleted
)
_ANNOTATIONS = (
    *("pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/"),
    "kubectl.kubernetes.io/last-applied-configuration",
)
"""Beginnings of names."""


def drop_server_fields(body: MutableMapping[str, Any]) -> list[str]:
    """Takes them out; returns their names."""
    metadata = mapping_of(body, "metadata")
    dropped = [name for name in _METADATA if metadata.pop(name, None) is not None]
    if body.pop("status", None) is not None:
        dropped.append("status")
    claim = mapping_of(mapping_of(body, "spec"), "claimRef")
    dropped += [f"claimRef.{name}" for name in ("uid", "resourceVersion") if claim.pop(name, None) is not None]
    annotations = mapping_of(metadata, "annotations")
    for name in [name for name in annotations if str(name).startswith(_ANNOTATIONS)]:
        del annotations[name]
        dropped.append(str(name))
        if not annotations:
            del metadata["annotations"]
    return dropped
