"""Spans without a library: how a trace is named between processes, and what happens without a tracer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model import spans
from csi_driver.model.errors import InvalidParameter, ObjectNotFound
from csi_driver.model.spans import Kind, Span, SpanContext, Value
from csi_driver.objects.request_counts import OK, RequestCounts
from csi_driver.objects.request_spans import EVERY, FIRST, SampledRequests, traced
from csi_driver.telemetry import TextFormatter
from csi_driver.wiring.listing_spans import PageMarks
from csi_driver.wiring.span_export import is_configured

HEX = "0123456789abcdef"


def ids(length: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=length, max_size=length).filter(lambda text: int(text, 16) > 0)


class KeptSpan:
    """A span that remembers what was said."""

    def __init__(self, tracer: KeepingTracer, name: str, parent: SpanContext | None, link: SpanContext | None) -> None:
        number = len(tracer.spans) + 1
        trace_id = parent.trace_id if parent is not None else f"{number:032x}"
        self.context: SpanContext | None = SpanContext(trace_id, f"{number:016x}", tracer.sampled)
        self.name, self.parent, self.link = name, parent, link
        self.attributes: dict[str, Value] = {}
        self.events: list[str] = []
        self.errors: list[str] = []

    def set(self, attributes: Mapping[str, Value]) -> None:
        self.attributes |= attributes

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        self.events.append(name)

    def end(self, error: str = "") -> None:
        self.errors.append(error)

    def discard(self) -> None:
        raise AssertionError("no test discards one")


class KeepingTracer:
    """Remembers its spans."""

    def __init__(self) -> None:
        self.spans: list[KeptSpan] = []
        self.sampled = True

    def start(
        self,
        name: str,
        attributes: Mapping[str, Value],
        parent: SpanContext | None,
        link: SpanContext | None,
        kind: Kind,
    ) -> Span:
        span = KeptSpan(self, name, parent, link)
        span.set(attributes)
        self.spans.append(span)
        return span


@pytest.fixture
def tracer() -> Iterator[KeepingTracer]:
    tracer = KeepingTracer()
    spans.use(tracer)
    yield tracer
    spans.use(None)


@given(ids(32), ids(16), st.booleans())
def test_a_context_is_what_it_was_after_a_call(trace_id: str, span_id: str, sampled: bool) -> None:
    context = SpanContext(trace_id, span_id, sampled)
    assert SpanContext.parse(context.traceparent) == context


@given(st.one_of(st.text(), st.binary(), st.none(), st.from_regex(r"[0-9a-f-]{50,60}")))
def test_what_another_process_sends_is_a_context_or_none(sent: object) -> None:
    context = SpanContext.parse(sent)
    assert context is None or SpanContext.parse(context.traceparent) == context


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "A" * 32 + "-" + "1" * 16 + "-01",
        " 00-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01\n",
    ],
)
def test_a_traceparent_that_is_none_begins_a_trace(sent: str) -> None:
    assert SpanContext.parse(sent) is None


def test_a_later_version_may_say_more() -> None:
    context = SpanContext.parse("cc-" + "1" * 32 + "-" + "2" * 16 + "-03-more")
    assert context == SpanContext("1" * 32, "2" * 16, sampled=True)


@pytest.mark.promise("S673")
def test_without_a_tracer_a_span_is_one_object_that_does_nothing() -> None:
    assert spans.span("a") is spans.server_span("b", None) is spans.start("c", {}) is spans.NO_SPAN
    with spans.span("a") as span:
        assert span.context is None
        assert spans.current_trace_id() is None
    assert traced(counts := RequestCounts(), "s3://data/train", {}) is counts
    assert "opentelemetry" not in {name.partition(".")[0] for name in spans.__dict__}


def test_spans_of_a_body_are_parts_of_it_and_other_threads_have_none(tracer: KeepingTracer) -> None:
    seen: list[str | None] = []
    with spans.span("outer") as outer, spans.span("inner") as inner:
        assert spans.current_trace_id() == tracer.spans[0].context.trace_id  # type: ignore[union-attr]
        thread = threading.Thread(target=lambda: seen.append(spans.current_trace_id()))
        thread.start()
        thread.join()
    assert seen == [None]
    assert tracer.spans[1].parent == outer.context
    assert inner.context is not None
    assert spans.current_trace_id() is None
    assert [span.errors for span in tracer.spans] == [[""], [""]]


def test_a_body_that_raises_shows_the_class_of_its_error_and_not_its_text(tracer: KeepingTracer) -> None:
    with pytest.raises(ObjectNotFound), spans.span("a"):
        raise ObjectNotFound("key with a secret")
    assert tracer.spans[0].errors == ["ObjectNotFound"]


def test_a_line_of_the_log_names_a_trace_that_is_exported(tracer: KeepingTracer) -> None:
    record = logging.LogRecord("csi_driver.x", logging.INFO, "", 1, "mounted", (), None)
    formatter = TextFormatter("cache")
    with spans.span("a"):
        assert f" trace={1:032x}" in formatter.format(record)
    tracer.sampled = False
    with spans.span("a"):
        assert "trace=" not in formatter.format(record)
    assert "trace=" not in formatter.format(record)


@pytest.mark.promise("S671")
def test_of_the_requests_of_a_store_the_first_and_then_a_sample_are_spans(tracer: KeepingTracer) -> None:
    counts = RequestCounts()
    call = SpanContext("1" * 32, "2" * 16)
    sampled = SampledRequests(counts, {"hayloft.dataset": "s3://data/train"}, call)
    for _ in range(2 * EVERY):
        with sampled.request("read") as request:
            request.answered()
    assert counts.numbers().results == {OK: 2 * EVERY}
    assert sampled.numbers() == counts.numbers()
    assert len(tracer.spans) == FIRST + 2
    assert all(span.parent == call and span.link is None for span in tracer.spans[:FIRST])
    assert all(span.parent is None and span.link == call for span in tracer.spans[FIRST:])
    for span in tracer.spans:
        assert span.attributes == {"hayloft.dataset": "s3://data/train", "hayloft.result": OK}
        assert span.events == ["first bytes"]
        assert span.errors == [""]


def test_a_store_that_no_call_of_a_pod_opens_has_no_first_requests(tracer: KeepingTracer) -> None:
    with spans.span("a repeated call"), spans.detached():
        counts = traced(RequestCounts(), "s3://data/train", {})
    for _ in range(EVERY):
        with counts.request("read"):
            pass
    assert [(span.name, span.parent, span.link) for span in tracer.spans[1:]] == [("store read", None, None)]


def test_a_request_that_fails_is_a_span_that_failed(tracer: KeepingTracer) -> None:
    sampled = SampledRequests(RequestCounts(), {}, SpanContext("1" * 32, "2" * 16))
    with pytest.raises(ObjectNotFound), sampled.request("stat"):
        raise ObjectNotFound("data/a: not there")
    assert tracer.spans[0].name == "store stat"
    assert tracer.spans[0].errors == ["ObjectNotFound"]


def test_the_dataset_of_a_span_shows_no_value_of_its_secret(tracer: KeepingTracer) -> None:
    url = "https://reader:pass-word@host/train/s3cr3t-path?sig=abc"
    with spans.span("call"):
        counts = traced(RequestCounts(), url, {"password": "s3cr3t-path", "username": "host"})
    counts.begin("read")
    assert tracer.spans[1].attributes == {"hayloft.dataset": "https://host/train/***"}


def test_pages_are_marked_at_each_doubling() -> None:
    marks = PageMarks()
    marked = [listed for listed in range(1000, 10_000_001, 1000) if marks.reached(listed)]
    assert marked == [1000 << power for power in range(14)]


ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.promise("S673")
@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ON, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector:4317"}, True),
        ({**ON, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ON, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ON, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ({**ON, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, True),
    ],
)
def test_spans_are_exported_if_the_environment_names_a_receiver(environment: dict[str, str], on: bool) -> None:
    assert is_configured(environment) is on


@pytest.mark.promise("S673")
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "a URL such as"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "grpc"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "10%", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "from 0 to 1"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_by_name(name: str, value: str, allowed: str) -> None:
    environment = {**ON, "OTEL_TRACES_SAMPLER": "traceidratio", name: value}
    with pytest.raises(InvalidParameter) as raised:
        is_configured(environment)
    for text in (name, value, allowed):
        assert text in str(raised.value)
