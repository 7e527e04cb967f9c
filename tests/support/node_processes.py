"""The processes of a node, which a test kills, replaces, and restarts before it retries."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts.mount_table import MountTable
from tests.support.daemons import DaemonBench, stop, wait_until

LONGEST_CALL_S = 0.15
"""A kill follows a call after a random part of this time: calls take 2 to 200 ms."""

Call = Callable[[], object]


class NodeProcesses:
    """Processes that a test kills, and restarts before it retries."""

    def __init__(self, bench: DaemonBench) -> None:
        self.bench = bench
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = 0
        self._draw = random.Random(12)
        self._callers = ThreadPoolExecutor(1)

    def start(self, name: str) -> None:
        path = self.bench.run / f"{name}.sock"
        if name == "cache":
            self.processes[name] = self.bench.start()
            return
        home = self.bench.directory
        more = {
            "csi": ("node", "--node-id=n", f"--daemon-socket={self.bench.run / 'cache.sock'}", f"--kubelet-dir={home}"),
            "controller": ("controller", f"--registry={home / 'registry'}"),
        }[name]
        self.processes[name] = self.bench.start_process(*more, f"--endpoint=unix://{path}", "--log-level=warning")
        wait_until(lambda: _listens(path))

    def replace_plugin(self) -> None:
        """Ends the node plugin and starts another one at the same socket as soon as that is free: the old one may still
        have calls in flight."""
        path, old = self.bench.run / "csi.sock", self.processes["csi"]
        old.send_signal(signal.SIGTERM)
        wait_until(lambda: not path.exists() or old.poll() is not None)
        self.start("csi")
        assert old.wait(60) in (0, -signal.SIGTERM)  # the latter before it handles signals

    def interrupted(self, victim: str, call: Call) -> None:
        """Kills the victim while the call is in flight, restarts it, and retries the call until it succeeds."""
        in_flight = self._callers.submit(call)
        time.sleep(self._draw.uniform(0.0, LONGEST_CALL_S))
        stop(self.processes[victim], signal.SIGKILL)
        self.kills += 1
        try:
            in_flight.result(60)
        except grpc.RpcError as error:
            if error.code() not in RETRIED:
                raise
        self.start(victim)
        retry(call)

    def close(self) -> None:
        self._callers.shutdown(wait=False)
        for entry in sorted(MountTable.read().below(self.bench.directory), key=lambda entry: -len(entry.mount_point)):
            bind.unmount(Path(entry.mount_point), lazy=True)
        self.bench.close()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED)


def retry(call: Call) -> None:
    """Retries as kubelet does, until the call succeeds."""
    for _ in range(200):
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in RETRIED:
                raise
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the call does not succeed")
