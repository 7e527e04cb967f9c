"""A gRPC server on a Unix socket that nobody but its owner may connect to."""

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
"""Bytes in sun_path of a Unix socket address, less the final zero."""

_THREADS = 64
"""A mount that lists a dataset may keep one for minutes; probes must still be answered meanwhile."""

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
    """Serves from ``start`` on; ``stop`` lets calls under way finish for a while."""

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
        make_way(self._path)
        with _private_files():
            try:
                bound = self._server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise _unusable(self._path, "cannot be bound") from error
        if not bound or not self._path.is_socket():
            raise _unusable(self._path, "cannot be bound")
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Returns when all calls have ended or were cancelled after ``grace_s``; the socket file is gone then."""
        self._server.stop(grace_s).wait()
        with suppress(FileNotFoundError):
            self._path.unlink()


def make_way(path: Path) -> None:
    """Removes a socket file that a dead process left. Raises InvalidParameter when somebody answers there, or when it
    is no socket."""
    if not path.parent.is_dir():
        raise _unusable(path, "is in a directory that does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _unusable(path, "exists and is not a socket")
    if _somebody_answers(path):
        raise _unusable(path, "is served by another process already; end that one")
    with suppress(FileNotFoundError):
        path.unlink()


def _somebody_answers(path: Path) -> bool:
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
    """Files that are made meanwhile get mode 0600. The umask is the whole process's: only while starting up."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _unusable(path: Path, reason: str) -> InvalidParameter:
    return InvalidParameter("endpoint", os.fspath(path), f"a path where a socket can be made; this one {reason}")
