"""Wraps every call: errors become statuses, the deadline is set, and one line without secrets is logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi_driver import telemetry
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.rpc import deadlines
from csi_driver.rpc.pb import csi_pb2
from csi_driver.rpc.statuses import ERROR_METADATA, message_of, status_of

logger = logging.getLogger(__name__)

_QUIET = frozenset(
    {
        "GetPluginInfo",
        "GetPluginCapabilities",
        "Probe",
        "ControllerGetCapabilities",
        "NodeGetCapabilities",
        "NodeGetInfo",
        "NodeGetVolumeStats",
        "GetVolume",
        "GetWarmup",
        "Report",
    }
)
"""Kubelet and the sidecars poll these every few seconds or minutes: a success is logged at DEBUG only."""

_SHORTEST_SECRET = 4
"""Shorter values are no secrets, and redacting them would make texts unreadable."""

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the unary calls of a server; it has no streaming calls."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            _guarded(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    code: grpc.StatusCode
    message: str = ""
    class_name: str | None = None
    traceback: str | None = None
    """Set for an unexpected error only."""


_SUCCESS = _Outcome(grpc.StatusCode.OK)


def _guarded(method: str, behaviour: Behaviour) -> Behaviour:
    def call(request: Message, context: grpc.ServicerContext) -> Any:
        started = time.monotonic()
        response, outcome = None, _SUCCESS
        try:
            with deadlines.within(context.time_remaining()):
                response = behaviour(request, context)
        except Exception as error:  # noqa: BLE001  # the caller gets a status for every error, unexpected ones included
            outcome = _outcome_of(method, request, error)
        _log(method, request, outcome, time.monotonic() - started)
        if outcome is not _SUCCESS:
            if outcome.class_name:
                context.set_trailing_metadata(((ERROR_METADATA, outcome.class_name),))
            context.abort(outcome.code, outcome.message)
        return response

    return call


def _outcome_of(method: str, request: Message, error: Exception) -> _Outcome:
    if isinstance(error, HayloftError):
        return _Outcome(status_of(error), _without_secrets(message_of(error), request), type(error).__name__)
    if isinstance(error, NotImplementedError):
        return _Outcome(grpc.StatusCode.UNIMPLEMENTED, f"{method}: this driver does not offer this call")
    message = f"{method}: unexpected error in Hayloft ({type(error).__name__}); see the log of this process"
    traceback = "".join(format_exception(error))
    return _Outcome(grpc.StatusCode.INTERNAL, message, InternalFailure.__name__, _without_secrets(traceback, request))


def _log(method: str, request: Message, outcome: _Outcome, seconds: float) -> None:
    facts = telemetry.fields(
        volume_id=getattr(request, "volume_id", None) or getattr(request, "name", None),
        code=outcome.code.name,
        seconds=f"{seconds:.3f}",
        error=outcome.message or None,
        traceback=outcome.traceback,
    )
    if outcome is _SUCCESS:
        level = logging.DEBUG if method in _QUIET else logging.INFO
    else:
        level = logging.ERROR if outcome.traceback else logging.WARNING
    logger.log(level, method if outcome is _SUCCESS else f"{method} failed", extra=facts)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s request", method, extra=telemetry.fields(request=describe(request)))


def _without_secrets(text: str, request: Message) -> str:
    """The text of a library's exception may contain a secret of the request; it is redacted."""
    for field, value in request.ListFields():
        if _is_secret(field):
            for secret in value.values():
                if len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, telemetry.REDACTED)
    return text


def _is_secret(field: FieldDescriptor) -> bool:
    options = field.GetOptions()
    return bool(options.Extensions[csi_pb2.csi_secret] or options.debug_redact)


def describe(message: Message) -> dict[str, object]:
    """The message as fields for the log. Redacts the fields that the protocol marks as secret, values whose keys
    suggest a secret, and mount flags (which may be secret according to CSI)."""
    described: dict[str, object] = {}
    for field, value in message.ListFields():
        if _is_secret(field) or field.name == "mount_flags":
            described[field.name] = f"{telemetry.REDACTED} ({len(value)})"
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            described[field.name] = telemetry.redact(dict(value))
        elif isinstance(value, Message):
            described[field.name] = describe(value)
        elif isinstance(value, str):
            described[field.name] = telemetry.redact_text(value)
        elif field.message_type is not None:
            described[field.name] = [describe(item) for item in value]
        else:
            described[field.name] = value
    return described
