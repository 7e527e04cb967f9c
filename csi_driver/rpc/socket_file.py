"""The file of a Unix socket, made, watched and removed by the process that serves it. Standard library only.

Two processes may use one path: that of a pod that ends, with calls still running, and that of its successor. Neither
may remove the file of the other. So a process binds under a private name, links the socket to its path, and compares
the inode before it removes anything; a lock on the directory makes each of these steps one.

    <directory>/<name>             where clients connect
    <directory>/.<name>.<random>   the same socket, by which its process can link it to its path again
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.model.errors import InvalidParameter, SocketTaken
from csi_driver.model.tracebacks import summary
from csi_driver.telemetry import fields

logger = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PROBE_S = 1.0
_LOCK_S = 10.0
_LOCK_POLL_S = 0.02
_FREE_POLL_S = 0.1
"""Kubelet and the node plugin repeat a call that finds no socket, after half a second and more."""
_LONGEST_PREFIX = 32
LONGEST_PATH = 107
"""Of a socket that clients connect to: ``sun_path`` of Linux, without the final zero."""


class SocketFile:
    """From its construction until ``remove``. Methods may be called from any thread."""

    def __init__(
        self,
        path: Path,
        listen: Callable[[str], None],
        *,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        field: str = "--endpoint",
        patient: bool = False,
    ) -> None:
        """``listen`` binds a socket of that kind at the given path and listens; its file gets mode 0600. ``field`` is
        how the path is called in errors. With ``patient`` another process may serve at the path: then ``restore`` takes
        it when that process has ended.

        To be called while no other thread makes files. Raises InvalidParameter when the path cannot be used or another
        process serves there, and what ``listen`` raises."""
        self.path = path
        self._kind = kind
        self._field = field
        self._prefix = f".{path.name[:_LONGEST_PREFIX]}."
        self._private = f"{self._prefix}{secrets.token_hex(4)}"
        self._directory_fd = _open_directory(path, field)
        self._displaced = False
        try:
            with _locked(self._directory_fd):
                self._displaced = patient and not self._is_free()
                if not self._displaced:
                    self._remove_stale()
                with _private_files():
                    listen(self._address(self._private))
                try:
                    self._identity = _identity(self._directory_fd, self._private)
                    if not self._displaced:
                        self._link()
                except OSError as error:
                    raise _unusable(field, path, f"cannot be made: {error.strerror}") from error
        except BaseException:
            self._unlink(self._private)
            os.close(self._directory_fd)
            raise

    def is_own(self) -> bool:
        """Whether the path leads to this process's socket."""
        with suppress(OSError):
            return _identity(self._directory_fd, self.path.name) == self._identity
        return False

    def require_own(self) -> None:
        """Raises SocketTaken if the path leads to another socket, or to none."""
        if not self.is_own():
            raise SocketTaken(
                f"{self.path}: is not the socket of this process any more; calls do not reach it. Is another process "
                "started with the same path?"
            )

    def restore(self) -> None:
        """Links the socket to its path again if its file was removed, or replaced by that of a process that is gone.
        The path of another process that listens is left alone, with an error in the log."""
        if self.is_own():
            self._displaced = False
            return
        try:
            with _locked(self._directory_fd):
                self._remove_stale()
                self._link()
        except (InvalidParameter, OSError) as error:
            if not self._displaced:
                facts = fields(socket=str(self.path), error=summary(error))
                logger.error("calls do not reach this process: its socket was replaced", extra=facts)
            self._displaced = True
        else:
            facts = fields(socket=str(self.path))
            logger.warning("the socket was removed by another process; it is there again", extra=facts)

    def announce(self) -> None:
        """Makes the path anew, for a process that watches the directory. Does nothing if it is another socket's."""
        with _locked(self._directory_fd):
            if self.is_own():
                self._unlink(self.path.name)
                self._link()

    def remove(self) -> None:
        """Removes the path if it leads to this process's socket. The socket still listens."""
        with _locked(self._directory_fd):
            if self.is_own():
                self._unlink(self.path.name)
            self._unlink(self._private)

    def close(self) -> None:
        """After ``remove``, and after the socket was closed."""
        os.close(self._directory_fd)

    def _link(self) -> None:
        fd = self._directory_fd
        os.link(self._private, self.path.name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)

    def _remove_stale(self) -> None:
        """Removes the files of processes that are gone. Raises InvalidParameter."""
        _remove_stale(self._directory_fd, self.path, self._kind, self._field)
        for name in os.listdir(self._directory_fd):
            if name.startswith(self._prefix) and not _is_served(self._address(name), self._kind):
                self._unlink(name)

    def _is_free(self) -> bool:
        try:
            self._remove_stale()
        except InvalidParameter as error:
            facts = fields(socket=str(self.path), error=str(error))
            logger.warning("another process serves at this socket; it is taken over when that one ends", extra=facts)
            return False
        return True

    def _address(self, name: str) -> str:
        """Of a socket in the directory, however long the path of that is: socket addresses have 107 bytes."""
        return f"/proc/self/fd/{self._directory_fd}/{name}"

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory_fd)


def wait_until_free(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """Blocks while another process serves at the path."""
    if not _is_served(os.fspath(path), kind):
        return
    facts = fields(socket=os.fspath(path))
    logger.info("another process serves at this path; this one takes over when that one stops", extra=facts)
    while _is_served(os.fspath(path), kind):
        time.sleep(_FREE_POLL_S)
    logger.info("the other process has stopped; this one takes over", extra=facts)


def remove_stale_socket(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM, field: str = "--endpoint") -> None:
    """Removes the socket file of a dead process. Raises InvalidParameter when a process listens there, or when it is
    no socket."""
    directory_fd = _open_directory(path, field)
    try:
        with _locked(directory_fd):
            _remove_stale(directory_fd, path, kind, field)
    finally:
        os.close(directory_fd)


def _is_served(address: str, kind: socket.SocketKind) -> bool:
    """Whether a process listens there."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_PROBE_S)  # a full backlog means that a process listens
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # also another kind of socket
            return True
        return True


def _remove_stale(directory_fd: int, path: Path, kind: socket.SocketKind, field: str) -> None:
    try:
        mode = os.stat(path.name, dir_fd=directory_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _unusable(field, path, "exists and is not a socket")
    if _is_served(os.fspath(path), kind):
        raise _unusable(field, path, "is served by another process already; stop the other one first")
    with suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=directory_fd)


def _open_directory(path: Path, field: str) -> int:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise InvalidParameter(field, os.fspath(path), f"a path of at most {LONGEST_PATH} bytes")
    try:
        return os.open(path.parent, _DIRECTORY)
    except OSError as error:
        raise _unusable(field, path, "is in a directory that does not exist, or cannot be opened") from error


def _identity(directory_fd: int, name: str) -> tuple[int, int]:
    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    return status.st_dev, status.st_ino


@contextmanager
def _locked(directory_fd: int) -> Iterator[None]:
    """One process at a time changes sockets in the directory. A thread of this process is not kept out. A process that
    is stopped while it has the lock keeps no other one from starting or ending."""
    deadline_s = time.monotonic() + _LOCK_S
    while time.monotonic() < deadline_s:
        try:
            fcntl.flock(directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        fcntl.flock(directory_fd, fcntl.LOCK_UN)


@contextmanager
def _private_files() -> Iterator[None]:
    """Files made in the body get mode 0600. The umask is that of the whole process, so this is for start-up only, when
    no other thread makes files."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _unusable(field: str, path: Path, reason: str) -> InvalidParameter:
    allowed = f"a path in a directory that exists, with nothing there or an old socket; this one {reason}"
    return InvalidParameter(field, os.fspath(path), allowed)
