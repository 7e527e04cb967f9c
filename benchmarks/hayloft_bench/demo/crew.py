"""Starts reader processes, lets them go at one moment and gathers what they read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hayloft_bench.demo.errors import DemoFailed
from hayloft_bench.demo.stopping import Stopping

IMPORTS = {"boto3": ["boto3"], "s3fs": ["s3fs"], "directory": []}
"""What the readers of a kind of source import before they fork."""

_TALLY = "hayloft_bench.demo.workloads:Tally"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a crew read between the start of its first and the end of its last process."""

    read_bytes: int
    samples: int
    seconds: float
    latencies_s: tuple[float, ...] = field(repr=False)
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    def percentile_ms(self, percent: float) -> float:
        """Nearest rank; 0 when nothing was read."""
        if not self.latencies_s:
            return 0.0
        ordered = sorted(self.latencies_s)
        rank = max(1, -(-len(ordered) * percent // 100))
        return ordered[int(rank) - 1] * 1e3


class ReaderPool:
    """Runs jobs over shares, each in a process of its own. The processes end with the call, however it ends."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping

    def run(
        self,
        job: str,
        shares: Sequence[dict[str, Any]],
        *,
        imports: Sequence[str] = (),
        before_start: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Reading:
        """``before_start`` is called when all clients are made and before the clock runs; ``progress`` is told the
        bytes read so far. Raises DemoFailed when a reader fails."""
        answers = self.gather(
            _TALLY, [(job, share) for share in shares], imports=imports, before_start=before_start, progress=progress
        )
        progress(sum(answer["bytes"] for answer in answers))
        return _reading(answers)

    def gather(
        self,
        tally: str,
        shares: Sequence[tuple[str, dict[str, Any]]],
        *,
        imports: Sequence[str] = (),
        before_start: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[dict[str, Any]]:
        """One process for each share, a job and its arguments. Gives what the tally of each told, with ``start`` and
        ``stop`` (seconds of one clock), ``cpu_s`` and ``block_read_bytes`` between them, and ``peak_bytes`` of its
        memory. ``tally`` and the jobs are named as ``module:name``. Raises DemoFailed when a reader fails."""
        told = [{"job": job, "arguments": arguments} for job, arguments in shares]
        specification = {"tally": tally, "shares": told, "imports": list(imports)}
        with tempfile.TemporaryFile("w+") as errors:
            process: subprocess.Popen[str] | None = None
            try:
                with self._stopping.shield():
                    process = _start(errors)
                answers = _converse(process, specification, before_start, progress)
            except (BrokenPipeError, json.JSONDecodeError):
                answers = None
            finally:
                if process is not None:
                    _end(process)
            if answers is None:
                jobs = ", ".join(sorted({job for job, _ in shares}))
                raise DemoFailed(f"a reader process failed ({jobs}):\n{_tail(errors)}")
            return answers


def _reading(answers: Sequence[dict[str, Any]]) -> Reading:
    digests: dict[str, str] = {}
    for answer in answers:
        digests |= answer["digests"]
    return Reading(
        read_bytes=sum(answer["bytes"] for answer in answers),
        samples=sum(answer["samples"] for answer in answers),
        seconds=max(answer["stop"] for answer in answers) - min(answer["start"] for answer in answers),
        latencies_s=tuple(latency_s for answer in answers for latency_s in answer["latencies_s"]),
        digests=digests,
    )


def _start(errors: Any) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in the terminal reaches only this program, which ends its readers itself.
    return subprocess.Popen(
        [sys.executable, "-m", "hayloft_bench.demo.reader_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def _converse(
    process: subprocess.Popen[str],
    specification: dict[str, Any],
    before_start: Callable[[], None],
    progress: Callable[[int], None],
) -> list[dict[str, Any]] | None:
    """None when the process ended without a result."""
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
    """Its readers are killed by the kernel when it is gone, so its own end is enough."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        # Not reaped yet, so the number is still that of its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(errors: Any, lines: int = 12) -> str:
    errors.seek(0)
    return "\n".join(errors.read().splitlines()[-lines:])
