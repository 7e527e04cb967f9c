"""The author of a volume: an administrator, or a user who may create pods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """Facts about a volume that its attributes cannot change: Kubernetes gives them."""

    namespace: str = ""
    """Of the pod (inline volume) or of the claim; empty: not known, as for a PersistentVolume made by hand."""
    inline: bool = False
    """True for a volume in a pod's specification, which every user who may create a pod can write. Other volumes come
    from a StorageClass or a PersistentVolume, which only an administrator can make."""


ADMINISTRATOR = Tenant()
"""A volume that an administrator made, of a namespace that is not known."""
