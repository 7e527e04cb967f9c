"""The command's side of the service ``NodeOperations``: asks the cache daemon over its Unix socket.

A person waits, or a script that watches the node: a daemon that is down, hangs, or is of another version is reported
within two seconds.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import grpc

from csi_driver.daemon.command_errors import DaemonOutdated, DaemonSilent
from csi_driver.daemon.daemon_client import CHANNEL_OPTIONS, conditions_of, volume_of, warmup_of
from csi_driver.model.errors import DaemonUnavailable, InternalFailure
from csi_driver.rpc.pb import hayloft_pb2, hayloft_pb2_grpc
from csi_driver.rpc.statuses import ERROR_METADATA, error_from
from csi_driver.volumes.data_plane import DaemonReport
from csi_driver.volumes.node_operations import (
    Counted,
    DirectoryPage,
    Entry,
    Evicted,
    FileRows,
    Finding,
    FindingKind,
    NodeActivity,
    NodeStatus,
    Verified,
    VolumeActivity,
    VolumeStatus,
)

ANSWER_S = 1.2
"""Time-out of what the daemon answers from memory; the command itself needs some tenths of a second to start."""

STEP_TIMEOUT_S = 30.0
"""Time-out of one step of an operation on files, which takes half a second where disk and store are fast."""

VERIFY_TIMEOUT_S = 600.0
"""One file may have a terabyte: as much as an NVMe disk reads in this time."""

_PROBE_S = 0.2
"""A connection to a Unix socket is made at once, whatever its process does, unless its backlog is full."""

_LONGEST_ANSWER_BYTES = 64 << 20

_CREDENTIALS = struct.Struct("iII")
"""Of SO_PEERCRED: process, user, group."""


@dataclass(frozen=True, slots=True)
class DaemonProcess:
    """Of the process that listens on a socket, as the kernel has it. May be called while the daemon hangs."""

    process_id: int
    """0: not visible from this namespace of processes."""
    states: Mapping[str, int]
    """Threads by their state, a letter as in proc_pid_stat(5): ``R``, ``S``, ``D``, ``T``, ``Z``."""

    @classmethod
    def of_socket(cls, path: Path) -> DaemonProcess | None:
        """None: nothing listens there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_S)
            try:
                probe.connect(os.fspath(path))
            except TimeoutError:
                return cls(0, {})
            except OSError:
                return None
            packed = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return cls.of(_CREDENTIALS.unpack(packed)[0])

    @classmethod
    def of(cls, process_id: int, proc: Path = Path("/proc")) -> DaemonProcess:
        """Of a process that may be gone."""
        states: Counter[str] = Counter()
        if process_id:
            for stat in (proc / str(process_id) / "task").glob("*/stat"):
                with suppress(OSError, IndexError):  # the thread has just ended
                    states[stat.read_text().rpartition(")")[2].split()[0]] += 1
        return cls(process_id, states)

    def explanation(self) -> str:
        """Why it may not answer, and what to do: the end of a sentence."""
        if not self.process_id:
            return "its process cannot be seen from here"
        name = f"process {self.process_id}"
        if self.states.get("T") or self.states.get("t"):
            return f"{name} is stopped (SIGSTOP or a debugger); continue it with: kill -CONT {self.process_id}"
        if self.states.get("D"):
            return (
                f"{self.states['D']} threads of {name} wait for a disk or another device (state D); look at the "
                "kernel's log (dmesg) for errors of the cache disk"
            )
        if not self.states:
            return f"{name} has ended"
        return (
            f"{name} runs, and may be short of processor time or dead-locked; look at its log, and at the load of the "
            f"node; killing it (kill -KILL {self.process_id}) ends no mount while the keeper runs"
        )


class OperationsClient:
    """A ``NodeOperations``. May be used from any thread; ``close`` when done. Errors of the daemon are raised with
    their own class; besides DaemonUnavailable (nothing listens), DaemonSilent, DaemonOutdated."""

    def __init__(self, path: Path, own_version: str, answer_s: float = ANSWER_S) -> None:
        self._path, self._own_version, self._answer_s = path, own_version, answer_s
        options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _LONGEST_ANSWER_BYTES))
        self._channel = grpc.insecure_channel(f"unix:{path}", options=options)
        self._stub = hayloft_pb2_grpc.NodeOperationsStub(self._channel)
        self._daemon = hayloft_pb2_grpc.CacheDaemonStub(self._channel)

    def close(self) -> None:
        """Closes the connection; calls in flight fail."""
        self._channel.close()

    def process(self) -> DaemonProcess | None:
        """The daemon's, by its id in this process's namespace. None: nothing listens."""
        return DaemonProcess.of_socket(self._path)

    def report(self) -> DaemonReport:
        """What daemons of all versions answer."""
        return _report(self._call(self._daemon.Report, hayloft_pb2.ReportRequest(), self._answer_s))

    def status(self) -> NodeStatus:
        answer = self._call(self._stub.GetNodeStatus, hayloft_pb2.GetNodeStatusRequest(), self._answer_s)
        return NodeStatus(
            report=_report(answer.report),
            conditions=conditions_of(answer.node_conditions),
            volumes=tuple(map(_volume_status, answer.volumes)),
            cache_directory=answer.cache_directory,
            cache_file_system=answer.cache_file_system,
            cache_shared_with=answer.cache_shared_with,
            uptime_s=answer.uptime_s,
            opened_bytes=answer.opened_bytes,
            fetched_for_readers_bytes=answer.fetched_for_readers_bytes,
            unverified_files=answer.unverified_files,
            passthrough_allowed=answer.passthrough_allowed,
        )

    def list_directory(self, volume_id: str, path: bytes, cookie: int = 0) -> DirectoryPage:
        request = hayloft_pb2.ListDirectoryRequest(volume_id=volume_id, path=path, cookie=cookie)
        answer = self._call(self._stub.ListDirectory, request, STEP_TIMEOUT_S)
        entries = tuple(map(_entry, answer.entries))
        return DirectoryPage(answer.snapshot_id, entries, answer.next_cookie, _rows(answer.rows), answer.is_directory)

    def count_cached(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Counted:
        request = hayloft_pb2.CountCachedRequest(volume_id=volume_id, snapshot_id=snapshot_id, rows=_message(rows))
        answer = self._call(self._stub.CountCached, request, STEP_TIMEOUT_S)
        return Counted(answer.cached_bytes, answer.complete_files, answer.next_row, answer.total_bytes)

    def evict(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Evicted:
        request = hayloft_pb2.EvictRequest(volume_id=volume_id, snapshot_id=snapshot_id, rows=_message(rows))
        answer = self._call(self._stub.Evict, request, STEP_TIMEOUT_S)
        return Evicted(
            answer.evicted_bytes, answer.evicted_files, answer.kept_bytes, answer.kept_files, answer.next_row
        )

    def set_pinned(self, volume_id: str, pinned: bool) -> VolumeStatus:
        request = hayloft_pb2.SetPinnedRequest(volume_id=volume_id, pinned=pinned)
        return _volume_status(self._call(self._stub.SetPinned, request, STEP_TIMEOUT_S).volume)

    def verify(self, volume_id: str, snapshot_id: str, rows: FileRows, *, origin: bool) -> Verified:
        request = hayloft_pb2.VerifyRequest(
            volume_id=volume_id, snapshot_id=snapshot_id, rows=_message(rows), origin=origin
        )
        answer = self._call(self._stub.Verify, request, VERIFY_TIMEOUT_S)
        findings = tuple(
            Finding(one.path, FindingKind(one.kind), one.bad_chunks, one.detail) for one in answer.findings
        )
        return Verified(answer.checked_bytes, answer.checked_files, answer.compared_files, findings, answer.next_row)

    def activity(self) -> NodeActivity:
        answer = self._call(self._stub.GetActivity, hayloft_pb2.GetActivityRequest(), self._answer_s)
        return NodeActivity(_report(answer.report), tuple(map(_volume_activity, answer.volumes)))

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._translated(error, timeout_s) from None

    def _translated(self, error: Any, timeout_s: float) -> Exception:
        code, message = error.code(), error.details() or ""
        names = [value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA]
        ours = error_from(names[0] if names else None, message)
        if ours is not None:
            return ours
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return DaemonOutdated(self._outdated())
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return self._away(timeout_s)
        return InternalFailure(f"{self._path}: the cache daemon answered {code.name}: {message}")

    def _away(self, timeout_s: float) -> DaemonUnavailable:
        process = DaemonProcess.of_socket(self._path)
        if process is None:
            return DaemonUnavailable(
                f"{self._path}: no cache daemon listens there; it is not running, or is being started: look at the "
                "container `cache` of the pod `hayloft-node`, or at `hayloft all-in-one`"
            )
        return DaemonSilent(
            f"{self._path}: the cache daemon did not answer within {timeout_s:g} s: {process.explanation()}"
        )

    def _outdated(self) -> str:
        try:
            report = self._daemon.Report(hayloft_pb2.ReportRequest(), timeout=self._answer_s)
            which = f"version {report.version} (process {report.process_id})"
        except grpc.RpcError:
            which = "another version"
        return (
            f"{self._path}: the cache daemon is of {which} and does not know this call; this command is of version "
            f"{self._own_version}: upgrade the daemon, or use the command of the daemon's own container"
        )


def _report(message: hayloft_pb2.ReportResponse) -> DaemonReport:
    """The two have the same fields."""
    values: dict[str, Any] = {field.name: getattr(message, field.name) for field in fields(DaemonReport)}
    values["read_errors"] = dict(message.read_errors)
    return DaemonReport(**values)


def _volume_status(message: hayloft_pb2.VolumeStatus) -> VolumeStatus:
    return VolumeStatus(
        volume=volume_of(message.volume),
        warmup=warmup_of(message.warmup),
        counted=message.counted,
        pinned=message.pinned,
        namespace=message.namespace,
        inline=message.inline,
        url=message.url,
        endpoint=message.endpoint,
        device=message.device,
        passthrough=message.passthrough,
        store_wait_s=message.store_wait_s,
    )


def _entry(message: hayloft_pb2.Entry) -> Entry:
    cached_bytes = message.cached_bytes if message.HasField("cached_bytes") else None
    return Entry(message.name, message.is_directory, message.size_bytes, cached_bytes, _rows(message.rows))


def _rows(message: hayloft_pb2.FileRows) -> FileRows:
    return FileRows(message.start, message.stop)


def _message(rows: FileRows) -> hayloft_pb2.FileRows:
    return hayloft_pb2.FileRows(start=rows.start, stop=rows.stop)


def _volume_activity(message: hayloft_pb2.VolumeActivity) -> VolumeActivity:
    return VolumeActivity(
        volume_id=message.volume_id,
        device=message.device,
        passed_through=tuple(message.passed_through),
        served=tuple(message.served),
        without_opens=message.without_opens,
        cached_bytes=message.cached_bytes,
        store_wait_s=message.store_wait_s,
    )
