"""Measures a path: how long a handshake takes, and how much one connection carries from the store to the reader."""

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
CARRY_S = 0.8
"""The first half is left to slow start: at a round trip of 100 ms it has been through four of them."""
PIECE = bytes(256 << 10)
GIVE_UP_S = 15.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The shortest of some handshakes, and the rate of one connection."""

    round_trip_s: float
    bits_per_s: float


def measure(address: str, inside: Callable[[], AbstractContextManager[None]]) -> Measured:
    """``inside`` is where the address is. Takes about a second. Raises NetworkError if nothing gets through."""
    with inside():
        listener = socket.create_server((address, 0))  # a socket stays where it was made, whoever uses it
    port = listener.getsockname()[1]
    sender = threading.Thread(target=_send, args=(listener,), name="network-check", daemon=True)
    sender.start()
    try:
        round_trip_s = min(_handshake(address, port) for _ in range(HANDSHAKES))
        return Measured(round_trip_s, _carry(address, port))
    except OSError as error:
        raise NetworkError(f"--network: nothing gets through to {address}: {error}") from error
    finally:
        # Wakes the thread that waits in accept, which closing alone does not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        sender.join(GIVE_UP_S)


def _handshake(address: str, port: int) -> float:
    begun = time.perf_counter()
    with socket.create_connection((address, port), timeout=GIVE_UP_S):
        return time.perf_counter() - begun


def _carry(address: str, port: int) -> float:
    buffer = bytearray(1 << 20)
    with socket.create_connection((address, port), timeout=GIVE_UP_S) as connection:
        begun, half, counted = time.perf_counter(), 0.0, 0
        while (now := time.perf_counter()) < begun + CARRY_S:
            received = connection.recv_into(buffer)
            if not received:
                raise NetworkError("--network: the connection ended while it was measured")
            if now > begun + CARRY_S / 2:
                half, counted = half or now, counted + received
        return counted * 8 / (time.perf_counter() - half) if half else 0.0


def _send(listener: socket.socket) -> None:
    """To one connection after the other, until nobody listens any more."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(GIVE_UP_S)
            while True:
                connection.sendall(PIECE)
