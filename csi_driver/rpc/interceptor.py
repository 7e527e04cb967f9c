"""Wraps every call: long calls are admitted, deadline and caller are set, errors become statuses, and one line without
secrets is logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi_driver import telemetry
from csi_driver.model import spans
from csi_driver.model.dataset import without_query
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.model.log_context import current_call_id, logging_call, new_call_id, pod_of, valid_call_id
from csi_driver.model.pod_role import SERVICE_ACCOUNT_TOKENS
from csi_driver.model.tracebacks import outline
from csi_driver.rpc import callers, deadlines
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.callers import Caller
from csi_driver.rpc.long_calls import LongCalls
from csi_driver.rpc.pb import csi_pb2
from csi_driver.rpc.statuses import ERROR_METADATA, message_of, status_of

logger = logging.getLogger(__name__)

_QUIET = frozenset(
    {
        "GetPluginInfo",
        "GroupControllerGetCapabilities",
        "GetPluginCapabilities",
        "Probe",
        "ControllerGetCapabilities",
        "NodeGetCapabilities",
        "NodeGetInfo",
        "NodeGetVolumeStats",
        "NodeGetVolumeHealth",
        "NodeGetStorageHealth",
        "ControllerGetVolumeHealth",
        "ControllerListVolumeHealth",
        "Check",
        "GetInfo",
        "NotifyRegistrationStatus",
        "GetVolume",
        "GetHealth",
        "GetWarmup",
        "Report",
        "GetNodeStatus",
        "GetActivity",
        "ListDirectory",
        "CountCached",
        "Evict",
        "Verify",
    }
)
"""Kubelet and the sidecars poll these every few seconds or minutes: a success is logged at DEBUG only."""

_SHOWN_ATTRIBUTES = frozenset(
    {
        *(
            "url",
            "include",
            "exclude",
            "endpoint",
            "region",
            "addressingStyle",
            "anonymous",
            "requesterPays",
            "billingProject",
            "caBundle",
            "manifest",
            "inventory",
        ),
        *("mirrors", "mirrorCheck", "mirrorOrder"),
        *("backend", "verifyChecksums", "cacheReservation", "uid", "gid", "fileMode", "dirMode", "mountOptions"),
        *("snapshotMaxAge", "requestTimeout", "deadline", "view", "opens"),
        *("bandwidth", "warmup", "warmupInclude", "warmupBandwidth", "warmupConcurrency"),
        *("profile", "readAhead", "wholeFiles", "warmupMemoryInclude", "warmupTrace"),
        *("identity", "awsRoleArn", "googleWorkloadProvider", "googleServiceAccount", "audience"),
        *("azureTenantId", "azureClientId", "azureStorageAccount"),
        *("versions", "refresh"),
    }
)
"""The parameters of volumes and snapshots, none of which is secret. Under another name, which is refused, a value may
be a misplaced password, and it is not shown."""

_TIMEOUT_SLACK_S = 2.0
"""A call that ends so shortly before its deadline has timed out at the client: its clock started earlier. gRPC rounds
deadlines of minutes to seconds."""

CALL_ID_METADATA = "hayloft-call-id"
"""Key of the metadata by which the node plugin names its call to the daemon: both log it under one id."""

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the unary calls of a server; it has no streaming calls."""

    def __init__(self, counts: CallCounts) -> None:
        self._long_calls = LongCalls()
        self._counts = counts

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler_call_details.method, handler.unary_unary, self._long_calls, self._counts),
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


def _guarded(path: str, behaviour: Behaviour, long_calls: LongCalls, counts: CallCounts) -> Behaviour:
    """``path``: ``/csi.v1.Node/NodeStageVolume``."""
    service, _, method = path.removeprefix("/").rpartition("/")

    def call(request: Message, context: grpc.ServicerContext) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        call_id = valid_call_id(metadata.get(CALL_ID_METADATA)) or new_call_id()
        with logging_call(call_id):
            if method in _QUIET:
                return logged(request, context, spans.NO_SPAN)
            with spans.server_span(f"{service}/{method}", metadata.get(spans.TRACEPARENT)) as span:
                return logged(request, context, span)

    def logged(request: Message, context: grpc.ServicerContext, span: spans.Span) -> Any:
        started = time.monotonic()
        response, outcome, caller, mask = None, _SUCCESS, _caller_of(context), _mask(request)
        try:
            with (
                long_calls.admitted(method, request),
                deadlines.within(context.time_remaining()),
                callers.working_for(caller),
            ):
                response = behaviour(request, context)
        except BaseException as error:  # noqa: BLE001  # the caller gets a status for every error, unexpected ones included
            outcome = _outcome_of(method, error, mask)
        quiet = caller.repeats or method in _QUIET
        seconds = time.monotonic() - started
        counts.add(method, outcome.code.name, seconds)
        _log(method, request, outcome, seconds, mask, quiet=quiet)
        if caller.repeats and outcome is _SUCCESS:
            span.discard()  # kubelet repeats it for each pod, once in one to two minutes
        elif span.context is not None:
            span.set(_attributes(service, method, request, outcome, mask))
            span.end(outcome.message)  # here, before ``abort`` raises
        if outcome is not _SUCCESS:
            if outcome.class_name:
                context.set_trailing_metadata(((ERROR_METADATA, outcome.class_name),))
            context.abort(outcome.code, outcome.message)
        return response

    return call


def _caller_of(context: grpc.ServicerContext) -> Caller:
    """Is gone as soon as the call has ended for the client."""
    caller = Caller()

    def left() -> None:
        remaining_s = context.time_remaining()
        caller.timed_out = remaining_s is not None and remaining_s < _TIMEOUT_SLACK_S
        caller.gone = True

    if not context.add_callback(left):
        left()
    return caller


def _outcome_of(method: str, error: BaseException, mask: telemetry.Mask) -> _Outcome:
    if isinstance(error, HayloftError):
        return _Outcome(status_of(error), message_of(error, mask), type(error).__name__)
    if isinstance(error, NotImplementedError):
        return _Outcome(grpc.StatusCode.UNIMPLEMENTED, f"{method}: this driver does not offer this call")
    log = telemetry.process_name()
    message = f"{method}: unexpected error in Hayloft ({type(error).__name__}); see the log of `{log}`"
    return _Outcome(grpc.StatusCode.INTERNAL, message, InternalFailure.__name__, mask(outline(error)))


def _log(
    method: str, request: Message, outcome: _Outcome, seconds: float, mask: telemetry.Mask, *, quiet: bool
) -> None:
    facts = telemetry.fields(
        **_subject(request, mask),
        snapshot_id=getattr(request, "snapshot_id", None) or getattr(request, "group_snapshot_id", None),
        code=outcome.code.name,
        seconds=f"{seconds:.3f}",
        error=outcome.message or None,
        traceback=outcome.traceback,
    )
    if outcome is _SUCCESS:
        level = logging.DEBUG if quiet else logging.INFO
    else:
        level = logging.ERROR if outcome.traceback else logging.WARNING
    logger.log(level, method if outcome is _SUCCESS else f"{method} failed", extra=facts)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s request", method, extra=telemetry.fields(request=describe(request, mask)))


def _subject(request: Message, mask: telemetry.Mask) -> dict[str, str | None]:
    """What the call is about, for log and trace."""
    context = getattr(request, "volume_context", None) or getattr(request, "attributes", None) or {}
    url = context.get("url")
    return {
        "volume_id": getattr(request, "volume_id", None) or getattr(request, "name", None),
        "pod": pod_of(context),
        "dataset": telemetry.redact_text(mask(url)) if url else None,
    }


def _attributes(
    service: str, method: str, request: Message, outcome: _Outcome, mask: telemetry.Mask
) -> dict[str, spans.Value]:
    """Of the span of a call: rpc.* as OpenTelemetry names them."""
    found: dict[str, spans.Value] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": int(outcome.code.value[0]),
        "hayloft.call": current_call_id() or "",
    }
    found |= {f"hayloft.{name}": value for name, value in _subject(request, mask).items() if value}
    if outcome.class_name:
        found["error.type"] = outcome.class_name
    return found


def _mask(request: Message) -> telemetry.Mask:
    """For the values that the protocol marks as secret, but names of accounts: an endpoint or a bucket would be masked
    with them."""
    given = [pair for field, value in request.ListFields() if _is_secret(field) for pair in value.items()]
    given += [pair for pair in getattr(request, "volume_context", {}).items() if pair[0] == SERVICE_ACCOUNT_TOKENS]
    names = {text for name, text in given if telemetry.is_account_name(name)}
    secrets = {text for name, text in given if not telemetry.is_account_name(name)}
    return telemetry.Mask(secrets, names - secrets)


def _is_secret(field: FieldDescriptor) -> bool:
    options = field.GetOptions()
    return bool(options.Extensions[csi_pb2.csi_secret] or options.debug_redact)


def describe(message: Message, mask: Callable[[str], str] = str) -> dict[str, object]:
    """The message as fields for the log. Redacts the fields that the protocol marks as secret, values whose keys
    suggest a secret, and mount flags (which may be secret according to CSI)."""
    described: dict[str, object] = {}
    for field, value in message.ListFields():
        if _is_secret(field) or field.name == "mount_flags":
            described[field.name] = f"{telemetry.REDACTED} ({len(value)})"
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            shown = {key: text if key in _SHOWN_ATTRIBUTES else telemetry.REDACTED for key, text in value.items()}
            if "mirrors" in shown:  # several URLs, whose queries may hold what belongs in a Secret
                shown["mirrors"] = ",".join(map(without_query, shown["mirrors"].replace("\n", ",").split(",")))
            described[field.name] = {mask(key): mask(text) for key, text in telemetry.redact(shown).items()}
        elif isinstance(value, Message):
            described[field.name] = describe(value, mask)
        elif isinstance(value, str):
            described[field.name] = telemetry.redact_text(mask(value))
        elif field.message_type is not None:
            described[field.name] = [describe(item, mask) for item in value]
        else:
            described[field.name] = value
    return described
