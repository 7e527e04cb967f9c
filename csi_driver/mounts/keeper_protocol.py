"""The keeper: holds the /dev/fuse descriptors of all mounts, so that mounts survive the death of their daemon.

It holds descriptors and nothing else: no FUSE, no data, one thread, the standard library. Its task is so small that an
upgrade of the driver need not restart it, and no client may crash or block it.

A message is one packet (SOCK_SEQPACKET), a verb and a name; descriptors are passed with it (SCM_RIGHTS):

====================  =========================================  ==============================================
``PUT name``          1 or 2 descriptors: device, state          ``OK``; replaces the descriptors of the name
``GET name``                                                     ``OK`` with copies of the descriptors, or ``NO``
``DROP name``                                                    ``OK``, also for an unknown name
``LIST name``                                                    ``OK`` and up to 64 names after this one, sorted
====================  =========================================  ==============================================
"""

from __future__ import annotations

import errno
import logging
import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from csi_driver.model.errors import DaemonUnavailable, InvalidParameter
from csi_driver.model.tracebacks import summary
from csi_driver.rpc.socket_file import SocketFile

_log = logging.getLogger(__name__)

_SOCKET_KIND = socket.SOCK_SEQPACKET
_NAME = re.compile(rb"[!-~]{1,200}")
"""Visible ASCII without spaces: a reply separates names by spaces."""
_BEFORE_ALL_NAMES = "!"
"""The start of LIST. Not allowed as a name, and no name sorts before it."""
_PACKET_BYTES = 64 * 256
"""Limit of a packet: a LIST reply of 64 names is the longest."""
_NAMES_PER_REPLY = 64

_DESCRIPTORS_MAXIMUM = 2
_HELD_MAXIMUM = 8192
_CONNECTIONS_MAXIMUM = 64
_BACKLOG = 128
_IDLE_S = 10.0
"""A connection that is idle for this long is closed. KeeperClient sends one request and closes its connection."""
_WATCH_S = 5.0
"""Interval at which the keeper looks whether its path still leads to it: one lstat. A daemon asks every two seconds."""
_PEER = struct.Struct("3i")
_INT = struct.Struct("i")
_TIMEVAL = struct.Struct("ll")


class KeeperServer:
    """Serves on a Unix socket of mode 0600, to root and to its own user. Single-threaded, except for ``stop``.

    A daemon asks every two seconds. If none has asked for ``daemon_timeout_s``, there is none that will adopt the
    mounts soon, and their readers would wait without an end: the keeper closes what it holds. With the last copy of its
    descriptor the kernel ends a connection, and those who wait for it get ECONNABORTED. A daemon that lives, but has
    not asked, has copies of its own, and passes them on again when it asks."""

    def __init__(
        self,
        socket_path: Path,
        *,
        idle_s: float = _IDLE_S,
        daemon_timeout_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``daemon_timeout_s`` 0: without limit. ``clock`` is that of the time-out. Raises InvalidParameter when the
        socket cannot be created, or another keeper listens there."""
        self._idle_s = idle_s
        self._daemon_timeout_s = daemon_timeout_s
        self._clock = clock
        self._asked_s = clock()
        self._held: dict[str, tuple[int, ...]] = {}
        self._clients: dict[socket.socket, float] = {}
        """Connections, with the time when each is closed as idle."""
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, _SOCKET_KIND)
        try:
            self._file = _socket_file(socket_path, self._listener)
        except BaseException:
            self._listener.close()
            raise
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serves until ``stop``."""
        while True:
            for key, _ in self._selector.select(self._next_deadline_s()):
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve_client(key.fileobj)
            now = time.monotonic()
            for client in [client for client, deadline_s in self._clients.items() if deadline_s <= now]:
                self._disconnect(client)
            self._end_orphans()
            self._file.restore()

    def stop(self) -> None:
        """Makes ``serve`` return. May be called from another thread or a signal handler."""
        with suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Closes the socket, all connections and all held descriptors."""
        self._file.remove()
        for client in list(self._clients):
            self._disconnect(client)
        self._selector.close()
        for end in (self._listener, self._waker, self._woken):
            end.close()
        self._file.close()
        self._close_held()

    # -- clients ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if len(self._clients) >= _CONNECTIONS_MAXIMUM:
            self._disconnect(min(self._clients, key=self._clients.__getitem__))
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                _log.error("no file descriptor is left for a connection; raise the limit of open files (RLIMIT_NOFILE)")
                time.sleep(0.1)  # the listener stays readable: without a pause the loop would spin
            return
        if not _is_authorized(client):
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = time.monotonic() + self._idle_s
        self._selector.register(client, selectors.EVENT_READ)

    def _serve_client(self, client: socket.socket) -> None:
        """One packet, one reply. Disconnects a client that sends an invalid packet or does not read its reply."""
        try:
            packet, descriptors, flags = _receive(client)
        except BlockingIOError:
            return
        except OSError:
            self._disconnect(client)
            return
        asked_s = self._clock()  # before the answer: time passes for the daemon from then on
        complete = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        answered = bool(packet) and complete and self._answer(client, packet, descriptors)
        if not answered:
            _close_all(descriptors)  # received but not stored
            self._disconnect(client)
        else:
            self._clients[client] = time.monotonic() + self._idle_s
            self._asked_s = asked_s

    def _disconnect(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()

    def _next_deadline_s(self) -> float:
        waits = [_WATCH_S]
        if self._clients:
            waits.append(min(self._clients.values()) - time.monotonic())
        if self._held and self._daemon_timeout_s:
            waits.append(self._asked_s + self._daemon_timeout_s - self._clock())
        return max(0.0, min(waits))

    def _end_orphans(self) -> None:
        """Closes what is held if no daemon has asked for too long."""
        if not (self._held and self._daemon_timeout_s) or self._clock() - self._asked_s < self._daemon_timeout_s:
            return
        _log.warning(
            "no cache daemon has asked for %d mounts for %g s: their connections are ended, and readers that wait get "
            "an error. Start the daemon; pods that use the volumes have to be restarted",
            len(self._held),
            self._daemon_timeout_s,
        )
        self._close_held()

    def _close_held(self) -> None:
        for descriptors in self._held.values():
            _close_all(descriptors)
        self._held.clear()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _answer(self, client: socket.socket, packet: bytes, descriptors: tuple[int, ...]) -> bool:
        """False: no descriptor was stored, and the client is to be disconnected."""
        verb, _, rest = packet.partition(b" ")
        name = _parse_name(rest)
        if name is None or bool(descriptors) != (verb == b"PUT"):
            return False
        try:
            if verb == b"PUT":
                return self._put(client, name, descriptors)
            if verb == b"GET":
                held = self._held.get(name)
                if held is None:
                    client.send(b"NO")
                else:
                    socket.send_fds(client, [b"OK"], held)
                return True
            if verb == b"DROP":
                _close_all(self._held.pop(name, ()))
                client.send(b"OK")
                return True
            if verb == b"LIST":
                later = sorted(held for held in self._held if held > name)[:_NAMES_PER_REPLY]
                client.send(" ".join(("OK", *later)).encode())
                return True
        except OSError:  # the client does not read its replies, or has disconnected
            return False
        return False

    def _put(self, client: socket.socket, name: str, descriptors: tuple[int, ...]) -> bool:
        if name not in self._held and len(self._held) >= _HELD_MAXIMUM:
            return False
        replaced = self._held.get(name, ())
        self._held[name] = descriptors
        _close_all(replaced)
        with suppress(OSError):  # the descriptors are stored, even if the client no longer reads the reply
            client.send(b"OK")
        return True  # not False: the caller would close descriptors that are stored now


def _parse_name(text: bytes) -> str | None:
    return text.decode("ascii") if _NAME.fullmatch(text) else None


def _socket_file(socket_path: Path, listener: socket.socket) -> SocketFile:
    """Binds the listener. Raises InvalidParameter."""

    def listen(path: str) -> None:
        try:
            listener.bind(path)
        except OSError as error:
            remedy = f"it cannot be created: {error.strerror}"
            raise InvalidParameter("--socket", str(socket_path), "a path in a directory that exists", remedy) from error
        listener.listen(_BACKLOG)
        listener.setblocking(False)

    return SocketFile(socket_path, listen, kind=_SOCKET_KIND, field="--socket")


def _is_authorized(client: socket.socket) -> bool:
    _, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


def _receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...], int]:
    """One packet, its descriptors (close-on-exec, unlike those of socket.recv_fds) and its flags."""
    ancillary_bytes = socket.CMSG_SPACE(_DESCRIPTORS_MAXIMUM * _INT.size)
    packet, messages, flags, _ = connection.recvmsg(_PACKET_BYTES, ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += (number for (number,) in _INT.iter_unpack(data[: len(data) // _INT.size * _INT.size]))
    return packet, tuple(descriptors), flags


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


class KeeperClient:
    """The daemon's side of the protocol. Each call opens a connection, so that it reaches a restarted keeper.

    All methods block up to ``timeout_s`` and raise DaemonUnavailable when the keeper does not answer. A name is 1 to
    200 visible ASCII characters; ValueError for another.
    """

    def __init__(self, socket_path: Path, timeout_s: float = 5.0) -> None:
        self._socket_path = socket_path
        self._timeout_s = timeout_s

    def put(self, name: str, descriptors: Sequence[int]) -> None:
        """Stores copies of one or two descriptors under the name, in place of earlier ones."""
        if not 0 < len(descriptors) <= _DESCRIPTORS_MAXIMUM:
            raise ValueError(f"the keeper holds 1 or {_DESCRIPTORS_MAXIMUM} descriptors, not {len(descriptors)}")
        self._request("PUT", _checked(name), descriptors)

    def get(self, name: str) -> list[int]:
        """Copies of the stored descriptors, which the caller owns; empty for an unknown name."""
        return self._request("GET", _checked(name))[1]

    def drop(self, name: str) -> None:
        """Ensures that the keeper holds nothing under the name."""
        self._request("DROP", _checked(name))

    def names(self) -> list[str]:
        """All stored names, sorted."""
        found: list[str] = []
        while True:
            reply, _ = self._request("LIST", found[-1] if found else _BEFORE_ALL_NAMES)
            names = reply.decode("ascii").split(" ")[1:]
            if not names:
                return found
            found += names

    def _request(self, verb: str, name: str, descriptors: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        packet = f"{verb} {name}".encode("ascii")
        try:
            with self._connect() as connection:
                if descriptors:
                    socket.send_fds(connection, [packet], descriptors)
                else:
                    connection.send(packet)
                reply, received, _ = _receive(connection)
        except BlockingIOError as error:
            raise self._unavailable("timed out") from error
        except OSError as error:
            raise self._unavailable(error.strerror or summary(error)) from error
        if reply != b"NO" and not reply.startswith(b"OK"):
            _close_all(received)
            raise self._unavailable("it refused the request")
        return reply, list(received)

    def _connect(self) -> socket.socket:
        """With the kernel's time-outs: with Python's, connect(2) fails at once while the listen backlog is full."""
        timeout = _TIMEVAL.pack(int(self._timeout_s), int(self._timeout_s % 1 * 1_000_000))
        connection = socket.socket(socket.AF_UNIX, _SOCKET_KIND)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            connection.connect(os.fspath(self._socket_path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _unavailable(self, reason: str) -> DaemonUnavailable:
        return DaemonUnavailable(
            f"the keeper at {self._socket_path} does not answer: {reason}. Start `hayloft keeper`; without it, "
            "mounts end when the cache daemon does"
        )


def _checked(name: str) -> str:
    if name == _BEFORE_ALL_NAMES or not name.isascii() or not _NAME.fullmatch(name.encode()):
        raise ValueError(f"not a name for the keeper: {name!r}")
    return name
