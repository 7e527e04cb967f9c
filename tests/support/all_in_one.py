"""``hayloft all-in-one`` as a separate process, with all its files below one directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient
from tests.support.forked_command import FORK_SERVER, ForkedCommand

TIMEOUT_S = 90.0


def until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Polls every 50 ms until the condition holds. Fails the test when it times out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


class AllInOne:
    """``start`` returns when the driver is ready. ``close`` ends all processes and mounts, also after a failed test."""

    forked = True
    """Its processes are forks of one that has imported the driver. False: new ones."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "csi.sock"
        self.cache = home / "cache"
        self.log = home / "driver.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: CsiClient | None = None
        self.cache.mkdir()

    def command(self, *more: str) -> list[str]:
        command = [sys.executable, "-m", "csi_driver.cli", "all-in-one", f"--endpoint=unix://{self.socket}"]
        command += [f"--registry={self.home / 'registry'}", f"--cache-dir={self.cache}", "--node-id=node-1"]
        # The disk of the tests is that of this kubelet, and may be fuller than the cache leaves it by itself.
        return [*command, f"--kubelet-dir={self.home}", "--free-floor=64MiB", *more]

    def start(self, *more: str) -> CsiClient:
        with self.log.open("ab") as log:
            command = self.command(*more)
            if self.forked:
                self.process = ForkedCommand(command[3:], stdout=log, stderr=log, new_session=True)
            else:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.client = CsiClient(self.socket)
        until(self.is_ready, "the driver is ready")
        return self.client

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.client is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.client.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value
        except grpc.RpcError:
            return False

    def processes(self) -> list[int]:
        """Process ids of the driver and of all that it has started."""
        assert self.process is not None
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for parent in found:  # which grows
            found += [pid for pid, its_parent in parents.items() if its_parent == parent]
        return found

    def children(self) -> dict[str, int]:
        """Process ids of the children by command, without the process that starts listings."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = {}
        for process_id in path.read_text().split():
            with suppress(OSError, IndexError):  # it has just ended
                words = Path(f"/proc/{process_id}/cmdline").read_text().split("\0")
                title = Path(f"/proc/{process_id}/comm").read_text().strip()
                if title != "listing-server":
                    found[title if FORK_SERVER in words else words[3]] = int(process_id)
        return found

    def run_directory(self) -> Path:
        """The directory of the sockets between the processes."""
        assert self.process is not None
        bases = (Path("/run"), Path(tempfile.gettempdir()))
        (path,) = (path for base in bases for path in base.glob(f"hayloft-{self.process.pid}-*"))
        return path

    def cached_objects(self) -> int:
        """Objects that are complete in the cache. A read is answered before its bytes are in the cache."""
        return sum(1 for _ in self.cache.glob("objects/*/*"))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits, and returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT_S)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for entry in sorted(MountTable.read().below(self.home), key=lambda entry: -len(entry.mount_point)):
            with suppress(Exception):
                bind_mounts.unmount(Path(entry.mount_point), lazy=True)


def is_running(process_id: int) -> bool:
    """False for a zombie as well."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z" and os.path.exists(f"/proc/{process_id}")
