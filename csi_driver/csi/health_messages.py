"""Conditions as messages of CSI: of 1.13 (VolumeHealth, StorageBackendHealth), and of 1.12 and before
(VolumeCondition), which kubelet reads up to 1.36."""

from __future__ import annotations

from collections.abc import Iterable

from csi_driver.model.conditions import Condition, Severity, distinct
from csi_driver.rpc.pb import csi_pb2

_STATUS = {
    Severity.DEGRADED: csi_pb2.DEGRADED,
    Severity.INACCESSIBLE: csi_pb2.INACCESSIBLE,
    Severity.DATA_LOSS: csi_pb2.DATA_LOSS,
}
_STORAGE_STATUS = {
    Severity.DEGRADED: csi_pb2.STORAGE_DEGRADED,
    Severity.INACCESSIBLE: csi_pb2.STORAGE_UNREACHABLE,
}

_HEALTHY = "The volume is mounted and readable."


def volume_health(volume_id: str, conditions: Iterable[Condition]) -> csi_pb2.VolumeHealth:
    """Without entries: nothing is wrong."""
    entry = csi_pb2.VolumeHealth.VolumeHealthEntry
    found = distinct(conditions)
    return csi_pb2.VolumeHealth(
        volume_id=volume_id,
        health_statuses=[entry(status=_STATUS[one.severity], reason=one.reason, message=one.message) for one in found],
    )


def volume_condition(conditions: Iterable[Condition], notes: Iterable[str] = ()) -> csi_pb2.VolumeCondition:
    """One for all: the old message has no place for several."""
    found = distinct(conditions)
    said = " ".join(one.message for one in found) or "; ".join(notes) or _HEALTHY
    return csi_pb2.VolumeCondition(abnormal=bool(found), message=said)


def storage_health(conditions: Iterable[Condition]) -> csi_pb2.NodeGetStorageHealthResponse:
    """Of a node's storage: of those conditions that concern it."""
    entry = csi_pb2.NodeGetStorageHealthResponse.StorageBackendHealth
    return csi_pb2.NodeGetStorageHealthResponse(
        backend_health=[
            entry(status=_STORAGE_STATUS[one.of_node], reason=one.reason, message=one.message)
            for one in distinct(conditions)
            if one.of_node is not None
        ]
    )
