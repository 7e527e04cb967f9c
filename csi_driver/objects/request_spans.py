"""Spans of requests to a store: the first ones of a mount, and then a sample. Used only while there is a tracer."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from csi_driver import telemetry
from csi_driver.model import spans
from csi_driver.model.spans import Span, SpanContext, Value
from csi_driver.objects.request_counts import ABANDONED, OK, ForwardingCounts, Request, RequestCounts

FIRST = 16
"""Requests of a store that become parts of the trace of the call that opened it: those for which a pod waits that has
just started."""
EVERY = 1000
"""Of later ones each so manieth becomes a trace of its own, with a link to that call: at 5,000 requests a second five
spans a second, which is what the exporter's queue takes for years."""

_NO_FAILURE = (OK, ABANDONED)


class TracedRequest(Request):
    """One whose span ends with it."""

    __slots__ = ("_answered", "_span")

    def __init__(self, counts: RequestCounts, span: Span) -> None:
        super().__init__(counts)
        self._span, self._answered = span, False

    def answered(self) -> None:
        if not self._answered:
            self._answered = True
            self._span.event("first bytes", {})
        super().answered()

    def end(self, result: str) -> None:
        if not self._result:  # the first call alone counts
            self._span.set({"hayloft.result": result})
            self._span.end("" if result in _NO_FAILURE else result)
        super().end(result)


class SampledRequests(ForwardingCounts):
    """Some requests are spans. ``_sampling`` guards ``_requests``."""

    def __init__(self, counts: RequestCounts, attributes: Mapping[str, Value], call: SpanContext | None) -> None:
        """``attributes``: of each span, without a secret. ``call``: the span in which the store is opened. None,
        as for a mount that is adopted: then no request is a first one."""
        super().__init__(counts)
        self._attributes, self._call = attributes, call
        self._sampling = threading.Lock()
        self._requests = 0

    def begin(self, kind: str) -> Request:
        with self._sampling:
            self._requests += 1
            number = self._requests
        name = f"store {kind}"
        if number <= FIRST and self._call is not None:
            span = spans.start(name, self._attributes, parent=self._call, kind="client")
        elif number % EVERY == 0:
            span = spans.start(name, self._attributes, link=self._call, kind="client")
        else:
            return super().begin(kind)
        return TracedRequest(self._all, span)


def traced(counts: RequestCounts, url: str, secrets: Mapping[str, str]) -> RequestCounts:
    """The counts for the store of a volume that is opened now: ``counts`` itself without a tracer."""
    if not spans.is_on():
        return counts
    return SampledRequests(counts, {"hayloft.dataset": telemetry.shown_url(url, secrets)}, spans.current().context)
