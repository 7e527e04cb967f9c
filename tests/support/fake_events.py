"""The part of an API server that keeps events, in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from csi_driver.kubernetes.api_server import MERGE_PATCH, Answer
from csi_driver.kubernetes.events import Event


class FakeEventApi:
    """Answers as the API server does. ``answer``, if set, is given to every request instead."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        """By path."""
        self.requests: list[tuple[str, str]] = []
        self.answer: Answer | None = None

    def send(self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json") -> Answer:
        self.requests.append((method, path))
        json.dumps(body)
        if self.answer is not None:
            return self.answer
        if method == "POST":
            return self._create(path, dict(body))
        assert (method, content_type) == ("PATCH", MERGE_PATCH)
        if path not in self.events:
            return Answer(404, {"reason": "NotFound"})
        self.events[path].update(body)
        return Answer(200, self.events[path])

    def _create(self, path: str, body: dict[str, Any]) -> Answer:
        involved, metadata = body["involvedObject"], body["metadata"]
        if involved["namespace"] != metadata["namespace"] or f"/namespaces/{metadata['namespace']}/" not in path:
            return Answer(422, {"reason": "Invalid"})
        place = f"{path}/{metadata['name']}"
        if place in self.events:
            return Answer(409, {"reason": "AlreadyExists"})
        self.events[place] = body
        return Answer(201, body)

    def described(self) -> list[tuple[str, str, int]]:
        """Reason, message and count of each event, in the order of their creation."""
        return [(event["reason"], event["message"], event["count"]) for event in self.events.values()]


class RecordedEvents:
    """An ``EventRecorder`` that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[str, str]]:
        """Reason and message of each event since the last call."""
        taken, self.events = self.events, []
        return [(event.reason, event.message) for event in taken]
