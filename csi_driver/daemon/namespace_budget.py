"""What the inline volumes of one namespace may hold of a resource of the node, all together."""

from __future__ import annotations

import threading

from csi_driver.model.errors import BudgetExceeded
from csi_driver.model.tenant import Tenant
from csi_driver.settings import PolicySettings


class NamespaceBudget:
    """May be used from any thread. Volumes of trusted authors have no limit.

    ``_lock`` guards ``_held``."""

    def __init__(self, policy: PolicySettings, limit_bytes: int, refusal: str) -> None:
        """``refusal`` says what was refused and how to get more."""
        self._policy = policy
        self._limit_bytes = limit_bytes
        self._refusal = refusal
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, int]] = {}
        """Namespace and bytes by mount id."""

    def take(self, mount_id: str, tenant: Tenant, count_bytes: int, *, adopted: bool = False) -> None:
        """Counts so many bytes until ``end``, in place of what the mount held before. Raises BudgetExceeded; what was
        ``adopted`` was granted before."""
        if not count_bytes or self._policy.trusts(tenant):
            return
        with self._lock:
            others = (held for key, held in self._held.items() if key != mount_id)
            held = sum(count for namespace, count in others if namespace == tenant.namespace)
            if held + count_bytes > self._limit_bytes and not adopted:
                raise BudgetExceeded(
                    f"{self._refusal}: {count_bytes} bytes are not available: the inline volumes of a namespace may "
                    f"have {self._limit_bytes} bytes together, and those of {tenant.namespace!r} have {held}; a volume "
                    "of a PersistentVolumeClaim has no such limit, nor has a namespace of --trusted-namespace"
                )
            self._held[mount_id] = tenant.namespace, count_bytes

    def end(self, mount_id: str) -> None:
        """A mount that holds nothing is success."""
        with self._lock:
            self._held.pop(mount_id, None)
