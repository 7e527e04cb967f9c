"""Runs reader processes and makes one reading of what they counted.

A job is named as ``module:function``. It is called in a reader process with the arguments of its share, makes clients
and imports what it needs, and returns the function that runs when the clock starts, with a ``ReadCounts``::

    def files(arguments: dict[str, Any]) -> Run:
        root = arguments["access"]["root"]

        def run(counts: ReadCounts) -> None:
            for path in arguments["items"]:
                start = time.perf_counter()
                data = read(f"{root}/{path}")
                counts.sample(time.perf_counter() - start, len(data))
                if counts.wants_check():
                    counts.check(path, 0, data)

        return run

``reader_process.py`` is the other side: the program that forks the readers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import crc32c

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import Access, Reading, Share
from hayloft_bench.run.stopping import Stopping

CHECK_EVERY = 32
"""One sample of so many is compared: 3 % of the bytes, at several GB/s and outside of the timed part."""
END_TIMEOUT_S = 0.5
"""The reader program ends by itself when its pipes are closed, within milliseconds."""
LOG_LINES = 12


class ReadCounts:
    """What one reader process read. The clock has started when it is made.

    Time spent in ``check`` is subtracted: the check belongs to the benchmark, not to the loader.
    """

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress
        self._start_s = time.monotonic()
        self._first_batch_s: float | None = None
        self._first_sample_s: float | None = None
        self._checking_s = 0.0
        self._checking_cpu_s = 0.0
        self._wanted = 0
        self._wrong: list[str] = []
        self._good = 0
        self._checks: list[tuple[str, int, int, int]] = []
        self.read_bytes = 0
        self.samples = 0
        self.sample_latencies_s: list[float] = []
        self.batch_latencies_s: list[float] = []

    def begin(self) -> None:
        """Starts the clock again: for loaders that prepare something in ``run`` that no training would wait for."""
        self._start_s = time.monotonic()

    def sample(self, latency_s: float, read_bytes: int, samples: int = 1) -> None:
        """One read that took ``latency_s`` and holds ``samples`` samples."""
        self.read_bytes += read_bytes
        self.samples += samples
        self.sample_latencies_s.append(latency_s)
        if self._first_sample_s is None:
            self._first_sample_s = self._elapsed_s()
        if self._progress is not None:
            self._progress(self.read_bytes or self.samples)  # so that progress shows where no bytes are read

    def batch(self, latency_s: float) -> None:
        """A batch is complete; the training loop waited ``latency_s`` for it."""
        self.batch_latencies_s.append(latency_s)
        if self._first_batch_s is None:
            self._first_batch_s = self._elapsed_s()

    def wants_check(self) -> bool:
        """To be called once per sample: True for the first, then for one of ``CHECK_EVERY``."""
        self._wanted += 1
        return self._wanted % CHECK_EVERY == 1

    def check(self, path: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Records the checksum of bytes that were read at ``offset`` of the file; compared after the clock stops."""
        before_s, before_cpu_s = time.monotonic(), time.process_time()
        self._checks.append((path, offset, len(data), crc32c.crc32c(data)))
        self._checking_s += time.monotonic() - before_s
        self._checking_cpu_s += time.process_time() - before_cpu_s

    def checksum(self, path: str, offset: int, length: int, crc: int) -> None:
        """The same with a CRC32C that another process, such as a worker of a loader, has computed."""
        self._checks.append((path, offset, length, crc))

    def checked(self, ok: bool, what: str) -> None:
        """A comparison that the loader has made itself; ``what`` names the error if it failed."""
        if ok:
            self._good += 1
        else:
            self._wrong.append(what)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s - self._checking_s

    def answer(self) -> dict[str, Any]:
        """As JSON, for the pool."""
        first_s = self._first_sample_s if self._first_batch_s is None else self._first_batch_s
        return {
            "begun": self._start_s,
            "bytes": self.read_bytes,
            "samples": self.samples,
            "sample_latencies_s": self.sample_latencies_s,
            "batch_latencies_s": self.batch_latencies_s,
            "first_batch_s": first_s or 0.0,
            "checking_s": self._checking_s,
            "checking_cpu_s": self._checking_cpu_s,
            "checks": self._checks,
            "good": self._good,
            "wrong": self._wrong,
        }


Run = Callable[[ReadCounts], None]


class ReaderPool:
    """Runs jobs, one process for each share. The processes end with the call, however it ends."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping

    def gather(
        self,
        shares: Sequence[Share],
        *,
        imports: Sequence[str] = (),
        before_start: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[dict[str, Any]]:
        """The answers of ``ReadCounts`` of all shares, each with ``start`` and ``stop`` (seconds of one clock),
        ``cpu_s`` and ``block_read_bytes`` between them, and ``peak_bytes`` of memory. ``before_start`` is called when
        all readers have made their clients and before the clock starts; ``progress`` gets the bytes read so far, ten
        times a second. Raises ProcessFailed."""
        specification = {"shares": [asdict(share) for share in shares], "imports": list(imports)}
        with tempfile.TemporaryFile("w+") as log:
            process: subprocess.Popen[str] | None = None
            try:
                with self._stopping.shield():
                    process = _start(log)
                answers = _exchange(process, specification, before_start, progress)
            except (BrokenPipeError, json.JSONDecodeError):
                answers = None
            finally:
                if process is not None:
                    _end(process)
            if answers is None:
                jobs = ", ".join(sorted({share.job for share in shares}))
                log.seek(0)
                end = "\n".join(log.read().splitlines()[-LOG_LINES:])
                raise ProcessFailed(f"a reader process failed ({jobs}):\n{end}")
            return answers


def _start(log: Any) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in the terminal reaches only this program, which ends its readers itself.
    return subprocess.Popen(
        [sys.executable, "-m", "hayloft_bench.run.reader_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )


def _exchange(
    process: subprocess.Popen[str],
    specification: dict[str, Any],
    before_start: Callable[[], None],
    progress: Callable[[int], None],
) -> list[dict[str, Any]] | None:
    """None when the process ended without answers."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process has no pipes")
    process.stdin.write(json.dumps(specification) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if "ready" in message:
            before_start()
            process.stdin.write("go\n")
            process.stdin.flush()
        elif "progress" in message:
            progress(message["progress"])
        elif "answers" in message:
            answers: list[dict[str, Any]] = message["answers"]
            return answers
    return None


def _end(process: subprocess.Popen[str]) -> None:
    """The kernel kills the readers when their parent is gone, so the end of the program is enough."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # Not reaped yet, so the number is still that of its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Checksums(Protocol):
    """What the dataset holds, known independently of the target that is measured."""

    def checksum(self, path: str, offset: int, length: int) -> int | None:
        """CRC32C of a range; None where the dataset has no such range."""
        ...


def read(
    pool: ReaderPool,
    shares: Sequence[Share],
    access: Access,
    expected: Checksums,
    *,
    imports: Sequence[str] = (),
    before_start: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Reading:
    """Reads all shares through ``access``; the rest is as for ``ReaderPool.gather``. Raises ProcessFailed."""
    if not shares:
        raise ProcessFailed("there is nothing to read here: the dataset has fewer files than there are ranks")
    jobs = [Share(share.job, {**share.arguments, "access": asdict(access)}) for share in shares]
    answers = pool.gather(jobs, imports=imports, before_start=before_start, progress=progress)
    wrong = [what for answer in answers for what in answer["wrong"]]
    checks = [check for answer in answers for check in answer["checks"]]
    for path, offset, length, crc in checks:
        if expected.checksum(path, offset, length) != crc:
            wrong.append(f"{path}, bytes {offset} to {offset + length}")
    start_s = min(answer["begun"] for answer in answers)
    block_bytes = [answer["block_read_bytes"] for answer in answers]
    return Reading(
        seconds=max(answer["stop"] - answer["checking_s"] for answer in answers) - start_s,
        read_bytes=sum(answer["bytes"] for answer in answers),
        samples=sum(answer["samples"] for answer in answers),
        first_batch_s=max(answer["first_batch_s"] for answer in answers),
        sample_latencies_s=[value for answer in answers for value in answer["sample_latencies_s"]],
        batch_latencies_s=[value for answer in answers for value in answer["batch_latencies_s"]],
        reader_cpu_s=sum(answer["cpu_s"] - answer["checking_cpu_s"] for answer in answers),
        reader_peak_bytes=max(answer["peak_bytes"] for answer in answers),
        wrong=wrong,
        checked=len(checks) + sum(answer["good"] for answer in answers),
        steady=[(_steady_s(answer), answer["samples"]) for answer in answers],
        block_read_bytes=None if None in block_bytes else sum(block_bytes),
    )


def _steady_s(answer: dict[str, Any]) -> float:
    """From a reader's first batch to its end."""
    return float(answer["stop"] - answer["checking_s"] - answer["begun"] - answer["first_batch_s"])
