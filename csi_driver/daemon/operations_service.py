"""The daemon's side of the service ``NodeOperations`` of ``proto/hayloft.proto``."""

from __future__ import annotations

from dataclasses import asdict

import grpc

from csi_driver.daemon.daemon_service import reasons, volume_message, warmup_message
from csi_driver.model.errors import MissingParameter
from csi_driver.rpc.pb import hayloft_pb2, hayloft_pb2_grpc
from csi_driver.rpc.socket_server import Register
from csi_driver.volumes.data_plane import DaemonReport
from csi_driver.volumes.node_operations import Entry, FileRows, Finding, NodeOperations, VolumeActivity, VolumeStatus


class OperationsService(hayloft_pb2_grpc.NodeOperationsServicer):
    """Translates between messages and values."""

    def __init__(self, operations: NodeOperations) -> None:
        self._operations = operations

    def GetNodeStatus(
        self, request: hayloft_pb2.GetNodeStatusRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.GetNodeStatusResponse:
        status = self._operations.status()
        return hayloft_pb2.GetNodeStatusResponse(
            report=_report(status.report),
            node_conditions=reasons(status.conditions),
            volumes=map(_volume_status, status.volumes),
            cache_directory=status.cache_directory,
            cache_file_system=status.cache_file_system,
            cache_shared_with=status.cache_shared_with,
            uptime_s=status.uptime_s,
            opened_bytes=status.opened_bytes,
            fetched_for_readers_bytes=status.fetched_for_readers_bytes,
            unverified_files=status.unverified_files,
            passthrough_allowed=status.passthrough_allowed,
        )

    def ListDirectory(
        self, request: hayloft_pb2.ListDirectoryRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.ListDirectoryResponse:
        page = self._operations.list_directory(_volume_id(request), request.path, request.cookie)
        return hayloft_pb2.ListDirectoryResponse(
            snapshot_id=page.snapshot_id,
            entries=map(_entry, page.entries),
            next_cookie=page.next_cookie,
            rows=_rows(page.rows),
            is_directory=page.is_directory,
        )

    def CountCached(
        self, request: hayloft_pb2.CountCachedRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.CountCachedResponse:
        counted = self._operations.count_cached(_volume_id(request), request.snapshot_id, _rows_of(request.rows))
        return hayloft_pb2.CountCachedResponse(**asdict(counted))

    def Evict(self, request: hayloft_pb2.EvictRequest, context: grpc.ServicerContext) -> hayloft_pb2.EvictResponse:
        evicted = self._operations.evict(_volume_id(request), request.snapshot_id, _rows_of(request.rows))
        return hayloft_pb2.EvictResponse(**asdict(evicted))

    def SetPinned(
        self, request: hayloft_pb2.SetPinnedRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.SetPinnedResponse:
        return hayloft_pb2.SetPinnedResponse(
            volume=_volume_status(self._operations.set_pinned(_volume_id(request), request.pinned))
        )

    def Verify(self, request: hayloft_pb2.VerifyRequest, context: grpc.ServicerContext) -> hayloft_pb2.VerifyResponse:
        verified = self._operations.verify(
            _volume_id(request), request.snapshot_id, _rows_of(request.rows), origin=request.origin
        )
        return hayloft_pb2.VerifyResponse(
            checked_bytes=verified.checked_bytes,
            checked_files=verified.checked_files,
            compared_files=verified.compared_files,
            findings=map(_finding, verified.findings),
            next_row=verified.next_row,
        )

    def GetActivity(
        self, request: hayloft_pb2.GetActivityRequest, context: grpc.ServicerContext
    ) -> hayloft_pb2.GetActivityResponse:
        activity = self._operations.activity()
        return hayloft_pb2.GetActivityResponse(
            volumes=map(_volume_activity, activity.volumes), report=_report(activity.report)
        )


def operations_service(operations: NodeOperations) -> Register:
    """Adds the service to a server."""

    def register(server: grpc.Server) -> None:
        hayloft_pb2_grpc.add_NodeOperationsServicer_to_server(OperationsService(operations), server)

    return register


def _volume_id(request: object) -> str:
    volume_id = str(getattr(request, "volume_id", ""))
    if not volume_id:
        raise MissingParameter("volume_id")
    return volume_id


def _report(report: DaemonReport) -> hayloft_pb2.ReportResponse:
    return hayloft_pb2.ReportResponse(**asdict(report))


def _volume_status(status: VolumeStatus) -> hayloft_pb2.VolumeStatus:
    return hayloft_pb2.VolumeStatus(
        volume=volume_message(status.volume),
        warmup=warmup_message(status.warmup),
        counted=status.counted,
        pinned=status.pinned,
        namespace=status.namespace,
        inline=status.inline,
        url=status.url,
        endpoint=status.endpoint,
        device=status.device,
        passthrough=status.passthrough,
        store_wait_s=status.store_wait_s,
    )


def _entry(entry: Entry) -> hayloft_pb2.Entry:
    return hayloft_pb2.Entry(
        name=entry.name,
        is_directory=entry.is_directory,
        size_bytes=entry.size_bytes,
        cached_bytes=entry.cached_bytes,
        rows=_rows(entry.rows),
    )


def _rows(rows: FileRows) -> hayloft_pb2.FileRows:
    return hayloft_pb2.FileRows(start=rows.start, stop=rows.stop)


def _rows_of(rows: hayloft_pb2.FileRows) -> FileRows:
    return FileRows(rows.start, rows.stop)


def _finding(finding: Finding) -> hayloft_pb2.VerifyFinding:
    return hayloft_pb2.VerifyFinding(
        path=finding.path, kind=finding.kind, bad_chunks=finding.bad_chunks, detail=finding.detail
    )


def _volume_activity(activity: VolumeActivity) -> hayloft_pb2.VolumeActivity:
    return hayloft_pb2.VolumeActivity(
        volume_id=activity.volume_id,
        device=activity.device,
        passed_through=activity.passed_through,
        served=activity.served,
        without_opens=activity.without_opens,
        cached_bytes=activity.cached_bytes,
        store_wait_s=activity.store_wait_s,
    )
