"""The daemon's side of ``proto/hayloft.proto``: a data plane on a Unix socket. ``rpc/interceptor.py`` turns errors into
statuses, as it does for CSI."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc

from csi_driver.model.conditions import Condition
from csi_driver.model.errors import MissingParameter
from csi_driver.model.tenant import Tenant
from csi_driver.rpc import callers
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.pb import hayloft_pb2, hayloft_pb2_grpc
from csi_driver.rpc.socket_server import Register, SocketServer
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.volumes.data_plane import DataPlane, MountRequest, VolumeReport, WarmupReport, WarmupRequest


class DaemonService(hayloft_pb2_grpc.CacheDaemonServicer):
    """Translates between messages and values. A mount that continues after its caller timed out keeps the claim on the
    volume: a retry gets OperationPending at once, instead of a second thread that waits."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._pending = VolumeClaims()

    def Mount(self, request: hayloft_pb2.MountRequest, context: grpc.ServicerContext) -> hayloft_pb2.MountResponse:
        _require(volume_id=request.volume_id, mount_point=request.mount_point)
        mount = MountRequest(
            request.volume_id,
            request.mount_point,
            dict(request.attributes),
            dict(request.secrets),
            Tenant(request.namespace, request.inline),
            request.republished,
            request.mount_group,
        )
        if request.republished:
            callers.note_repeat()
        with self._pending.claim(request.volume_id):
            return hayloft_pb2.MountResponse(volume=volume_message(self._data_plane.mount(mount)))

    def Unmount(
        self, request: hayloft_pb2.UnmountRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.UnmountResponse:
        _require(volume_id=request.volume_id, mount_point=request.mount_point)
        with self._pending.claim(request.volume_id):
            self._data_plane.unmount(request.volume_id, request.mount_point)
        return hayloft_pb2.UnmountResponse()

    def Publish(
        self, request: hayloft_pb2.PublishRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.PublishResponse:
        _require(volume_id=request.volume_id, target_path=request.target_path)
        with self._pending.claim(request.volume_id):
            materialised = self._data_plane.publish(request.volume_id, request.target_path)
        return hayloft_pb2.PublishResponse(materialised=materialised)

    def Unpublish(
        self, request: hayloft_pb2.UnpublishRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.UnpublishResponse:
        _require(volume_id=request.volume_id, target_path=request.target_path)
        with self._pending.claim(request.volume_id):
            self._data_plane.unpublish(request.volume_id, request.target_path)
        return hayloft_pb2.UnpublishResponse()

    def GetVolume(
        self, request: hayloft_pb2.GetVolumeRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.GetVolumeResponse:
        _require(volume_id=request.volume_id)
        return hayloft_pb2.GetVolumeResponse(volume=volume_message(self._data_plane.volume(request.volume_id)))

    def ListMounts(
        self, request: hayloft_pb2.ListMountsRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.ListMountsResponse:
        found = (
            hayloft_pb2.KnownMount(volume_id=one.volume_id, mount_point=one.mount_point, device=one.device)
            for one in self._data_plane.mounts()
        )
        return hayloft_pb2.ListMountsResponse(mounts=found)

    def Report(self, request: hayloft_pb2.ReportRequest, context: grpc.ServicerContext) -> hayloft_pb2.ReportResponse:
        report = self._data_plane.report()
        return hayloft_pb2.ReportResponse(
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
            read_errors=report.read_errors,
            cache_evicted_objects=report.cache_evicted_objects,
            cache_free_bytes=report.cache_free_bytes,
            cache_free_floor_bytes=report.cache_free_floor_bytes,
            cache_inodes=report.cache_inodes,
            cache_free_inodes=report.cache_free_inodes,
            cache_free_floor_inodes=report.cache_free_floor_inodes,
        )

    def GetHealth(
        self, request: hayloft_pb2.GetHealthRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.GetHealthResponse:
        health = self._data_plane.health()
        mounts = (
            hayloft_pb2.MountHealth(
                volume_id=mount.volume_id,
                device=mount.device,
                total_bytes=mount.total_bytes,
                file_count=mount.file_count,
                conditions=reasons(mount.conditions),
                notes=mount.notes,
            )
            for mount in health.mounts
        )
        return hayloft_pb2.GetHealthResponse(node_conditions=reasons(health.node), mounts=mounts)

    def Reserve(
        self, request: hayloft_pb2.ReserveRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.ReserveResponse:
        _require(volume_id=request.volume_id)
        with self._pending.claim(request.volume_id):
            report = self._data_plane.reserve(request.volume_id, request.count_bytes)
        return hayloft_pb2.ReserveResponse(volume=volume_message(report))

    def StartWarmup(
        self, request: hayloft_pb2.StartWarmupRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.StartWarmupResponse:
        _require(volume_id=request.volume_id)
        warmup = WarmupRequest(
            request.volume_id,
            tuple(request.include),
            request.bandwidth_bytes,
            request.concurrency,
            request.into_memory,
            request.trace,
            request.start_percent,
        )
        return hayloft_pb2.StartWarmupResponse(warmup=warmup_message(self._data_plane.start_warmup(warmup)))

    def GetWarmup(
        self, request: hayloft_pb2.GetWarmupRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.GetWarmupResponse:
        _require(volume_id=request.volume_id)
        return hayloft_pb2.GetWarmupResponse(warmup=warmup_message(self._data_plane.warmup(request.volume_id)))

    def CancelWarmup(
        self, request: hayloft_pb2.CancelWarmupRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.CancelWarmupResponse:
        _require(volume_id=request.volume_id)
        return hayloft_pb2.CancelWarmupResponse(
            warmup=warmup_message(self._data_plane.cancel_warmup(request.volume_id))
        )

    def StartTrace(
        self, request: hayloft_pb2.StartTraceRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.StartTraceResponse:
        _require(volume_id=request.volume_id)
        self._data_plane.start_trace(request.volume_id, request.seconds)
        return hayloft_pb2.StartTraceResponse()

    def StopTrace(
        self, request: hayloft_pb2.StopTraceRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.StopTraceResponse:
        _require(volume_id=request.volume_id)
        report = self._data_plane.stop_trace(request.volume_id)
        return hayloft_pb2.StopTraceResponse(
            content_bytes=report.content_bytes,
            files=report.files,
            ranges=report.ranges,
            read_bytes=report.read_bytes,
            truncated=report.truncated,
        )

    def ReadTrace(
        self, request: hayloft_pb2.ReadTraceRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.ReadTraceResponse:
        _require(volume_id=request.volume_id)
        return hayloft_pb2.ReadTraceResponse(content=self._data_plane.read_trace(request.volume_id, request.offset))


def daemon_server(
    socket: Path, data_plane: DataPlane, *further: Register, counts: CallCounts | None = None
) -> SocketServer:
    """A server, not yet started, on a socket of mode 0600, with ``further`` services. Calls are added to ``counts``.
    Its ``start`` raises InvalidParameter when the path cannot be used or another daemon listens there."""
    service = DaemonService(data_plane)
    own: Register = lambda server: hayloft_pb2_grpc.add_CacheDaemonServicer_to_server(service, server)  # noqa: E731
    return SocketServer(socket, (own, *further), "--socket", counts=counts)


def _require(**values: str) -> None:
    for name, value in values.items():
        if not value:
            raise MissingParameter(name)


def volume_message(report: VolumeReport) -> hayloft_pb2.VolumeReport:
    """For an answer."""
    return hayloft_pb2.VolumeReport(
        volume_id=report.volume_id,
        mount_point=report.mount_point,
        snapshot_id=report.snapshot_id,
        total_bytes=report.total_bytes,
        cached_bytes=report.cached_bytes,
        file_count=report.file_count,
        conditions=reasons(report.conditions),
        notes=report.notes,
        reserved_bytes=report.reserved_bytes,
        mount_group=report.mount_group,
        attributes=report.attributes,
    )


def reasons(conditions: Iterable[Condition]) -> list[str]:
    return [condition.reason for condition in conditions]


def warmup_message(report: WarmupReport) -> hayloft_pb2.WarmupReport:
    """For an answer."""
    return hayloft_pb2.WarmupReport(
        volume_id=report.volume_id,
        state=report.state,
        include=report.include,
        total_bytes=report.total_bytes,
        total_files=report.total_files,
        done_bytes=report.done_bytes,
        done_files=report.done_files,
        fetched_bytes=report.fetched_bytes,
        failed_files=report.failed_files,
        rate_bytes=report.rate_bytes,
        eta_s=report.eta_s,
        message=report.message,
        memory_bytes=report.memory_bytes,
        hot_bytes=report.hot_bytes,
    )
