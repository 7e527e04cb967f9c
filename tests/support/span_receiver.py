"""A receiver of OTLP over gRPC on loopback, as a collector is one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

WAIT_S = 30.0

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""Batches of the last 100 ms, so that a test does not wait five seconds for one."""


class ReceivedSpan(NamedTuple):
    """One span; ids in hexadecimal, empty if there is none."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]
    links: tuple[str, ...]
    """Ids of spans."""
    error: str | None
    seconds: float


class SpanReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives from ``__enter__`` until ``__exit__``. ``answers`` False: takes connections, and answers nothing."""

    def __init__(self, *, answers: bool = True) -> None:
        self._lock = threading.Lock()
        """Guards ``_received`` and ``_text``."""
        self._received: list[ReceivedSpan] = []
        self._text = ""
        self._resume = threading.Event()
        if answers:
            self._resume.set()
        self.asked = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that export to it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", **FAST}

    def __enter__(self) -> SpanReceiver:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._resume.set()
        self._server.stop(None)

    def resume(self) -> None:
        """Answers from now on."""
        self._resume.set()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.set()
        self._resume.wait()
        found = [
            _received(span, str(_plain(of_resource.resource.attributes).get("service.name")))
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        with self._lock:
            self._received += found
            self._text += str(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[ReceivedSpan]:
        with self._lock:
            return list(self._received)

    def text(self) -> str:
        """Everything that was received."""
        with self._lock:
            return self._text

    def wait(self, wanted: Callable[[ReceivedSpan], bool], what: str) -> ReceivedSpan:
        """The first span that is wanted."""
        ends = time.monotonic() + WAIT_S
        while time.monotonic() < ends:
            for span in self.spans():
                if wanted(span):
                    return span
            time.sleep(0.05)
        raise AssertionError(f"{what}: not among {sorted({(span.service, span.name) for span in self.spans()})}")

    def named(self, name: str) -> ReceivedSpan:
        """Waits for it."""
        return self.wait(lambda span: span.name == name, name)


def _received(span: Any, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _plain(span.attributes),
        tuple((event.name, _plain(event.attributes)) for event in span.events),
        tuple(link.span_id.hex() for link in span.links),
        span.status.message if span.status.code == 2 else None,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
