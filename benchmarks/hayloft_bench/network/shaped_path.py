"""``--network 25gbit,5ms``: a path to the store like that of a data centre, instead of loopback.

The store runs in its own network namespace. The connection to it is shaped in both directions, by the first of these
methods that the kernel supports:

- ``netem``: a veth pair, with delay and rate by tc's netem;
- ``tbf``: a veth pair, with a rate by tc's tbf; only if no delay is requested;
- ``hop``: two TUN devices and a process between them that delays packets and limits the rate (``delay_proxy.py``). It
  takes processor time, which limits a fast path.

TCP runs over the path, so handshakes, windows and slow start have their real cost. The path is measured before it is
used, and the measurement is recorded. The machine's own network is not changed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ipaddress
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hayloft_bench.errors import NetworkError
from hayloft_bench.network import delay_proxy
from hayloft_bench.network.path_check import PathMeasurement, measure

Method = Literal["netem", "tbf", "hop"]

PREFIX = "hayloft-bench-"
NAMESPACES = Path("/run/netns")
BENCHMARK_NETWORK = ipaddress.ip_network("198.18.0.0/15")
"""Reserved for network benchmarks (RFC 2544): no real host has such an address."""
CLONE_NEWNET = 0x40000000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
MTU_BYTES = 9000
"""Jumbo frames, as in a data centre."""
HOP_START_S = 10.0
STOP_S = 2.0
LEAST_BURST_BYTES = 128 << 10
"""Two packets before segmentation."""
_DELAY_SLACK = (0.8, 1.6, 0.003)
"""A measured round trip must be within 0.8 times the requested one and 1.6 times it plus 3 ms, which covers a busy
machine."""
_RATE_SLACK = 1.25

_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_DELAYS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z]+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """The requested path. ``rate_bits_per_s`` None: no limit. Half of ``round_trip_s`` is spent each way."""

    rate_bits_per_s: float | None
    round_trip_s: float

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``25gbit,5ms``: a rate, a round-trip time, or both. Raises NetworkError, which names the field."""
        rate: float | None = None
        delay: float | None = None
        for part in text.split(","):
            found = _PART.fullmatch(part.strip().lower())
            number, unit = (float(found[1]), found[2]) if found else (0.0, "")
            if unit in _RATES:
                if rate is not None:
                    raise NetworkError(f"--network: rate: given twice in {text!r}")
                rate = _within("rate", part, number * _RATES[unit], 1e5, 4e11, "100kbit to 400gbit")
            elif unit in _DELAYS:
                if delay is not None:
                    raise NetworkError(f"--network: round trip: given twice in {text!r}")
                delay = _within("round trip", part, number * _DELAYS[unit], 0.0, 5.0, "0 to 5s")
            else:
                raise NetworkError(
                    f"--network: {part.strip()!r} is neither a rate (such as 25gbit; {', '.join(_RATES)}) "
                    f"nor a round-trip time (such as 5ms; {', '.join(_DELAYS)})"
                )
        return cls(rate, delay or 0.0)

    def wording(self) -> str:
        """For example "25 Gbit/s, 5 ms round trip"."""
        rate = "" if self.rate_bits_per_s is None else _rate(self.rate_bits_per_s)
        delay = f"{self.round_trip_s * 1e3:g} ms round trip" if self.round_trip_s else ""
        return ", ".join(part for part in (rate, delay) if part) or "unshaped"


def _within(field: str, part: str, value: float, least: float, most: float, allowed: str) -> float:
    if not least <= value <= most:
        raise NetworkError(f"--network: {field}: {part.strip()!r} is not within {allowed}")
    return value


def _rate(bits_per_s: float) -> str:
    factor, unit = (1e9, "Gbit/s") if bits_per_s >= 1e9 else (1e6, "Mbit/s")
    return f"{bits_per_s / factor:.3g} {unit}"


@dataclass(frozen=True, slots=True)
class ShapedPath:
    """A namespace for the store, and the shaped path to it."""

    namespace: str
    address: str
    """The address at which the store must listen and readers connect."""
    shape: Shape
    method: Method
    measured: PathMeasurement | None = None

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block this thread is in the namespace, and with it the processes and sockets that it makes."""
        with open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", "rb") as home:
            with open(NAMESPACES / self.namespace, "rb") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def wording(self) -> str:
        """For ``Machine.network``: the requested shape, the method, and the measurement."""
        text = f"{self.shape.wording()}, by {self.method}"
        if self.measured is None:
            return text
        seen = f"{_rate(self.measured.bits_per_s)}, {self.measured.round_trip_s * 1e3:.3g} ms round trip"
        return f"{text}; measured over one connection: {seen}"


@contextlib.contextmanager
def shaped(spec: str | Shape) -> Iterator[ShapedPath]:
    """Makes the path, measures it, and removes it at the end of the block, also after an error.

    Start the store within ``path.inside()`` and let it listen on ``path.address``; stop it before the block ends.
    Raises NetworkError if a right is missing, a command fails, or the path is not as requested."""
    shape = Shape.parse(spec) if isinstance(spec, str) else spec
    obstacle = unavailable()
    if obstacle is not None:
        raise NetworkError(f"--network: {obstacle}")
    sweep()
    with contextlib.ExitStack() as stack:
        path = _make(shape, stack)
        measured = measure(path.address, path.inside)
        _require_requested(shape, measured)
        yield ShapedPath(path.namespace, path.address, shape, path.method, measured)


def unavailable() -> str | None:
    """Why the path cannot be shaped on this machine, or None."""
    missing = [name for name in ("ip", "tc") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install iproute2"
    status = Path("/proc/self/status").read_text()
    effective = int(re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
    if not (effective >> CAP_NET_ADMIN & 1 and effective >> CAP_SYS_ADMIN & 1):
        return "needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) to make a network namespace"
    return None


def sweep() -> list[str]:
    """Removes the namespaces of processes that were killed; returns the names."""
    swept = []
    for entry in NAMESPACES.glob(f"{PREFIX}*") if NAMESPACES.is_dir() else ():
        owner = entry.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove_namespace(entry.name)
            swept.append(entry.name)
    return swept


def _make(shape: Shape, stack: contextlib.ExitStack) -> ShapedPath:
    tag = secrets.token_hex(3)
    namespace, ours, theirs = f"{PREFIX}{os.getpid()}-{tag}", f"hb{tag}r", f"hb{tag}s"
    host, store = _free_addresses()
    stack.callback(_remove_namespace, namespace)
    # For an exit without unwinding the stack; harmless if the namespace is gone already.
    atexit.register(_remove_namespace, namespace)
    stack.callback(atexit.unregister, _remove_namespace)
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    method = _connect(shape, namespace, ours, theirs, stack)
    for where, device, address, peer in (((), ours, host, store), (("-n", namespace), theirs, store, host)):
        _ip(*where, "address", "add", address, "peer", peer, "dev", device)
        _ip(*where, "link", "set", device, "mtu", str(MTU_BYTES), "txqueuelen", "10000", "up")
    return ShapedPath(namespace, store, shape, method)


def _connect(shape: Shape, namespace: str, ours: str, theirs: str, stack: contextlib.ExitStack) -> Method:
    _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace)
    stack.callback(_quietly, "ip", "link", "delete", ours)
    ends = ((ours, ()), (theirs, ("-n", namespace)))
    with contextlib.suppress(NetworkError):
        for device, where in ends:
            _tc(*where, "qdisc", "add", "dev", device, "root", *netem(shape))
        return "netem"
    for device, where in ends:  # the first of the two devices may have its queue already
        _quietly("tc", *where, "qdisc", "delete", "dev", device, "root")
    if not shape.round_trip_s:
        for device, where in ends:
            _tc(*where, "qdisc", "add", "dev", device, "root", *tbf(shape))
        return "tbf"
    _ip("link", "delete", ours)
    stack.enter_context(_hop(shape, namespace, ours, theirs))
    return "hop"


def netem(shape: Shape) -> list[str]:
    """The arguments of tc for one direction."""
    words = ["netem", "delay", f"{shape.round_trip_s / 2 * 1e6:.0f}us"]
    in_flight = (shape.rate_bits_per_s or 1e11) / 8 * max(shape.round_trip_s, 0.02) / 1500
    words += ["limit", str(max(1000, round(2 * in_flight)))]
    if shape.rate_bits_per_s is not None:
        words += ["rate", f"{shape.rate_bits_per_s:.0f}bit"]
    return words


def tbf(shape: Shape) -> list[str]:
    """The arguments of tc for one direction; without a rate a plain queue."""
    if shape.rate_bits_per_s is None:
        return ["pfifo", "limit", "10000"]
    burst_bytes = max(LEAST_BURST_BYTES, round(shape.rate_bits_per_s / 8 / 1000))
    return ["tbf", "rate", f"{shape.rate_bits_per_s:.0f}bit", "burst", str(burst_bytes), "latency", "50ms"]


@contextlib.contextmanager
def _hop(shape: Shape, namespace: str, ours: str, theirs: str) -> Iterator[None]:
    """The devices belong to the process and end with it."""
    configuration = {
        "devices": [ours, theirs],
        "namespace": str(NAMESPACES / namespace),
        "rate_bits_per_s": shape.rate_bits_per_s,
        "delay_s": shape.round_trip_s / 2,
        "parent": os.getpid(),
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", delay_proxy.__file__, json.dumps(configuration)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    if process.stdout is None or process.stderr is None:
        raise ValueError("the process has no pipes")
    try:
        if process.stdout.readline().strip() != b"ready":
            process.kill()
            output = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise NetworkError(f"--network: the hop did not start: {output[-1] if output else 'no error output'}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def _require_requested(shape: Shape, measured: PathMeasurement) -> None:
    """A path slower than its rate is recorded, since the machine may not reach it; any other difference is an error."""
    low, high, slack_s = _DELAY_SLACK
    seen = measured.round_trip_s
    if not shape.round_trip_s * low <= seen <= shape.round_trip_s * high + slack_s:
        requested = f"{shape.round_trip_s * 1e3:g} ms requested"
        raise NetworkError(f"--network: round trip: {requested}, {seen * 1e3:.3g} ms measured")
    if shape.rate_bits_per_s is not None and measured.bits_per_s > shape.rate_bits_per_s * _RATE_SLACK:
        requested, got = _rate(shape.rate_bits_per_s), _rate(measured.bits_per_s)
        raise NetworkError(f"--network: rate: {requested} requested, {got} measured")


def _free_addresses() -> tuple[str, str]:
    """Two neighbouring addresses of the benchmark network to which no route leads yet."""
    routes = json.loads(_ip("-j", "route", "show", "table", "all") or "[]")
    used = set()
    for route in routes:
        with contextlib.suppress(ValueError):
            used.add(ipaddress.ip_network(route.get("dst", ""), strict=False))
    taken = [one for one in used if isinstance(one, ipaddress.IPv4Network) and one.prefixlen]
    for _ in range(100):
        first = BENCHMARK_NETWORK[2 * secrets.randbelow(BENCHMARK_NETWORK.num_addresses // 2 - 2) + 2]
        pair = ipaddress.ip_network(f"{first}/31")
        if not any(one.overlaps(pair) for one in taken):
            return str(pair[0]), str(pair[1])
    raise NetworkError(f"--network: no free addresses in {BENCHMARK_NETWORK}: routes lead to all of it")


def _remove_namespace(name: str) -> None:
    if (NAMESPACES / name).exists():
        _quietly("ip", "netns", "delete", name)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _tc(*words: str) -> str:
    return _run("tc", *words)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": _path(), "LC_ALL": "C"})
    if done.returncode:
        output = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise NetworkError(f"--network: {' '.join(command)}: {output}")
    return done.stdout


def _quietly(*command: str) -> None:
    """For removals: the object may be gone already."""
    with contextlib.suppress(NetworkError):
        _run(*command)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise NetworkError(f"--network: the namespace cannot be entered: {os.strerror(error)}")
