"""A warmup as a span, from its start to its end, in the trace of the call that started it."""

from __future__ import annotations

from csi_driver.model import spans
from csi_driver.model.spans import Span, Value
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState

_NO_FAILURE = (WarmupState.COMPLETE, WarmupState.CANCELLED)


def begin_span(request: WarmupRequest) -> Span:
    """On the thread of the call."""
    attributes: dict[str, Value] = {"hayloft.volume_id": request.volume_id, "hayloft.into_memory": request.into_memory}
    return spans.start("warmup", attributes, parent=spans.current().context)


def end_span(span: Span, report: WarmupReport) -> None:
    """With what became of the warmup."""
    span.set(
        {
            "hayloft.state": str(report.state),
            "hayloft.files": report.done_files,
            "hayloft.failed_files": report.failed_files,
            "hayloft.bytes": report.done_bytes,
            "hayloft.fetched_bytes": report.fetched_bytes,
        }
    )
    span.end("" if report.state in _NO_FAILURE else str(report.state))
