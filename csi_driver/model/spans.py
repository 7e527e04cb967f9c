"""Spans of a trace (OpenTelemetry), without the library: what the driver does, in which call, and for how long.

Without a tracer, which is the default, ``span`` returns one object that does nothing. Values of attributes must hold no
secret and no name of an object: a message that may quote one is masked by the caller, and of an error only the class is
shown. No span is made for a read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

Value = str | int | float | bool
Kind = Literal["internal", "server", "client"]

TRACEPARENT = "traceparent"
"""Key of the metadata of a call by which a trace continues in another process (W3C Trace Context)."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class SpanContext:
    """Names one span, in this process or another one."""

    trace_id: str
    """32 hexadecimal digits, not all 0."""
    span_id: str
    """16 of them."""
    sampled: bool = True
    """Whether it is exported."""

    @property
    def traceparent(self) -> str:
        """For ``TRACEPARENT``."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"

    @classmethod
    def parse(cls, traceparent: object) -> SpanContext | None:
        """None for anything that is no traceparent: the call then begins a trace of its own."""
        match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        # 00 has these four fields; later versions may append others. 00…0 is no id.
        if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class Span(Protocol):
    """One that has begun. After the first ``end`` or ``discard`` all methods do nothing. May be used from any thread.
    No method raises or blocks."""

    @property
    def context(self) -> SpanContext | None:
        """None without a tracer."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Adds attributes, or replaces them."""

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Something that happened now. A span keeps the last 64 of them."""

    def end(self, error: str = "") -> None:
        """``error``: what failed, without a secret; empty: nothing."""

    def discard(self) -> None:
        """In place of ``end``: it is not exported."""


class Tracer(Protocol):
    """Makes spans and exports them in the background. Raises nothing and does not wait for the exporter."""

    def start(
        self,
        name: str,
        attributes: Mapping[str, Value],
        parent: SpanContext | None,
        link: SpanContext | None,
        kind: Kind,
    ) -> Span:
        """Without a ``parent`` the span begins a trace."""


class _NoSpan:
    """Without a tracer. Also what ``span`` returns then."""

    __slots__ = ()
    context: SpanContext | None = None

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Value]) -> None: ...

    def end(self, error: str = "") -> None: ...

    def discard(self) -> None: ...

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Entered:
    """The body of a ``with`` is a span; one that raises fails with the class of its error, unless it ended before."""

    __slots__ = ("_span", "_token")
    _token: Token[Span]

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = _current.set(self._span)
        return self._span

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self._span.end(cls.__name__ if cls is not None else "")


NO_SPAN = _NoSpan()
_NO_ATTRIBUTES: Mapping[str, Value] = {}

_current: ContextVar[Span] = ContextVar("hayloft_span", default=NO_SPAN)


class _Tracing:
    """The tracer of this process, as its log handlers are those of the process."""

    tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From now on this tracer makes the spans of this process; None: there are none. At the start and the end of a
    process."""
    _Tracing.tracer = tracer


def is_on() -> bool:
    """Whether there is a tracer."""
    return _Tracing.tracer is not None


def current() -> Span:
    """That of the ``with`` in which this thread is."""
    return _current.get()


def current_trace_id() -> str | None:
    """For the log: None unless the trace is exported."""
    context = _current.get().context
    return context.trace_id if context is not None and context.sampled else None


def span(name: str, attributes: Mapping[str, Value] = _NO_ATTRIBUTES) -> _NoSpan | _Entered:
    """The body of a ``with`` as a part of the current span. Outside of one, a trace of its own."""
    tracer = _Tracing.tracer
    if tracer is None:
        return NO_SPAN
    return _Entered(tracer.start(name, attributes, _current.get().context, None, "internal"))


@contextmanager
def detached() -> Iterator[None]:
    """What begins in the body is no part of the current span."""
    token = _current.set(NO_SPAN)
    try:
        yield
    finally:
        _current.reset(token)


def server_span(name: str, traceparent: object) -> _NoSpan | _Entered:
    """As ``span``, for a call that another process makes."""
    tracer = _Tracing.tracer
    if tracer is None:
        return NO_SPAN
    return _Entered(tracer.start(name, _NO_ATTRIBUTES, SpanContext.parse(traceparent), None, "server"))


def start(
    name: str,
    attributes: Mapping[str, Value],
    *,
    parent: SpanContext | None = None,
    link: SpanContext | None = None,
    kind: Kind = "internal",
) -> Span:
    """One that is ended elsewhere, also on another thread."""
    tracer = _Tracing.tracer
    return NO_SPAN if tracer is None else tracer.start(name, attributes, parent, link, kind)
