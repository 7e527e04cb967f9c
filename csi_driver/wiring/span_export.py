"""Exports the spans of a process by OTLP over gRPC, with OpenTelemetry's SDK, if its environment names a receiver.

The variables are those of OpenTelemetry (docs/monitoring.md). Without OTEL_EXPORTER_OTLP_ENDPOINT nothing of the SDK is
imported. Spans wait in a bounded queue for a thread of the SDK, which sends them in batches; what does not fit is
dropped, so that a receiver that is away or slow delays no call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csi_driver import telemetry
from csi_driver.model import spans
from csi_driver.model.errors import InvalidParameter
from csi_driver.model.spans import Kind, Span, SpanContext, Value
from csi_driver.wiring.version import hayloft_version

if TYPE_CHECKING:
    from opentelemetry import trace as api
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_WITH_RATIO = ("traceidratio", "parentbased_traceidratio")

END_S = 0.3
"""How long the end of a process waits for the last spans: less than a daemon has that hands over its mounts."""

_MOST_EVENTS = 64
_LONGEST_VALUE = 1024
"""Characters: a message to a user has some hundred."""


def is_configured(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be exported. Raises InvalidParameter for a value that the driver cannot use."""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in ("otlp", "none"):
        raise InvalidParameter("OTEL_TRACES_EXPORTER", exporter, "otlp, or none for no traces")
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none"
    if off or not _first(environment, ENDPOINTS)[1]:
        return False
    name, endpoint = _first(environment, ENDPOINTS)
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidParameter(name, telemetry.redact_text(endpoint), "a URL such as http://collector:4317")
    name, protocol = _first(environment, _PROTOCOLS)
    if protocol not in ("", "grpc"):
        raise InvalidParameter(name, protocol, "grpc, which every collector takes (port 4317)")
    sampler = environment.get("OTEL_TRACES_SAMPLER") or "always_on"
    allowed = (*_SAMPLERS, *(f"parentbased_{one}" for one in _SAMPLERS))
    if sampler not in allowed:
        raise InvalidParameter("OTEL_TRACES_SAMPLER", sampler, f"one of {', '.join(allowed)}")
    ratio = environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    if sampler in _WITH_RATIO and not _is_ratio(ratio):
        raise InvalidParameter("OTEL_TRACES_SAMPLER_ARG", ratio, "a share of traces, from 0 to 1")
    return True


@contextmanager
def exporting_spans(process: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Spans that begin in the body are exported, if the environment, which must be that of this process, says so. Not
    to be entered before a process has forked: the SDK has a thread. Raises InvalidParameter."""
    if not is_configured(environment):
        yield
        return
    provider = _provider(process, environment)
    spans.use(_SdkTracer(provider))
    endpoint = telemetry.redact_text(_first(environment, ENDPOINTS)[1])
    logger.info("traces are exported", extra=telemetry.fields(endpoint=endpoint))
    try:
        yield
    finally:
        spans.use(None)
        # It waits for a receiver that is away, as long as its own time-outs are.
        ending = threading.Thread(target=provider.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(END_S)


def _first(environment: Mapping[str, str], names: Sequence[str]) -> tuple[str, str]:
    """The variable that counts, and its value; empty if none is set."""
    return next(((name, environment[name]) for name in names if environment.get(name)), (names[-1], ""))


def _is_ratio(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _provider(process: str, environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Its lines repeat with each batch, and quote what the receiver answers; ``_ReportingExporter`` says it once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    facts = {"service.version": hayloft_version(), "hayloft.process": process}
    if node := telemetry.node_name():
        facts["k8s.node.name"] = node
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:  # attributes that are given here would replace those of the environment
        facts["service.name"] = f"hayloft-{process}"
    limits = SpanLimits(max_events=_MOST_EVENTS, max_span_attribute_length=_LONGEST_VALUE)
    try:
        provider = TracerProvider(resource=Resource.create(facts), span_limits=limits, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_reporting(OTLPSpanExporter())))
    except (ValueError, OSError) as error:  # a time-out that is no number, a certificate that is not there
        raise InvalidParameter("OTEL_EXPORTER_OTLP_*", type(error).__name__, "values as OpenTelemetry has them") from (
            error
        )
    return provider


def _reporting(exporter: SpanExporter) -> SpanExporter:
    """The exporter, with a line of the log when it begins to fail and when it works again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class ReportingExporter(SpanExporter):
        """Called by one thread of the SDK."""

        failed_spans = 0

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = exporter.export(spans)
            except Exception:
                logger.exception("unexpected error while spans are exported; they are dropped")
                result = SpanExportResult.FAILURE
            if result is not SpanExportResult.SUCCESS:
                if not self.failed_spans:
                    logger.warning("spans cannot be exported and are dropped until the receiver takes them again")
                self.failed_spans += len(spans)
            elif self.failed_spans:
                logger.info("spans are exported again", extra=telemetry.fields(dropped=self.failed_spans))
                self.failed_spans = 0
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return ReportingExporter()


class _SdkTracer:
    """A ``Tracer`` of the SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace

        self._api = trace
        self._tracer = provider.get_tracer("hayloft", hayloft_version())
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
        }

    def start(
        self,
        name: str,
        attributes: Mapping[str, Value],
        parent: SpanContext | None,
        link: SpanContext | None,
        kind: Kind,
    ) -> Span:
        trace = self._api
        # Never that of the SDK's own context: spans are joined by ``model/spans.py`` alone.
        context = trace.set_span_in_context(trace.NonRecordingSpan(self._named(parent)))
        links = () if link is None else (trace.Link(self._named(link)),)
        begun = self._tracer.start_span(name, context, self._kinds[kind], attributes, links)
        return _SdkSpan(begun, trace.Status, trace.StatusCode, trace.NonRecordingSpan)

    def _named(self, context: SpanContext | None) -> api.SpanContext:
        trace = self._api
        named: api.SpanContext = trace.INVALID_SPAN_CONTEXT
        if context is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
            trace_id, span_id = int(context.trace_id, 16), int(context.span_id, 16)
            named = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return named


class _SdkSpan:
    """A ``Span`` of the SDK, which ignores what is set after its end and warns of it."""

    __slots__ = ("_not_recording", "_span", "_status", "_status_code", "context")

    def __init__(
        self,
        span: api.Span,
        status: type[api.Status],
        status_code: type[api.StatusCode],
        not_recording: type[api.NonRecordingSpan],
    ) -> None:
        self._span, self._status, self._status_code = span, status, status_code
        self._not_recording = not_recording
        named = span.get_span_context()
        self.context: SpanContext | None = SpanContext(
            f"{named.trace_id:032x}", f"{named.span_id:016x}", named.trace_flags.sampled
        )

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(dict(attributes))

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        self._span.add_event(name, dict(attributes))

    def end(self, error: str = "") -> None:
        if self._span.is_recording():
            if error:
                self._span.set_status(self._status(self._status_code.ERROR, error[:_LONGEST_VALUE]))
            self._span.end()

    def discard(self) -> None:
        # The SDK exports what ends: this one never does, and what stands for it records nothing.
        self._span = self._not_recording(self._span.get_span_context())
