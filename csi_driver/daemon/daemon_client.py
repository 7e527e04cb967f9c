"""The node plugin's side of ``proto/hayloft.proto``: a data plane that asks the daemon over its Unix socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from csi_driver.model.errors import DaemonUnavailable, InternalFailure
from csi_driver.rpc import deadlines
from csi_driver.rpc.pb import hayloft_pb2, hayloft_pb2_grpc
from csi_driver.rpc.statuses import ERROR_METADATA, error_from
from csi_driver.volumes.data_plane import (
    DaemonReport,
    MountRequest,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
    WarmupState,
)

_MOUNT_S = 900.0
"""Listing ten million objects for the first time takes minutes. A shorter deadline of the caller counts."""
_UNMOUNT_S = 120.0
_ASK_S = 5.0
"""The daemon answers these from memory."""

_CHANNEL_OPTIONS = (
    # A daemon that was restarted is found again within a second; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels to one socket must not share a connection: each gives up and recovers for itself.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_Answer = TypeVar("_Answer")


class DaemonClient:
    """A ``DataPlane``. May be used from any thread; ``close`` when done. A call takes no longer than the CSI call that
    it is made for may still take.

    Errors of the daemon come back as what they were. DaemonUnavailable: nobody answers on the socket, or not in time;
    then the call may have been carried out all the same.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)
        self._stub = hayloft_pb2_grpc.CacheDaemonStub(self._channel)

    def mount(self, wish: MountRequest) -> VolumeReport:
        request = hayloft_pb2.MountRequest(
            volume_id=wish.volume_id,
            mount_point=wish.mount_point,
            attributes=dict(wish.attributes),
            secrets=dict(wish.secrets),
        )
        return _volume(self._call(self._stub.Mount, request, _MOUNT_S).volume)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        request = hayloft_pb2.UnmountRequest(volume_id=volume_id, mount_point=mount_point)
        self._call(self._stub.Unmount, request, _UNMOUNT_S)

    def publish(self, volume_id: str, target: str) -> bool:
        request = hayloft_pb2.PublishRequest(volume_id=volume_id, target_path=target)
        return bool(self._call(self._stub.Publish, request, _MOUNT_S).materialised)

    def unpublish(self, volume_id: str, target: str) -> None:
        request = hayloft_pb2.UnpublishRequest(volume_id=volume_id, target_path=target)
        self._call(self._stub.Unpublish, request, _ASK_S)

    def volume(self, volume_id: str) -> VolumeReport:
        return _volume(
            self._call(self._stub.GetVolume, hayloft_pb2.GetVolumeRequest(volume_id=volume_id), _ASK_S).volume
        )

    def report(self) -> DaemonReport:
        answer = self._call(self._stub.Report, hayloft_pb2.ReportRequest(), _ASK_S)
        return DaemonReport(
            version=answer.version,
            process_id=answer.process_id,
            mounts=answer.mounts,
            passthrough=answer.passthrough,
            cache_limit_bytes=answer.cache_limit_bytes,
            cache_used_bytes=answer.cache_used_bytes,
            origin_bytes=answer.origin_bytes,
            origin_requests=answer.origin_requests,
            resident_bytes=answer.resident_bytes,
            warmups=answer.warmups,
            warmup_bytes=answer.warmup_bytes,
            cache_bad_chunks=answer.cache_bad_chunks,
            cache_disk_failures=answer.cache_disk_failures,
            cache_disk_in_use=answer.cache_disk_in_use,
            scrubbed_bytes=answer.scrubbed_bytes,
            checksum_mismatches=answer.checksum_mismatches,
        )

    def start_warmup(self, wish: WarmupRequest) -> WarmupReport:
        request = hayloft_pb2.StartWarmupRequest(
            volume_id=wish.volume_id,
            include=wish.include,
            bandwidth_bytes=wish.bandwidth_bytes,
            concurrency=wish.concurrency,
        )
        return _warmup(self._call(self._stub.StartWarmup, request, _ASK_S).warmup)

    def warmup(self, volume_id: str) -> WarmupReport:
        request = hayloft_pb2.GetWarmupRequest(volume_id=volume_id)
        return _warmup(self._call(self._stub.GetWarmup, request, _ASK_S).warmup)

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        request = hayloft_pb2.CancelWarmupRequest(volume_id=volume_id)
        return _warmup(self._call(self._stub.CancelWarmup, request, _ASK_S).warmup)

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
        self._channel.close()

    def _call(self, method: Callable[..., _Answer], request: Any, at_most_s: float) -> _Answer:
        seconds = deadlines.remaining_s(at_most_s)
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._translated(error, seconds) from None

    def _translated(self, error: Any, seconds: float) -> Exception:
        """``from None`` above: the text of the gRPC error repeats the message and adds nothing for a reader."""
        code, message = error.code(), error.details() or ""
        names = [value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA]
        ours = error_from(names[0] if names else None, message)
        if ours is not None:
            return ours
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DaemonUnavailable(
                f"{self._socket}: the cache daemon did not answer within {seconds:.1f} s; ask again"
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return DaemonUnavailable(f"{self._socket}: no cache daemon answers there; is `hayloft cache` running?")
        return InternalFailure(f"{self._socket}: the cache daemon answered {code.name}: {message}")


def _volume(report: hayloft_pb2.VolumeReport) -> VolumeReport:
    return VolumeReport(
        volume_id=report.volume_id,
        mount_point=report.mount_point,
        snapshot_id=report.snapshot_id,
        total_bytes=report.total_bytes,
        cached_bytes=report.cached_bytes,
        file_count=report.file_count,
        abnormal=report.abnormal,
        message=report.message,
    )


def _warmup(report: hayloft_pb2.WarmupReport) -> WarmupReport:
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
    )
