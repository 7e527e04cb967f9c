"""What a node plugin changes at its Node once the driver is registered there: it removes the start-up taint, and
reports a condition for controllers that taint nodes themselves.

The account of the node plugin may patch Nodes, and not read them: a patch that changes nothing is answered with the
Node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

from csi_driver.kubernetes.api_server import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Answer

STARTUP_TAINT = "hayloft.dev/agent-not-ready"
"""Key of the taint that new nodes are made with, so that no pod comes before the driver."""

READY_CONDITION = "hayloft.dev/AgentReady"
"""Type of the condition."""


class NodeApi(Protocol):
    """``ApiServer``, and its twin in tests."""

    def send(self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json") -> Answer:
        """See ``ApiServer.send``."""


def remove_startup_taint(api: NodeApi, node: str) -> Answer:
    """Removes the taint from the Node of this name, whatever its value and effect; a Node without it is success. The
    answer is that of the last request: 409 if the Node was changed meanwhile, which is worth a retry. Blocks as
    ``ApiServer.send``."""
    found = api.send("PATCH", _path(node), {}, MERGE_PATCH)
    if not found.is_success:
        return found
    change = without_startup_taint(found.body)
    return found if change is None else api.send("PATCH", _path(node), change, MERGE_PATCH)


def without_startup_taint(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """The merge patch by which a Node loses the taint, and nothing if it was changed since it was read. None: it does
    not have the taint."""
    taints = (node.get("spec") or {}).get("taints") or []
    others = [taint for taint in taints if taint.get("key") != STARTUP_TAINT]
    if len(others) == len(taints):
        return None
    # A patch replaces the list: without the version, a taint that another one adds meanwhile would be lost.
    version = (node.get("metadata") or {}).get("resourceVersion", "")
    return {"metadata": {"resourceVersion": version}, "spec": {"taints": others or None}}


def report_ready(api: NodeApi, node: str, time: str) -> Answer:
    """Sets the condition at the Node of this name. ``time`` is RFC 3339. Blocks as ``ApiServer.send``."""
    condition = {
        "type": READY_CONDITION,
        "status": "True",
        "reason": "DriverRegistered",
        "message": "Hayloft is registered with kubelet, and its cache daemon answers.",
        "lastTransitionTime": time,
        "lastHeartbeatTime": time,
    }
    return api.send("PATCH", f"{_path(node)}/status", {"status": {"conditions": [condition]}}, STRATEGIC_MERGE_PATCH)


def _path(node: str) -> str:
    return f"/api/v1/nodes/{quote(node, safe='')}"
