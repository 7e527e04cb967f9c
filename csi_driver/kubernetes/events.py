"""Events of Kubernetes: what ``kubectl describe`` shows of a claim, a pod or a snapshot. Values only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Protocol

from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.telemetry import REDACTED

_LONGEST_MESSAGE = 1000
"""Characters; the API server takes 1,024 bytes in its newer form of events."""
_LONGEST_NAME = 200

_USER_IN_URL = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """The claim, pod or snapshot that an event is about. ``kubectl describe`` finds events by the ``uid``."""

    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str = "v1"


@dataclass(frozen=True, slots=True)
class Event:
    """Equal events are one object in Kubernetes, with a count; so a message holds no number that changes, unless each
    is to be seen, as a progress is."""

    about: ObjectReference
    reason: str
    """In CamelCase."""
    message: str
    """Without secrets."""
    is_warning: bool = False

    @property
    def object_name(self) -> str:
        """The same for an equal event, also from another process."""
        text = "\0".join((self.about.uid, self.reason, self.message))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return f"{self.about.name[:_LONGEST_NAME].rstrip('.-')}.{digest}"

    def body(self, *, time: str, host: str, count: int = 1) -> dict[str, Any]:
        """The object for the API server. ``time`` is RFC 3339."""
        message = _masked(self.message.encode("utf-8", "replace").decode())
        if len(message) > _LONGEST_MESSAGE:
            message = message[: _LONGEST_MESSAGE - 1] + "…"
        about = self.about
        involved = {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
        }
        if about.uid:
            involved["uid"] = about.uid
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.object_name, "namespace": about.namespace},
            "involvedObject": involved,
            "type": "Warning" if self.is_warning else "Normal",
            "reason": self.reason,
            "message": message,
            "source": {"component": DRIVER_NAME, "host": host},
            "reportingComponent": DRIVER_NAME,
            "reportingInstance": host,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": count,
        }


def _masked(message: str) -> str:
    """The second line of defence, behind messages that quote no secret; the log has the same."""
    return REDACTED if "PRIVATE KEY" in message else _USER_IN_URL.sub(f"://{REDACTED}@", message)


class EventRecorder(Protocol):
    """Takes events on their way to Kubernetes."""

    def record(self, event: Event) -> None:
        """Returns at once, and never raises. The event may be lost."""
