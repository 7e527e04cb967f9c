"""What the attacker does, at the sizes at which it stopped or delayed other tenants before there were bounds."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hayloft_bench.tenants.hostile_stores import HANGING_OBJECTS, HostileStores
from hayloft_bench.tenants.occurrences import Occurrences
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet

NAMESPACE = "attacker"
SECRETS = {"access_key_id": "AKIAATTACKER", "secret_access_key": "of a store that checks nothing"}
CALL_TIMEOUT_S = 5.0
"""Of a call with an endless listing: kubelet gives up after two minutes, and calls again."""
MOUNT_TIMEOUT_S = 30.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 122.0
"""Of kubelet 1.37 for a volume (pkg/util/goroutinemap/exponentialbackoff)."""
START_S = 15.0
LISTINGS, HANGING_VOLUMES, METRICS_CONNECTIONS, OPEN_FILES, LARGE_MOUNTS = 70, 20, 4000, 1000, 6
READERS_PER_VOLUME, METRICS_THREADS = 10, 8
MANIFEST_KEYS = 200_000


@dataclass
class Attacker:
    """What all attacks use. ``refused`` counts the driver's answers by status code."""

    kubelet: EmulatedKubelet
    stores: HostileStores
    metrics_port: int
    cache_limit_bytes: int
    scale: float = 1.0
    """Of the numbers of volumes, files and connections; 1 at the most."""
    refused: dict[str, int] = field(default_factory=dict)
    descriptors: list[int] = field(default_factory=list)
    calls: Occurrences = field(default_factory=Occurrences)
    """Mounts that were requested, and connections to the metrics port."""

    def count(self, full: int) -> int:
        return max(1, round(full * min(1.0, self.scale)))

    def mount(
        self, bucket: str, attributes: Mapping[str, str] | None = None, timeout_s: float = MOUNT_TIMEOUT_S
    ) -> Path | None:
        """An inline volume of the attacker's store; None if the driver refuses it or does not answer."""
        wanted = {"url": f"s3://{bucket}/", "endpoint": self.stores.endpoint, "region": "us-east-1"}
        wanted |= {"addressingStyle": "path", "snapshotMaxAge": "0s", **(attributes or {})}
        self.calls.add()
        try:
            return self.kubelet.inline(NAMESPACE, wanted, SECRETS, timeout_s).target_path
        except CallRefused as refused:
            self.refused[refused.code] = self.refused.get(refused.code, 0) + 1
            return None


def globs(attacker: Attacker) -> None:
    """Several ``**/`` over keys of many parts: the time of a match that backtracks grows by a power for each."""
    include = {"include": "**/a/**/a/**/a/**/b"}
    _again_and_again(attacker.count(4), lambda number: attacker.mount("deep", include, CALL_TIMEOUT_S))
    time.sleep(1.0)


def listings(attacker: Attacker) -> None:
    """Listings that never end, that send a byte at a time, and one of a gigabyte in a megabyte of gzip."""
    attacker.mount("bomb", timeout_s=0.5)  # this call times out; what the driver does then goes on

    def call(number: int) -> None:
        attacker.mount("slow" if number % 2 else "endless", timeout_s=CALL_TIMEOUT_S)

    _again_and_again(attacker.count(LISTINGS), call)
    time.sleep(1.0)


def hanging(attacker: Attacker) -> None:
    """Volumes whose store answers no GET, each with readers."""
    slow = {"requestTimeout": "60s", "deadline": "5m"}
    with ThreadPoolExecutor(8) as pool:
        # A bucket for each, or they would wait for the same requests.
        buckets = [f"hanging-{number}" for number in range(attacker.count(HANGING_VOLUMES))]
        targets = list(pool.map(lambda bucket: attacker.mount(bucket, slow), buckets))
    for target in filter(None, targets):
        for number in range(0, HANGING_OBJECTS, HANGING_OBJECTS // READERS_PER_VOLUME):
            _in_background(lambda path=target / f"{number:03d}.bin": _read(path))  # type: ignore[misc]
    time.sleep(1.0)


def metrics(attacker: Attacker) -> None:
    """Requests to the metrics port that are never completed. A connection that the driver closes is made again."""

    def connect(poll: select.poll, connections: dict[int, socket.socket]) -> None:
        attacker.calls.add()
        with contextlib.suppress(OSError):  # the driver may close or refuse them
            connection = socket.create_connection(("127.0.0.1", attacker.metrics_port), timeout=1.0)
            connections[connection.fileno()] = connection
            poll.register(connection, select.POLLIN)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: node\r\n")

    def keep(wanted: int, begun: threading.Event) -> None:
        poll, connections = select.poll(), dict[int, socket.socket]()
        while True:
            for _ in range(wanted - len(connections)):
                connect(poll, connections)
            begun.set()
            for descriptor, _ in poll.poll(100):
                poll.unregister(descriptor)
                connections.pop(descriptor).close()

    threads = min(METRICS_THREADS, attacker.count(METRICS_CONNECTIONS))
    events = [threading.Event() for _ in range(threads)]
    for event in events:
        _in_background(lambda event=event: keep(attacker.count(METRICS_CONNECTIONS) // threads, event))  # type: ignore[misc]
    for event in events:
        event.wait()


def shares(attacker: Attacker) -> None:
    """Everything of the node that volumes share: descriptors, memory of manifests, space in the cache."""
    with ThreadPoolExecutor(LARGE_MOUNTS + 1) as pool:
        mounts = [pool.submit(attacker.mount, "large") for _ in range(attacker.count(LARGE_MOUNTS))]
        mounts.append(pool.submit(attacker.mount, "open", {"cacheReservation": str(attacker.cache_limit_bytes)}))
        target = attacker.mount("open")
        for mount in mounts:
            mount.result()
    if target is not None:
        for number in range(attacker.count(OPEN_FILES)):
            with contextlib.suppress(OSError):
                attacker.descriptors.append(os.open(target / f"{number:04d}.bin", os.O_RDONLY))


ATTACKS: dict[str, Callable[[Attacker], None]] = {
    "globs": globs,
    "listings": listings,
    "hanging": hanging,
    "metrics": metrics,
    "shares": shares,
}


def begin(attacker: Attacker, names: list[str]) -> None:
    """Starts the attacks at the same time; returns when all of them are in force, or after ``START_S``, when those that
    the driver holds up go on in the background."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    deadline = time.monotonic() + START_S
    for thread in [_in_background(lambda name=name: ATTACKS[name](attacker)) for name in names]:  # type: ignore[misc]
        thread.join(max(0.0, deadline - time.monotonic()))


def _again_and_again(threads: int, call: Callable[[int], object]) -> None:
    """As kubelet does with a call that fails: each volume after ``FIRST_BACKOFF_S``, and then after twice as long each
    time. A tenant cannot call the driver but through kubelet."""

    def repeat(number: int) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            call(number)
            time.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    for number in range(threads):
        _in_background(lambda number=number: repeat(number))  # type: ignore[misc]


def _read(path: Path) -> None:
    while True:
        with contextlib.suppress(OSError):
            path.read_bytes()
        time.sleep(0.1)


def _in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
