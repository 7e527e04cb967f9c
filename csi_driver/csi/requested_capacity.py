"""The range of sizes in a request."""

from __future__ import annotations

from typing import NamedTuple

from csi_driver.model.errors import CapacityOutOfRange, InvalidParameter
from csi_driver.rpc.pb import csi_pb2


class RequestedCapacity(NamedTuple):
    """0: not given."""

    required_bytes: int
    limit_bytes: int


def checked_capacity(capacity: csi_pb2.CapacityRange) -> RequestedCapacity:
    """Raises InvalidParameter, CapacityOutOfRange."""
    required_bytes, limit_bytes = capacity.required_bytes, capacity.limit_bytes
    if required_bytes < 0 or limit_bytes < 0:
        raise InvalidParameter("capacity_range", min(required_bytes, limit_bytes), "0 or more bytes")
    if limit_bytes and required_bytes > limit_bytes:
        raise CapacityOutOfRange(
            f"capacity_range: required_bytes ({required_bytes}) is more than limit_bytes ({limit_bytes})"
        )
    return RequestedCapacity(required_bytes, limit_bytes)
