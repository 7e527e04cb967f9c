"""Messages between the daemon and the process of a listing: JSON, each with its length before it.

JSON in both directions, never pickle: the process of a listing reads what a stranger's store sends, and the daemon runs
as root. Secrets travel over the socket only, never in arguments or the environment.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csi_driver.model.tenant import Tenant
from csi_driver.settings import ListingSettings, PolicySettings
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest, PinFacts, PinRequest, SelectionRequest
from csi_driver.volumes.parameters import VolumeParameters

_LENGTH_BYTES = 4
_LONGEST_BYTES = 16 << 20
"""As the longest gRPC message, which holds the secrets and parameters."""

Message = Mapping[str, Any]


def send(connection: socket.socket, message: Message) -> None:
    """Raises OSError, also TimeoutError."""
    text = json.dumps(message).encode()
    connection.sendall(len(text).to_bytes(_LENGTH_BYTES, "big") + text)


class Receiver:
    """Receives messages from a connection that may have a time-out: after TimeoutError the call may be repeated."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def receive(self) -> Message | None:
        """None at the end of the connection. Raises OSError, also TimeoutError; ValueError for anything else than
        messages."""
        while True:
            length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
            if length > _LONGEST_BYTES:
                raise ValueError("not a message")
            stop = _LENGTH_BYTES + length
            if len(self._received) >= max(stop, _LENGTH_BYTES):
                text, self._received = self._received[_LENGTH_BYTES:stop], self._received[stop:]
                message = json.loads(text)
                if not isinstance(message, dict):
                    raise ValueError("not a message")
                return message
            piece = self._connection.recv(1 << 16)
            if not piece:
                return None
            self._received += piece


def request_message(request: ListingRequest, target: Path, limits: ListingSettings, policy: PolicySettings) -> Message:
    return {
        "parameters": request.parameters.to_context(),
        "secrets": dict(request.secrets),
        "tenant": asdict(request.tenant),
        "policy": policy.model_dump(mode="json"),
        "limits": limits.model_dump(),
        "target": str(target),
        "journal": None if request.journal_path is None else str(request.journal_path),
    }


def pin_message(request: PinRequest, target: Path, limits: ListingSettings, policy: PolicySettings) -> Message:
    described = request_message(request.dataset, target, limits, policy)
    return {**described, "manifest": str(request.manifest_path), "pin": request.mode}


def selection_message(request: SelectionRequest, target: Path, limits: ListingSettings) -> Message:
    return {
        "manifest": str(request.manifest_path),
        "globs": list(request.globs),
        "limits": limits.model_dump(),
        "target": str(target),
    }


def request_from(message: Message) -> tuple[ListingRequest | PinRequest | SelectionRequest, Path, ListingSettings]:
    """The inverse of all three."""
    target, limits = Path(message["target"]), ListingSettings(**message["limits"])
    if "globs" in message:
        return SelectionRequest(Path(message["manifest"]), tuple(message["globs"])), target, limits
    tenant = Tenant(**message["tenant"])
    # Under the operator's policy, as where the request came from: it decides what the listing may reach.
    parameters = VolumeParameters.parse(message["parameters"], PolicySettings(**message["policy"]), tenant)
    journal_path = None if message["journal"] is None else Path(message["journal"])
    request = ListingRequest(parameters, message["secrets"], tenant, journal_path)
    if "pin" in message:
        return PinRequest(request, Path(message["manifest"]), message["pin"]), target, limits
    return request, target, limits


def pin_facts_from(message: Message) -> PinFacts:
    """Raises KeyError, TypeError, ValueError."""
    facts = message["facts"]
    return PinFacts(str(facts["snapshot_id"]), int(facts["pinned_count"]), str(facts["why"]))


def facts_from(message: Message) -> ListingFacts:
    """Raises KeyError, TypeError, ValueError."""
    facts = message["facts"]
    remarks = tuple((str(reason), str(sentence)) for reason, sentence in facts["remarks"])
    return ListingFacts(str(facts["snapshot_id"]), int(facts["total_bytes"]), int(facts["file_count"]), remarks)
