"""The node plugin's side of ``proto/hayloft.proto``: a data plane that calls the daemon over its Unix socket."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from csi_driver.model import spans
from csi_driver.model.conditions import Condition, distinct, of_reason
from csi_driver.model.errors import DaemonUnavailable, InternalFailure
from csi_driver.model.log_context import current_call_id
from csi_driver.rpc import callers, deadlines
from csi_driver.rpc.interceptor import CALL_ID_METADATA
from csi_driver.rpc.pb import hayloft_pb2, hayloft_pb2_grpc
from csi_driver.rpc.statuses import ERROR_METADATA, error_from
from csi_driver.volumes.data_plane import (
    DaemonReport,
    HealthReport,
    KnownMount,
    MountHealth,
    MountRequest,
    TraceReport,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
    WarmupState,
)

_MOUNT_S = 900.0
"""Listing ten million objects for the first time takes minutes. A shorter deadline of the caller takes precedence."""
_UNMOUNT_S = 120.0
_QUERY_S = 5.0
"""Time-out of calls that the daemon answers from memory."""

CHANNEL_OPTIONS = (
    # Reconnects to a restarted daemon within a second; the default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this bounds one attempt to connect, the daemon's first answer included, and no pause: a daemon on
    # a busy node takes longer than 100 ms for it, and is not gone.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels to one socket must not share a connection, nor its backoff after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class DaemonClient:
    """A ``DataPlane``. May be used from any thread; ``close`` when done. The time-out of a call is at most what is left
    of the CSI call that it is made for.

    Errors of the daemon are raised with their own class. DaemonUnavailable: no daemon listens on the socket, or the
    call timed out; then the daemon may still have carried it out.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        self._stub = hayloft_pb2_grpc.CacheDaemonStub(self._channel)

    def mount(self, request: MountRequest) -> VolumeReport:
        message = hayloft_pb2.MountRequest(
            volume_id=request.volume_id,
            mount_point=request.mount_point,
            attributes=dict(request.attributes),
            secrets=dict(request.secrets),
            namespace=request.tenant.namespace,
            inline=request.tenant.inline,
            republished=request.republished,
            mount_group=request.mount_group,
        )
        return volume_of(self._call(self._stub.Mount, message, _MOUNT_S).volume)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        request = hayloft_pb2.UnmountRequest(volume_id=volume_id, mount_point=mount_point)
        self._call(self._stub.Unmount, request, _UNMOUNT_S)

    def publish(self, volume_id: str, target: str) -> bool:
        request = hayloft_pb2.PublishRequest(volume_id=volume_id, target_path=target)
        return bool(self._call(self._stub.Publish, request, _MOUNT_S).materialised)

    def unpublish(self, volume_id: str, target: str) -> None:
        request = hayloft_pb2.UnpublishRequest(volume_id=volume_id, target_path=target)
        self._call(self._stub.Unpublish, request, _QUERY_S)

    def volume(self, volume_id: str) -> VolumeReport:
        return volume_of(
            self._call(self._stub.GetVolume, hayloft_pb2.GetVolumeRequest(volume_id=volume_id), _QUERY_S).volume
        )

    def mounts(self) -> tuple[KnownMount, ...]:
        found = self._call(self._stub.ListMounts, hayloft_pb2.ListMountsRequest(), _QUERY_S).mounts
        return tuple(KnownMount(one.volume_id, one.mount_point, one.device) for one in found)

    def report(self) -> DaemonReport:
        report = self._call(self._stub.Report, hayloft_pb2.ReportRequest(), _QUERY_S)
        return DaemonReport(
            version=report.version,
            process_id=report.process_id,
            mounts=report.mounts,
            passthrough=report.passthrough,
            cache_limit_bytes=report.cache_limit_bytes,
            cache_used_bytes=report.cache_used_bytes,
            origin_bytes=report.origin_bytes,
            origin_requests=report.origin_requests,
            resident_bytes=report.resident_bytes,
            warmups=report.warmups,
            warmup_bytes=report.warmup_bytes,
            warmup_memory_read_bytes=report.warmup_memory_read_bytes,
            warmup_hot_bytes=report.warmup_hot_bytes,
            cache_bad_chunks=report.cache_bad_chunks,
            cache_disk_failures=report.cache_disk_failures,
            cache_disk_in_use=report.cache_disk_in_use,
            scrubbed_bytes=report.scrubbed_bytes,
            checksum_mismatches=report.checksum_mismatches,
            read_errors=dict(report.read_errors),
            cache_evicted_objects=report.cache_evicted_objects,
            cache_free_bytes=report.cache_free_bytes,
            cache_free_floor_bytes=report.cache_free_floor_bytes,
            cache_inodes=report.cache_inodes,
            cache_free_inodes=report.cache_free_inodes,
            cache_free_floor_inodes=report.cache_free_floor_inodes,
        )

    def health(self) -> HealthReport:
        answer = self._call(self._stub.GetHealth, hayloft_pb2.GetHealthRequest(), _QUERY_S)
        return HealthReport(
            node=conditions_of(answer.node_conditions),
            mounts=tuple(
                MountHealth(
                    volume_id=mount.volume_id,
                    device=mount.device,
                    total_bytes=mount.total_bytes,
                    file_count=mount.file_count,
                    conditions=conditions_of(mount.conditions),
                    notes=tuple(mount.notes),
                )
                for mount in answer.mounts
            ),
        )

    def reserve(self, volume_id: str, count_bytes: int) -> VolumeReport:
        request = hayloft_pb2.ReserveRequest(volume_id=volume_id, count_bytes=count_bytes)
        return volume_of(self._call(self._stub.Reserve, request, _UNMOUNT_S).volume)

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        message = hayloft_pb2.StartWarmupRequest(
            volume_id=request.volume_id,
            include=request.include,
            bandwidth_bytes=request.bandwidth_bytes,
            concurrency=request.concurrency,
            into_memory=request.into_memory,
            trace=request.trace,
            start_percent=request.start_percent,
        )
        return warmup_of(self._call(self._stub.StartWarmup, message, _QUERY_S).warmup)

    def warmup(self, volume_id: str) -> WarmupReport:
        request = hayloft_pb2.GetWarmupRequest(volume_id=volume_id)
        return warmup_of(self._call(self._stub.GetWarmup, request, _QUERY_S).warmup)

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        request = hayloft_pb2.CancelWarmupRequest(volume_id=volume_id)
        return warmup_of(self._call(self._stub.CancelWarmup, request, _QUERY_S).warmup)

    def start_trace(self, volume_id: str, seconds: float) -> None:
        self._call(self._stub.StartTrace, hayloft_pb2.StartTraceRequest(volume_id=volume_id, seconds=seconds), _QUERY_S)

    def stop_trace(self, volume_id: str) -> TraceReport:
        answer = self._call(self._stub.StopTrace, hayloft_pb2.StopTraceRequest(volume_id=volume_id), _UNMOUNT_S)
        return TraceReport(
            volume_id, answer.content_bytes, answer.files, answer.ranges, answer.read_bytes, answer.truncated
        )

    def read_trace(self, volume_id: str, offset: int) -> bytes:
        request = hayloft_pb2.ReadTraceRequest(volume_id=volume_id, offset=offset)
        content: bytes = self._call(self._stub.ReadTrace, request, _QUERY_S).content
        return content

    def close(self) -> None:
        """Closes the connection; calls in flight fail."""
        self._channel.close()

    def _call(self, method: Any, request: Any, at_most_s: float) -> Any:
        """Cancels the call to the daemon when the caller of this process's own call is gone, and raises Interrupted."""
        caller = callers.current()
        call = method.future(request, timeout=deadlines.remaining_s(at_most_s), metadata=_metadata())
        while True:
            try:
                return call.result(timeout=callers.POLL_S)
            except grpc.FutureTimeoutError:
                if caller.gone:
                    call.cancel()
                    callers.require(caller)
            except grpc.RpcError as error:
                raise self._translated(error) from None

    def _translated(self, error: Any) -> Exception:
        # Raised ``from None``: the text of the gRPC error repeats the message and adds nothing.
        code, message = error.code(), error.details() or ""
        names = [value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA]
        ours = error_from(names[0] if names else None, message)
        if ours is not None:
            return ours
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DaemonUnavailable(
                f"{self._socket}: the cache daemon did not answer within the deadline of the call; retry"
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return DaemonUnavailable(f"{self._socket}: no cache daemon answers there; is `hayloft cache` running?")
        return InternalFailure(f"{self._socket}: the cache daemon answered {code.name}: {message}")


def _metadata() -> tuple[tuple[str, str], ...]:
    """By which the daemon's log and spans continue those of this call."""
    call_id, span = current_call_id(), spans.current().context
    named = () if call_id is None else ((CALL_ID_METADATA, call_id),)
    return named if span is None else (*named, (spans.TRACEPARENT, span.traceparent))


def volume_of(report: hayloft_pb2.VolumeReport) -> VolumeReport:
    """From an answer."""
    return VolumeReport(
        volume_id=report.volume_id,
        mount_point=report.mount_point,
        snapshot_id=report.snapshot_id,
        total_bytes=report.total_bytes,
        cached_bytes=report.cached_bytes,
        file_count=report.file_count,
        conditions=conditions_of(report.conditions),
        notes=tuple(report.notes),
        attributes=dict(report.attributes),
        reserved_bytes=report.reserved_bytes,
        mount_group=report.mount_group,
    )


def conditions_of(reasons: Iterable[str]) -> tuple[Condition, ...]:
    """Those of the table; a reason that is not in it is UNKNOWN."""
    return distinct(map(of_reason, reasons))


def warmup_of(report: hayloft_pb2.WarmupReport) -> WarmupReport:
    """From an answer."""
    return WarmupReport(
        volume_id=report.volume_id,
        state=WarmupState(report.state),
        include=tuple(report.include),
        total_bytes=report.total_bytes,
        total_files=report.total_files,
        done_bytes=report.done_bytes,
        done_files=report.done_files,
        fetched_bytes=report.fetched_bytes,
        failed_files=report.failed_files,
        rate_bytes=report.rate_bytes,
        eta_s=report.eta_s if report.HasField("eta_s") else None,
        message=report.message,
        memory_bytes=report.memory_bytes,
        hot_bytes=report.hot_bytes,
    )
