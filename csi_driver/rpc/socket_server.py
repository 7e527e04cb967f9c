"""A gRPC server on a Unix socket of mode 0600."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from csi_driver.model.errors import InvalidParameter
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.interceptor import CallInterceptor
from csi_driver.rpc.long_calls import THREADS
from csi_driver.rpc.socket_file import LONGEST_PATH, SocketFile

_WATCH_S = 2.0
"""Interval at which the server looks whether its path still leads to it: one lstat."""

Register = Callable[[grpc.Server], None]
"""Adds a service to a server."""


def socket_path(endpoint: str) -> Path:
    """The path in ``unix:///path``, ``unix:/path`` or ``/path``. Raises InvalidParameter."""
    scheme, separator, rest = endpoint.partition(":")
    path = endpoint if endpoint.startswith("/") else rest.removeprefix("//") if scheme == "unix" and separator else ""
    if not path.startswith("/") or path.endswith("/"):
        raise InvalidParameter("--endpoint", endpoint, "unix:///path/of/a/socket")
    if len(os.fsencode(path)) > LONGEST_PATH:
        remedy = "Use a shorter path: this is a limit of Unix sockets"
        raise InvalidParameter("--endpoint", endpoint, f"a path of at most {LONGEST_PATH} bytes", remedy)
    return Path(path)


class SocketServer:
    """Serves from ``start`` until ``stop``, which waits for the calls in flight."""

    def __init__(
        self,
        path: Path,
        services: Iterable[Register],
        flag: str = "--endpoint",
        *,
        patient: bool = False,
        counts: CallCounts | None = None,
    ) -> None:
        """``flag``: which one gave the path, for messages. ``patient``: as of ``SocketFile``. Calls are added to
        ``counts``."""
        self._path, self._flag, self._patient = path, flag, patient
        self._file: SocketFile | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="socket", daemon=True)
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="grpc"),
            interceptors=(CallInterceptor(counts or CallCounts()),),
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)),
        )
        for register in services:
            register(self._server)

    def bind(self) -> None:
        """Makes the socket; clients that connect wait for ``start``. Only to be called where it is not to be made by
        ``start``, since other threads make files by then. Raises InvalidParameter when the path cannot be used or
        another process serves there."""
        self._file = SocketFile(self._path, self._listen, field=self._flag, patient=self._patient)

    def start(self) -> None:
        """Raises as ``bind``."""
        if self._file is None:
            self.bind()
        self._server.start()
        self._watcher.start()

    def require_own_socket(self) -> None:
        """For probes. Raises SocketTaken when clients that connect to the path do not reach this server."""
        if self._file is not None:
            self._file.require_own()

    def announce(self) -> None:
        """As of ``SocketFile``."""
        if self._file is not None:
            self._file.announce()

    def stop(self, grace_s: float) -> None:
        """Removes the socket, refuses new calls, waits up to ``grace_s`` for those in flight, and aborts the rest. A
        successor may serve at the path meanwhile."""
        self._stopping.set()
        if self._file is not None:
            self._watcher.join()
            self._file.remove()
        self._server.stop(grace_s).wait()
        if self._file is not None:
            self._file.close()

    def _listen(self, path: str) -> None:
        # gRPC removes what is at this path, before it binds and when it stops, without a look whether it is its own:
        # hence the private name.
        try:
            bound = self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise _unusable(self._path, self._flag) from error
        if not bound:
            raise _unusable(self._path, self._flag)

    def _watch(self) -> None:
        while self._file is not None and not self._stopping.wait(_WATCH_S):
            self._file.restore()


def _unusable(path: Path, flag: str) -> InvalidParameter:
    return InvalidParameter(flag, os.fspath(path), "a path where a socket can be made; this one cannot be bound")
