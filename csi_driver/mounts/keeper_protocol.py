"""The keeper: holds the /dev/fuse descriptors of all mounts, so that a daemon may die and its mounts do not.

It holds descriptors and nothing else: no FUSE, no data, one thread, the standard library. What it does is so little
that it need never be restarted together with the rest, and it must not fall over whoever talks to it.

A message is one packet (SOCK_SEQPACKET), a verb and a name; descriptors travel beside it (SCM_RIGHTS):

====================  =========================================  ==============================================
``PUT name``          1 or 2 descriptors: device, state          ``OK``; replaces what was held under the name
``GET name``                                                     ``OK`` with copies of the descriptors, or ``NO``
``DROP name``                                                    ``OK``, also when nothing was held
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
import stat
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from csi_driver.model.errors import DaemonUnavailable, InvalidParameter

_log = logging.getLogger(__name__)

_SOCKET_KIND = socket.SOCK_SEQPACKET
_NAME = re.compile(rb"[!-~]{1,200}")
"""Visible ASCII, so that a reply is words."""
_BEFORE_ALL_NAMES = "!"
"""Where LIST begins. Not used as a name, and no name sorts before it."""
_PACKET_BYTES = 64 * 256
"""Of the longest packet: a LIST reply of 64 names."""
_NAMES_PER_REPLY = 64

_DESCRIPTORS_MAXIMUM = 2
_HELD_MAXIMUM = 8192
_CONNECTIONS_MAXIMUM = 64
_BACKLOG = 128
_IDLE_S = 10.0
"""A client that says nothing for this long is let go. Ours say one thing and go by themselves."""
_PATH_BYTES_MAXIMUM = 107  # sizeof(sun_path) less the NUL
_PEER = struct.Struct("3i")
_INT = struct.Struct("i")
_TIMEVAL = struct.Struct("ll")


class KeeperServer:
    """Serves on a Unix socket of mode 0600, to root and to its own user. Not for more than one thread."""

    def __init__(self, socket_path: Path, *, idle_s: float = _IDLE_S) -> None:
        """Raises InvalidParameter when the socket cannot be made there, or another keeper has it."""
        self._socket_path = socket_path
        self._idle_s = idle_s
        self._held: dict[str, tuple[int, ...]] = {}
        self._clients: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(socket_path)
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
            self._let_idle_clients_go()

    def stop(self) -> None:
        """Makes ``serve`` return. May be called from another thread or a signal handler."""
        with suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Closes everything, the descriptors that it holds included."""
        with suppress(OSError):
            self._socket_path.unlink()
        for client in list(self._clients):
            self._let_go(client)
        self._selector.close()
        for end in (self._listener, self._waker, self._woken):
            end.close()
        for descriptors in self._held.values():
            _close_all(descriptors)
        self._held.clear()

    # -- clients ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if len(self._clients) >= _CONNECTIONS_MAXIMUM:
            self._let_go(min(self._clients, key=self._clients.__getitem__))
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                _log.error("no descriptor is left for a client; raise the limit of open files")
                time.sleep(0.1)  # the listener stays readable: not in a circle
            return
        if not _may_talk(client):
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = time.monotonic() + self._idle_s
        self._selector.register(client, selectors.EVENT_READ)

    def _serve_client(self, client: socket.socket) -> None:
        """One packet, one reply. Whoever sends what is none of ours, or takes no reply, is let go."""
        try:
            packet, descriptors, flags = _receive(client)
        except BlockingIOError:
            return
        except OSError:
            self._let_go(client)
            return
        whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        answered = bool(packet) and whole and self._answer(client, packet, descriptors)
        if not answered:
            _close_all(descriptors)
            self._let_go(client)
        else:
            self._clients[client] = time.monotonic() + self._idle_s

    def _let_go(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()

    def _let_idle_clients_go(self) -> None:
        now = time.monotonic()
        for client in [client for client, deadline in self._clients.items() if deadline <= now]:
            self._let_go(client)

    def _next_deadline_s(self) -> float | None:
        return max(0.0, min(self._clients.values()) - time.monotonic()) if self._clients else None

    # -- requests -----------------------------------------------------------------------------------------------------

    def _answer(self, client: socket.socket, packet: bytes, descriptors: tuple[int, ...]) -> bool:
        """False: nothing was kept, and the client is to be let go."""
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
        except OSError:  # it does not read its replies, or is gone
            return False
        return False

    def _put(self, client: socket.socket, name: str, descriptors: tuple[int, ...]) -> bool:
        if name not in self._held and len(self._held) >= _HELD_MAXIMUM:
            return False
        replaced = self._held.get(name, ())
        self._held[name] = descriptors
        _close_all(replaced)
        with suppress(OSError):  # kept, whether or not its owner waits to hear so
            client.send(b"OK")
        return True


def _parse_name(text: bytes) -> str | None:
    return text.decode("ascii") if _NAME.fullmatch(text) else None


def _listen(socket_path: Path) -> socket.socket:
    if len(os.fsencode(socket_path)) > _PATH_BYTES_MAXIMUM:
        raise InvalidParameter("socket", str(socket_path), f"a path of at most {_PATH_BYTES_MAXIMUM} bytes")
    _remove_stale(socket_path)
    listener = socket.socket(socket.AF_UNIX, _SOCKET_KIND)
    earlier = os.umask(0o177)
    try:
        listener.bind(os.fspath(socket_path))
    except OSError as error:
        listener.close()
        remedy = f"it cannot be made: {error.strerror}"
        raise InvalidParameter("socket", str(socket_path), "a path in a directory that exists", remedy) from error
    finally:
        os.umask(earlier)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _remove_stale(socket_path: Path) -> None:
    """Removes the socket of a keeper that died. One that answers is left alone, and so is anything else."""
    try:
        is_socket = stat.S_ISSOCK(socket_path.lstat().st_mode)
    except OSError:
        return
    if not is_socket:
        raise InvalidParameter("socket", str(socket_path), "a path that does not exist, or an old socket")
    with socket.socket(socket.AF_UNIX, _SOCKET_KIND) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(socket_path))
        except ConnectionRefusedError:
            socket_path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # it is alive and busy, or another kind of server
                return
    raise InvalidParameter(
        "socket", str(socket_path), "a path where no other keeper listens", "stop the other one first"
    )


def _may_talk(client: socket.socket) -> bool:
    _, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


def _receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...], int]:
    """One packet, its descriptors (not inherited by children, which socket.recv_fds would let happen) and flags."""
    room = socket.CMSG_SPACE(_DESCRIPTORS_MAXIMUM * _INT.size)
    packet, messages, flags, _ = connection.recvmsg(_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
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
    """What the daemon asks of the keeper. Each call is a connection of its own, so a restarted keeper is simply found.

    All methods block up to ``timeout_s`` and raise DaemonUnavailable when the keeper does not answer. A name is 1 to
    200 visible ASCII characters; ValueError for another.
    """

    def __init__(self, socket_path: Path, timeout_s: float = 5.0) -> None:
        self._socket_path = socket_path
        self._timeout_s = timeout_s

    def put(self, name: str, descriptors: Sequence[int]) -> None:
        """Lets the keeper hold copies of one or two descriptors, in place of what it held under the name."""
        if not 0 < len(descriptors) <= _DESCRIPTORS_MAXIMUM:
            raise ValueError(f"the keeper holds 1 or {_DESCRIPTORS_MAXIMUM} descriptors, not {len(descriptors)}")
        self._ask("PUT", _checked(name), descriptors)

    def get(self, name: str) -> list[int]:
        """Copies of what is held under the name, which belong to the caller; empty when nothing is."""
        return self._ask("GET", _checked(name))[1]

    def drop(self, name: str) -> None:
        """Ensures that nothing is held under the name."""
        self._ask("DROP", _checked(name))

    def names(self) -> list[str]:
        """Everything that is held, sorted."""
        found: list[str] = []
        while True:
            reply, _ = self._ask("LIST", found[-1] if found else _BEFORE_ALL_NAMES)
            names = reply.decode("ascii").split(" ")[1:]
            if not names:
                return found
            found += names

    def _ask(self, verb: str, name: str, descriptors: Sequence[int] = ()) -> tuple[bytes, list[int]]:
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
            raise self._unavailable(error.strerror or str(error)) from error
        if reply != b"NO" and not reply.startswith(b"OK"):
            _close_all(received)
            raise self._unavailable("it refused the request")
        return reply, list(received)

    def _connect(self) -> socket.socket:
        """With the kernel's own time-outs: Python's would make connect(2) fail at once while the backlog is full."""
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
