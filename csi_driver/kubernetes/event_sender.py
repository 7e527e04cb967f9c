"""Sends events to the API server, from a thread of its own: a call of CSI never waits for it.

Few requests, whatever happens in the driver: equal events are counted, and sent again after a while; each object has a
budget, and so has the process. What does not fit is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from csi_driver import telemetry
from csi_driver.kubernetes.api_server import MERGE_PATCH, Answer
from csi_driver.kubernetes.events import Event, ObjectReference
from csi_driver.model.tracebacks import summary

logger = logging.getLogger(__name__)

MOST_PENDING = 128
"""Different events that wait for the API server. The oldest is dropped for a new one."""

REPEAT_S = 300.0
"""An equal event is sent again, with its count, at the earliest after this time. Kubernetes forgets events after an
hour, so that one that lasts stays visible."""

BURST, REFILL_S = 20, 60.0
"""Events of one object: as many at once, and then one in so many seconds. Client libraries allow 25 and one in 300."""

PAUSE_S = 0.2
"""Between two requests of this process."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 5.0, 300.0
_REMEMBERED = 1024


class EventApi(Protocol):
    """``ApiServer``, and its twin in tests."""

    def send(self, method: str, path: str, body: dict[str, object], content_type: str = "application/json") -> Answer:
        """See ``ApiServer.send``."""


@dataclass(slots=True)
class _Series:
    """An event that was sent."""

    count: int
    sent_s: float


@dataclass(slots=True)
class _Budget:
    tokens: float
    at_s: float


class EventSender:
    """An ``EventRecorder``, from ``start`` until ``close``. ``record`` may be called from any thread.

    ``_lock`` guards ``_pending`` and ``_closing``, and is not held during a request. The other fields belong to the
    thread.
    """

    def __init__(
        self,
        api: EventApi,
        host: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``host``: the node or pod that the events come from."""
        self._api, self._host, self._clock, self._now = api, host, clock, now
        self._lock = threading.Condition()
        self._pending: OrderedDict[Event, int] = OrderedDict()
        self._closing = False
        self._sent: OrderedDict[Event, _Series] = OrderedDict()
        self._budgets: OrderedDict[ObjectReference, _Budget] = OrderedDict()
        self._backoff_s = 0.0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Drops what is not sent yet. Does not wait for a request in flight."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()

    def record(self, event: Event) -> None:
        if not event.about.name or not event.about.namespace:
            return
        with self._lock:
            self._pending[event] = self._pending.get(event, 0) + 1
            if len(self._pending) > MOST_PENDING:
                self._pending.popitem(last=False)
            self._lock.notify_all()

    def send_one(self) -> float | None:
        """Sends the oldest pending event, if it is to be sent. Seconds until the next may be; None: none is pending."""
        with self._lock:
            if not self._pending:
                return None
            event, count = self._pending.popitem(last=False)
        series = self._sent.get(event)
        if series is not None:
            series.count += count
            if self._clock() - series.sent_s < REPEAT_S:
                return 0.0
        if not self._is_within_budget(event.about):
            return 0.0
        answer = self._create(event, count) if series is None else self._update(event, series)
        return self._pause_after(event, count, answer)

    def _run(self) -> None:
        while True:
            try:
                pause_s = self.send_one()
            except Exception as error:  # noqa: BLE001  # events must not end, nor disturb anything else
                facts = telemetry.fields(error=summary(error))
                logger.error("unexpected error while an event is sent; it is lost", extra=facts)
                pause_s = _FIRST_BACKOFF_S
            with self._lock:
                if pause_s is None:
                    self._lock.wait_for(lambda: self._pending or self._closing)
                elif pause_s:
                    self._lock.wait_for(lambda: self._closing, pause_s)
                if self._closing:
                    return

    def _create(self, event: Event, count: int) -> Answer:
        answer = self._api.send("POST", _path(event), event.body(time=self._time(), host=self._host, count=count))
        if answer.status != 409:
            self._remember(event, count, answer)
            return answer
        # It was sent by an earlier process, or before this one forgot it: the answer to a change has its count.
        answer = self._patch(event, {"lastTimestamp": self._time()})
        if answer.is_success:
            known = answer.body.get("count")
            count += known if isinstance(known, int) else 1
            answer = self._patch(event, {"count": count})
            self._remember(event, count, answer)
        return answer

    def _update(self, event: Event, series: _Series) -> Answer:
        answer = self._patch(event, {"count": series.count, "lastTimestamp": self._time()})
        if answer.status == 404:  # Kubernetes has forgotten it
            del self._sent[event]
            return self._create(event, 1)
        if answer.is_success:
            series.sent_s = self._clock()
        return answer

    def _patch(self, event: Event, changes: dict[str, object]) -> Answer:
        return self._api.send(
            "PATCH", f"{_path(event)}/{urllib.parse.quote(event.object_name, safe='')}", changes, MERGE_PATCH
        )

    def _remember(self, event: Event, count: int, answer: Answer) -> None:
        if answer.is_success:
            self._sent[event] = _Series(count, self._clock())
            if len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)

    def _pause_after(self, event: Event, count: int, answer: Answer) -> float:
        if answer.is_success or answer.status in (400, 404, 409, 413, 422):  # the last ones: of this event alone
            self._backoff_s = 0.0
            if not answer.is_success:
                logger.info("an event was refused by the API server", extra=_facts(event, answer))
            return PAUSE_S
        if not self._backoff_s:
            facts = _facts(event, answer)
            logger.warning("events are not taken by the API server; they are sent later, or lost", extra=facts)
        self._backoff_s = min(_LONGEST_BACKOFF_S, max(_FIRST_BACKOFF_S, 2 * self._backoff_s))
        if answer.status == 403:  # no right, or a namespace that is being deleted: of no use a second time
            return self._backoff_s
        series = self._sent.get(event)
        if series is not None:
            series.count -= count  # counted again with the next try
        with self._lock:
            if len(self._pending) < MOST_PENDING:
                self._pending[event] = self._pending.get(event, 0) + count
                self._pending.move_to_end(event, last=False)
        return self._backoff_s

    def _is_within_budget(self, about: ObjectReference) -> bool:
        now_s = self._clock()
        budget = self._budgets.setdefault(about, _Budget(BURST, now_s))
        self._budgets.move_to_end(about)
        if len(self._budgets) > _REMEMBERED:
            self._budgets.popitem(last=False)
        budget.tokens = min(BURST, budget.tokens + (now_s - budget.at_s) / REFILL_S)
        budget.at_s = now_s
        if budget.tokens < 1:
            return False
        budget.tokens -= 1
        return True

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _path(event: Event) -> str:
    return f"/api/v1/namespaces/{urllib.parse.quote(event.about.namespace, safe='')}/events"


def _facts(event: Event, answer: Answer) -> dict[str, dict[str, object]]:
    return telemetry.fields(
        kind=event.about.kind,
        name=f"{event.about.namespace}/{event.about.name}",
        reason=event.reason,
        status=answer.status or None,
        error=answer.problem or answer.body.get("reason"),
    )
