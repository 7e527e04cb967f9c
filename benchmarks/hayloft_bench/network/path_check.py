"""Measures a path: the time of a handshake, and the rate of one connection from the store to the reader."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hayloft_bench.errors import NetworkError

HANDSHAKES = 5
TRANSFER_S = 0.8
"""The first half is not counted, for slow start: at a round trip of 100 ms it has had four of them."""
PIECE = bytes(256 << 10)
TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class PathMeasurement:
    """The shortest of some handshakes, and the rate of one connection."""

    round_trip_s: float
    bits_per_s: float


def measure(address: str, inside: Callable[[], AbstractContextManager[None]]) -> PathMeasurement:
    """``inside`` enters the network namespace of the address. Blocks about a second. Raises NetworkError if no
    connection is made."""
    with inside():
        listener = socket.create_server((address, 0))  # a socket belongs to the namespace in which it was made
    port = listener.getsockname()[1]
    sender = threading.Thread(target=_send, args=(listener,), name="network-check", daemon=True)
    sender.start()
    try:
        round_trip_s = min(_handshake(address, port) for _ in range(HANDSHAKES))
        return PathMeasurement(round_trip_s, _rate_of_transfer(address, port))
    except OSError as error:
        raise NetworkError(f"--network: nothing gets through to {address}: {error}") from error
    finally:
        # shutdown wakes the thread that waits in accept; close alone does not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        sender.join(TIMEOUT_S)


def _handshake(address: str, port: int) -> float:
    begun = time.perf_counter()
    with socket.create_connection((address, port), timeout=TIMEOUT_S):
        return time.perf_counter() - begun


def _rate_of_transfer(address: str, port: int) -> float:
    buffer = bytearray(1 << 20)
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as connection:
        begun, half, counted = time.perf_counter(), 0.0, 0
        while (now := time.perf_counter()) < begun + TRANSFER_S:
            received = connection.recv_into(buffer)
            if not received:
                raise NetworkError("--network: the connection ended while it was measured")
            if now > begun + TRANSFER_S / 2:
                half, counted = half or now, counted + received
        return counted * 8 / (time.perf_counter() - half) if half else 0.0


def _send(listener: socket.socket) -> None:
    """Sends to one connection after the other, until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT_S)
            while True:
                connection.sendall(PIECE)
