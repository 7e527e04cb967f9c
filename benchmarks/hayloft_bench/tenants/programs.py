"""The programs of a round, and the lines that they write within a time."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from hayloft_bench.run.stopping import Stopping


class Programs:
    """Modules of this package as child processes. ``close`` reaps them, and is to be called when the driver has ended:
    a process whose read the daemon neither answers nor fails does not end before."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping
        self._processes: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def running(self, name: str, specification: object) -> Iterator[subprocess.Popen[bytes]]:
        """Gets its specification as a line of JSON; killed at the end of the block."""
        with self._stopping.shield():
            command = [sys.executable, "-m", f"hayloft_bench.tenants.{name}"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(specification).encode() + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def lines_within(process: subprocess.Popen[bytes], limit_s: float) -> Iterator[str]:
    """Ends with the output of the process, or ``limit_s`` after the first call, whatever the process does. Nothing else
    reads its standard output, a pipe."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline = time.monotonic() + limit_s
    pending = b""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left_s)[0]:
            return
        piece = process.stdout.read1(1 << 16)  # type: ignore[attr-defined]  # of a buffered reader
        if not piece:
            return
        *lines, pending = (pending + piece).split(b"\n")
        yield from (line.decode() for line in lines)
