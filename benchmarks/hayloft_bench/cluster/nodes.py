"""Nodes on one machine: daemons with caches of their own, each read by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.fuse import mounting
from csi_driver.model.errors import DaemonUnavailable, HayloftError, MountError
from csi_driver.volumes.data_plane import MountRequest
from hayloft_bench.errors import ProcessFailed
from hayloft_lab.child_servers import dying_with_parent

START_S = 60.0
STOP_S = 20.0
READERS = 4
"""Threads that read on each node."""

# Reads every file that it is given, by several threads, and prints what it has read and when it was done.
_READER = """
import hashlib, json, os, sys, threading, time
root, threads, paths = sys.argv[1], int(sys.argv[2]), json.load(sys.stdin)
lock, position, count, digests, errors, small_s = threading.Lock(), 0, 0, {}, [], []
def work():
    global position, count
    while True:
        with lock:
            if position == len(paths):
                return
            path = paths[position]
            position += 1
        digest, began_s, before = hashlib.blake2b(digest_size=8), time.monotonic(), 0
        try:
            with open(os.path.join(root, path), "rb", buffering=0) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    before += len(piece)
                    with lock:
                        count += len(piece)
        except OSError as error:
            errors.append(f"{path}: {error}")
        digests[path] = digest.hexdigest()
        if before < 1 << 20:
            small_s.append(time.monotonic() - began_s)
workers = [threading.Thread(target=work) for _ in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
found = {"ended_s": time.monotonic(), "bytes": count, "digests": digests, "errors": errors, "small_s": small_s}
json.dump(found, sys.stdout)
"""


class Node:
    """One daemon, with what it keeps below ``directory``, whose path must be short: it holds the socket."""

    def __init__(self, directory: Path, flags: Sequence[str]) -> None:
        self._directory, self._flags = directory, flags
        self._process: subprocess.Popen[bytes] | None = None
        self.mount_point = directory / "mount"

    def start(self) -> None:
        """Blocks until the daemon answers. Raises ProcessFailed."""
        for name in ("cache", "registry", "mount"):
            (self._directory / name).mkdir(parents=True)
        command = [
            *(sys.executable, "-m", "csi_driver.cli", "cache", f"--socket={self._socket}"),
            f"--state-dir={self._directory / 'state'}",
            f"--cache-dir={self._directory / 'cache'}",
            f"--registry={self._directory / 'registry'}",
            *self._flags,
        ]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                dying_with_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        client = DaemonClient(self._socket)
        try:
            while True:
                try:
                    client.report()
                    return
                except DaemonUnavailable:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise ProcessFailed(f"a daemon did not start:\n{self._log_end()}") from None
                    time.sleep(0.05)
        finally:
            client.close()

    def mount(self, attributes: dict[str, str], secrets: dict[str, str]) -> None:
        """Raises ProcessFailed."""
        client = DaemonClient(self._socket)
        try:
            client.mount(MountRequest("volume", os.fspath(self.mount_point), attributes, secrets))
        except HayloftError as error:
            raise ProcessFailed(f"a node did not mount the dataset: {error}") from None
        finally:
            client.close()

    def reader(self) -> subprocess.Popen[str]:
        """A process that reads what is written to its standard input: a list of paths in JSON."""
        command = [sys.executable, "-I", "-S", "-c", _READER, os.fspath(self.mount_point), str(READERS)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def cpu_s(self) -> float:
        """Of the daemon and the processes that it has started, user and system."""
        return 0.0 if self._process is None else cpu_s(self._process.pid)

    def close(self) -> None:
        """Unmounts, and ends the daemon."""
        with suppress(MountError):
            if mounting.find(self.mount_point) is not None:
                mounting.unmount(self.mount_point, lazy=True)
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def _socket(self) -> Path:
        return self._directory / "cache.sock"

    def _log_end(self) -> str:
        return "\n".join((self._directory / "log").read_text(errors="replace").splitlines()[-10:])


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, user and system, with those of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
