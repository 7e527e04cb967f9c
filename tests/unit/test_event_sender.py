"""Events on their way to the API server: counted, few, and lost without harm."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.kubernetes.api_server import Answer
from csi_driver.kubernetes.event_sender import BURST, MOST_PENDING, REFILL_S, REPEAT_S, EventSender
from csi_driver.kubernetes.events import Event, ObjectReference
from tests.support.fake_events import FakeEventApi

POD = ObjectReference("Pod", "team-a", "trainer-0", "1-2-3")
FAILED = Event(POD, "WarmupFailed", "Warmup of v has failed: why", is_warning=True)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def api() -> FakeEventApi:
    return FakeEventApi()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sender(api: FakeEventApi, clock: Clock) -> EventSender:
    """Its thread is not started: the tests send step by step."""
    return EventSender(api, "node-1", clock=clock, now=lambda: datetime(2026, 1, 31, 12, tzinfo=UTC))


def drain(sender: EventSender) -> None:
    while sender.send_one() is not None:
        pass


def test_an_event_is_as_kubectl_shows_it(sender: EventSender, api: FakeEventApi) -> None:
    sender.record(FAILED)
    drain(sender)
    (body,) = api.events.values()
    assert re.fullmatch(r"trainer-0\.[0-9a-f]{16}", body["metadata"].pop("name"))
    assert body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "team-a"},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "team-a", "name": "trainer-0", "uid": "1-2-3"
        },
        "type": "Warning",
        "reason": "WarmupFailed",
        "message": "Warmup of v has failed: why",
        "source": {"component": "csi.hayloft.dev", "host": "node-1"},
        "reportingComponent": "csi.hayloft.dev",
        "reportingInstance": "node-1",
        "firstTimestamp": "2026-01-31T12:00:00Z",
        "lastTimestamp": "2026-01-31T12:00:00Z",
        "count": 1,
    }  # fmt: skip


@pytest.mark.promise("S386")
def test_equal_events_are_one_object_with_a_count_that_is_sent_rarely(
    sender: EventSender, api: FakeEventApi, clock: Clock
) -> None:
    for _ in range(10):
        sender.record(FAILED)
        drain(sender)
    assert len(api.requests) == 1
    clock.now_s += REPEAT_S
    sender.record(FAILED)
    drain(sender)
    assert api.described() == [("WarmupFailed", FAILED.message, 11)]
    assert [method for method, _ in api.requests] == ["POST", "PATCH"]


@pytest.mark.promise("S386")
def test_an_event_that_an_earlier_process_has_sent_is_counted(api: FakeEventApi, clock: Clock) -> None:
    for _ in range(3):
        sender = EventSender(api, "node-1", clock=clock)
        sender.record(FAILED)
        drain(sender)
    assert api.described() == [("WarmupFailed", FAILED.message, 3)]


def test_an_event_that_kubernetes_has_forgotten_is_made_anew(
    sender: EventSender, api: FakeEventApi, clock: Clock
) -> None:
    sender.record(FAILED)
    drain(sender)
    api.events.clear()
    clock.now_s += REPEAT_S
    sender.record(FAILED)
    drain(sender)
    assert api.described() == [("WarmupFailed", FAILED.message, 1)]


@pytest.mark.promise("S387")
@pytest.mark.parametrize("answer", [Answer(0, {}, "ConnectionRefusedError"), Answer(500, {}), Answer(429, {})])
def test_events_wait_for_an_api_server_that_is_away_and_the_oldest_are_lost(
    sender: EventSender, api: FakeEventApi, answer: Answer
) -> None:
    api.answer = answer
    for number in range(MOST_PENDING + 50):
        sender.record(Event(replace(POD, name=f"pod-{number}"), "Reason", "message"))
    pauses = [sender.send_one() for _ in range(8)]
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    api.answer = None
    drain(sender)
    assert len(api.events) == MOST_PENDING
    assert not any(path.split("/")[-1].startswith("pod-49.") for path in api.events)


def test_without_the_right_an_event_is_lost_and_the_next_ones_are_tried_rarely(
    sender: EventSender, api: FakeEventApi
) -> None:
    api.answer = Answer(403, {"reason": "Forbidden"})
    sender.record(FAILED)
    assert sender.send_one() == 5.0
    assert sender.send_one() is None


def test_an_event_that_is_refused_does_not_hold_up_others(sender: EventSender, api: FakeEventApi) -> None:
    api.answer = Answer(422, {"reason": "Invalid"})
    sender.record(FAILED)
    drain(sender)
    api.answer = None
    sender.record(replace(FAILED, reason="Other"))
    drain(sender)
    assert [reason for reason, _, _ in api.described()] == ["Other"]


@pytest.mark.promise("S386")
def test_the_events_of_one_object_are_bounded(sender: EventSender, api: FakeEventApi, clock: Clock) -> None:
    def record(count: int) -> None:
        for number in range(count):
            sender.record(Event(POD, "Progress", f"{clock.now_s} {number}"))
            drain(sender)

    record(100)
    assert len(api.events) == BURST
    sender.record(replace(FAILED, about=replace(POD, uid="other")))
    drain(sender)
    assert len(api.events) == BURST + 1
    clock.now_s += REFILL_S
    record(5)
    assert len(api.events) == BURST + 2


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("the proxy http://user:pass@word@proxy:3128 refuses", "the proxy http://***@proxy:3128 refuses"),
        ("-----BEGIN PRIVATE KEY-----\nabc", "***"),
        ("s3://bucket/a@b is archived", "s3://bucket/a@b is archived"),
    ],
)
def test_no_credentials_are_in_an_event(message: str, shown: str) -> None:
    assert Event(POD, "Reason", message).body(time="t", host="h")["message"] == shown


def test_an_event_about_nothing_is_not_sent(sender: EventSender) -> None:
    sender.record(replace(FAILED, about=replace(POD, namespace="")))
    assert sender.send_one() is None


_TEXTS = st.text(max_size=2000)


@given(namespace=_TEXTS, name=_TEXTS, uid=_TEXTS, reason=_TEXTS, message=_TEXTS)
def test_any_texts_make_a_request_of_bounded_size(
    namespace: str, name: str, uid: str, reason: str, message: str
) -> None:
    api = FakeEventApi()
    sender = EventSender(api, "node-1")
    event = Event(ObjectReference("Pod", namespace, name, uid), reason, message)
    sender.record(event)
    drain(sender)
    for body in api.events.values():
        assert len(body["message"]) <= 1000
        assert len(body["metadata"]["name"]) <= 217
    for _, path in api.requests:
        assert path.count("/") == 5
        assert not set(path) & set("? #\n")


def test_an_unexpected_answer_is_no_count(api: FakeEventApi, sender: EventSender) -> None:
    body: dict[str, Any] = FAILED.body(time="t", host="h")
    api.send("POST", "/api/v1/namespaces/team-a/events", {**body, "count": "many"})
    sender.record(FAILED)
    drain(sender)
    assert api.described() == [("WarmupFailed", FAILED.message, 2)]
