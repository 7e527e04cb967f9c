"""``python delay_proxy.py CONFIGURATION``: a hop between two TUN devices, for kernels without netem.

A packet leaves one device, queues for the rate, waits for the delay, and enters the other device. Packets are received
before segmentation (up to 64 KiB each, with a virtio header that is forwarded unchanged), so that few system calls move
many bytes. The process ends with its parent, and its devices with it. It imports the standard library alone, because it
is started with ``python -I -S``.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections import deque

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
VNET_HEADER_BYTES = 10
PACKET_BYTES = (64 << 10) + VNET_HEADER_BYTES
BATCH = 32
"""Packets read from one device before the other is served."""
QUEUE_S = 0.05
"""The longest queue for the rate, in seconds of sending, beside the packets in the delay. When it is full no packet is
read, so the queue of the device fills and drops."""
UNSHAPED_BITS_PER_S = 1e12
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


class Direction:
    """One direction. It has no clock of its own: packets go in with ``take`` and come out with ``due``, both of which
    get the time."""

    def __init__(self, rate_bits_per_s: float | None, delay_s: float) -> None:
        self._seconds_per_byte = 8 / (rate_bits_per_s or UNSHAPED_BITS_PER_S)
        self._delay_s = delay_s
        self._free_at_s = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()

    def take(self, packet: bytes, now_s: float) -> None:
        """The line sends one packet at a time; the delay of a packet begins when its last bit is sent."""
        begins_s = max(now_s, self._free_at_s)
        self._free_at_s = begins_s + (len(packet) - VNET_HEADER_BYTES) * self._seconds_per_byte
        self._waiting.append((self._free_at_s + self._delay_s, packet))

    def is_full(self, now_s: float) -> bool:
        """Whether no packet should be read now."""
        return self._free_at_s > now_s + QUEUE_S

    def due(self, now_s: float) -> list[bytes]:
        """The packets that arrive by now, in order."""
        arrived = []
        while self._waiting and self._waiting[0][0] <= now_s:
            arrived.append(self._waiting.popleft()[1])
        return arrived

    def next_s(self) -> float | None:
        """The time at which the next packet arrives; None: no packet is on its way."""
        return self._waiting[0][0] if self._waiting else None


def open_tun(name: str) -> int:
    """A descriptor of a new device in the current network namespace of the process."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return descriptor


def pump(ends: tuple[int, int], directions: tuple[Direction, Direction]) -> None:
    """Moves packets until the process is killed."""
    while True:
        now_s = time.monotonic()
        for source, direction in zip(ends, directions, strict=True):
            for packet in direction.due(now_s):
                _put(ends[1] if source == ends[0] else ends[0], packet)
        readable = [end for end, one in zip(ends, directions, strict=True) if not one.is_full(now_s)]
        waits = [moment for one in directions if (moment := one.next_s()) is not None]
        if len(readable) < len(ends):
            waits.append(now_s + QUEUE_S / 4)
        timeout_s = max(0.0, min(waits) - time.monotonic()) if waits else None
        for end in select.select(readable, [], [], timeout_s)[0]:
            _take(end, directions[ends.index(end)])


def _take(end: int, direction: Direction) -> None:
    for _ in range(BATCH):
        try:
            packet = os.read(end, PACKET_BYTES)
        except BlockingIOError:
            return
        direction.take(packet, time.monotonic())


def _put(end: int, packet: bytes) -> None:
    """A packet that the other device does not accept (it is down) is lost, as on any network."""
    try:
        os.write(end, packet)
    except OSError:
        return


def main(configuration: str) -> None:
    """Makes the devices, prints ``ready``, and moves packets."""
    options = json.loads(configuration)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before prctl: then the signal never comes.
    if os.getppid() != options["parent"]:
        raise SystemExit("the parent is gone")
    ours = open_tun(options["devices"][0])
    with open(options["namespace"], "rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise SystemExit(f"setns: {os.strerror(ctypes.get_errno())}")
    theirs = open_tun(options["devices"][1])
    print("ready", flush=True)
    shape = (options["rate_bits_per_s"], options["delay_s"])
    pump((ours, theirs), (Direction(*shape), Direction(*shape)))


if __name__ == "__main__":
    main(sys.argv[1])
