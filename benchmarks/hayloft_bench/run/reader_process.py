"""The program that reads: ``python -m hayloft_bench.run.reader_process``, started by ``ReaderPool``.

It takes a specification as one line of JSON from its standard input (so that no credential shows in a command line),
forks one process per share, reports that all are ready, starts them together on the line ``go``, and answers with what
they read. A fresh process forks, because the program with the progress bars has threads, which do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import resource
import selectors
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hayloft_bench.run.jobs import job_of
from hayloft_bench.run.reader_pool import ReadCounts

_PROGRESS_INTERVAL_S = 0.1
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    # Readers have nothing to clean up. Set after the fork: a fork does not inherit it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _read_share(share: dict[str, Any], progress: mmap.mmap, slot: int, ready: int, go: int) -> bytes:
    """In the child: makes clients, reports, waits for the start, reads. Returns one line of JSON."""
    run = job_of(share["job"])(share["arguments"])
    os.write(ready, b"r")
    os.read(go, 1)  # returns when the parent closes the other end: the same moment for all
    counts = ReadCounts(lambda count: struct.pack_into("=Q", progress, slot * 8, count))
    before_bytes, before_s, start = _block_read_bytes(), _processor_s(), time.monotonic()
    run(counts)
    stop, after_s, after_bytes = time.monotonic(), _processor_s(), _block_read_bytes()
    answer: dict[str, Any] = {"start": start, "stop": stop, "cpu_s": after_s - before_s, "peak_bytes": _peak_bytes()}
    answer["block_read_bytes"] = None if None in (before_bytes, after_bytes) else after_bytes - before_bytes
    return json.dumps(answer | counts.answer()).encode()


def _processor_s() -> float:
    """User and system time of this process and of those of its children that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _block_read_bytes() -> Any:
    """What this process and its children that have ended made the kernel read from disks; None where it is not
    counted (CONFIG_TASK_IO_ACCOUNTING)."""
    try:
        counters = Path("/proc/self/io").read_text()
    except OSError:
        return None
    return int(counters.partition("\nread_bytes:")[2].split(maxsplit=1)[0])


def _peak_bytes() -> int:
    """Of this process, or of its largest child. Not ru_maxrss for itself: that is inherited over a fork."""
    status = Path("/proc/self/status").read_text()
    own_kib = int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])
    return 1024 * max(own_kib, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


class _Readers:
    """The forked processes and the pipes to them."""

    def __init__(self, shares: list[dict[str, Any]]) -> None:
        self._progress = mmap.mmap(-1, max(1, len(shares)) * 8)
        ready_read, ready_write = os.pipe()
        go_read, go_write = os.pipe()
        self.ready, self._go = ready_read, go_write
        self.outputs: list[int] = []
        self._pids: list[int] = []
        for slot, share in enumerate(shares):
            output_read, output_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(go_write)
                self._child(share, slot, ready_write, go_read, output_write)
            self._pids.append(pid)
            os.close(output_write)
            self.outputs.append(output_read)
        os.close(ready_write)
        os.close(go_read)

    def _child(self, share: dict[str, Any], slot: int, ready: int, go: int, output: int) -> None:
        code = 1
        try:
            _die_with_parent()
            with os.fdopen(output, "wb") as stream:
                stream.write(_read_share(share, self._progress, slot, ready, go))
            code = 0
        except BaseException:  # noqa: BLE001 - the last frame of a process: everything is reported here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait_until_ready(self) -> None:
        """Raises ChildProcessError when one ended before."""
        for _ in self.outputs:
            if os.read(self.ready, 1) != b"r":
                raise ChildProcessError("a reader ended before the start")

    def start(self) -> None:
        os.close(self._go)

    def end(self) -> None:
        """Ends and reaps all: in a container there may be no init process that reaps them."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)  # one that has ended is a zombie until it is waited for
            os.waitpid(pid, 0)

    def failure(self) -> str:
        """How they ended. To be called when all outputs are closed and one has not answered."""
        ended = set()
        while self._pids:
            _, status = os.waitpid(self._pids.pop(), 0)
            if os.WIFSIGNALED(status):
                ended.add(signal.Signals(os.WTERMSIG(status)).name)
        return f"a reader was ended by {', '.join(sorted(ended))}" if ended else "a reader failed"

    def read_bytes(self) -> int:
        """Read by all readers so far."""
        return sum(struct.unpack_from(f"={len(self.outputs)}Q", self._progress))


def _collect(readers: _Readers) -> list[bytes]:
    """The answers, while progress goes to standard output."""
    answers = {output: bytearray() for output in readers.outputs}
    shown = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for output in readers.outputs:
            selector.register(output, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(_PROGRESS_INTERVAL_S):
                if piece := os.read(key.fd, 1 << 16):
                    answers[key.fd] += piece
                else:
                    selector.unregister(key.fd)
            if time.monotonic() - shown >= _PROGRESS_INTERVAL_S:
                shown = time.monotonic()
                _send({"progress": readers.read_bytes()})
    return [bytes(answer) for answer in answers.values()]


def _send(message: dict[str, Any] | str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
        sys.stdout.flush()


def main() -> int:
    """Serves one specification; returns 0 when every reader has succeeded."""
    _die_with_parent()
    specification = json.loads(sys.stdin.readline())
    # Imported before the fork, so that eight readers import them once: the loaders, and the packages that they need.
    for share in specification["shares"]:
        job_of(share["job"])
    for module in specification["imports"]:
        importlib.import_module(module)
    readers = _Readers(specification["shares"])
    try:
        readers.wait_until_ready()
        _send({"ready": True})
        if sys.stdin.readline().strip() != "go":
            return 1
        readers.start()
        answers = _collect(readers)
        if not all(answers):
            raise ChildProcessError(readers.failure())
        # Joined as they are, without parsing: a reader may have a million latencies.
        _send('{"answers": [' + ", ".join(answer.decode() for answer in answers) + "]}")
    except ChildProcessError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    finally:
        readers.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
