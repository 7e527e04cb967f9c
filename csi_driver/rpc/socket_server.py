"""A gRPC server on a Unix socket of mode 0600."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from csi_driver.model.errors import InvalidParameter
from csi_driver.rpc.interceptor import CallInterceptor

_LONGEST_SOCKET_PATH = 107
"""Bytes in sun_path of a Unix socket address, without the terminating NUL."""

_THREADS = 64
"""A mount that lists a dataset may occupy one for minutes; probes must still be answered meanwhile."""

Register = Callable[[grpc.Server], None]
"""Adds a service to a server."""


def socket_path(endpoint: str) -> Path:
    """The path in ``unix:///path``, ``unix:/path`` or ``/path``. Raises InvalidParameter."""
    scheme, separator, rest = endpoint.partition(":")
    path = endpoint if endpoint.startswith("/") else rest.removeprefix("//") if scheme == "unix" and separator else ""
    if not path.startswith("/") or path.endswith("/"):
        raise InvalidParameter("endpoint", endpoint, "unix:///path/of/a/socket")
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        remedy = "Use a shorter path: this is a limit of Unix sockets"
        raise InvalidParameter("endpoint", endpoint, f"a path of at most {_LONGEST_SOCKET_PATH} bytes", remedy)
    return Path(path)


class SocketServer:
    """Serves from ``start`` until ``stop``, which waits for the calls in flight."""

    def __init__(self, path: Path, services: Iterable[Register]) -> None:
        self._path = path
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
            interceptors=(CallInterceptor(),),
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)),
        )
        for register in services:
            register(self._server)

    def start(self) -> None:
        """Raises InvalidParameter when the path cannot be used or another process serves there."""
        remove_stale_socket(self._path)
        with _private_files():
            try:
                bound = self._server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise _unusable(self._path, "cannot be bound") from error
        if not bound or not self._path.is_socket():
            raise _unusable(self._path, "cannot be bound")
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuses new calls, waits up to ``grace_s`` for those in flight, aborts the rest, and removes the socket."""
        self._server.stop(grace_s).wait()
        with suppress(FileNotFoundError):
            self._path.unlink()


def remove_stale_socket(path: Path) -> None:
    """Removes the socket file of a dead process. Raises InvalidParameter when a process listens there, or when it is
    no socket."""
    if not path.parent.is_dir():
        raise _unusable(path, "is in a directory that does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _unusable(path, "exists and is not a socket")
    if _is_served(path):
        raise _unusable(path, "is served by another process already; end that one")
    with suppress(FileNotFoundError):
        path.unlink()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)  # a full backlog means that a process listens
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


@contextmanager
def _private_files() -> Iterator[None]:
    """Files made in the body get mode 0600. The umask is that of the whole process, so this is for start-up only, when
    no other thread makes files."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _unusable(path: Path, reason: str) -> InvalidParameter:
    return InvalidParameter("endpoint", os.fspath(path), f"a path where a socket can be made; this one {reason}")
