"""Kubelet's side of plugin registration: finds sockets in its directory, asks, and reports the outcome."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc, plugin_registration_pb2, plugin_registration_pb2_grpc

CALL_S = 10.0


class PluginWatcher:
    """As kubelet's plugin watcher does; the caller says when it looks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sockets(self) -> dict[str, int]:
        """The inode change times by name. Kubelet leaves out names with a dot in front."""
        found = {}
        for entry in os.scandir(self._directory):
            status = entry.stat(follow_symlinks=False)
            if not entry.name.startswith(".") and stat.S_ISSOCK(status.st_mode):
                found[entry.name] = status.st_ctime_ns
        return found

    def info(self, name: str) -> plugin_registration_pb2.PluginInfo:
        with self._stub(name) as stub:
            answer: plugin_registration_pb2.PluginInfo = stub.GetInfo(
                plugin_registration_pb2.InfoRequest(), timeout=CALL_S
            )
            return answer

    def register(self, name: str) -> tuple[plugin_registration_pb2.PluginInfo, csi_pb2.NodeGetInfoResponse]:
        """Asks the plugin, then the driver at its endpoint, and reports success."""
        info = self.info(name)
        with grpc.insecure_channel(f"unix:{info.endpoint}") as channel:
            node = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=CALL_S)
        self.notify(name)
        return info, node

    def notify(self, name: str, error: str = "") -> None:
        """Reports the outcome: success, or the error."""
        status = plugin_registration_pb2.RegistrationStatus(plugin_registered=not error, error=error)
        with self._stub(name) as stub:
            stub.NotifyRegistrationStatus(status, timeout=CALL_S)

    @contextmanager
    def _stub(self, name: str) -> Iterator[Any]:
        with grpc.insecure_channel(f"unix:{self._directory / name}") as channel:
            yield plugin_registration_pb2_grpc.RegistrationStub(channel)
