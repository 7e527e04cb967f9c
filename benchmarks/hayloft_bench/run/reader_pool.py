"""What reader processes count, and how their answers become one reading.

A job is ``module:function``: called in a reader process with the arguments of its share, it makes clients and imports
what it needs, and returns what is run when the clock starts, with a ``ReadCounts``::

    def files(arguments: dict[str, Any]) -> Run:
        root = arguments["access"]["root"]

        def run(tally: ReadCounts) -> None:
            for path in arguments["items"]:
                start = time.perf_counter()
                data = read(f"{root}/{path}")
                tally.sample(time.perf_counter() - start, len(data))
                if tally.wants_check():
                    tally.check(path, 0, data)

        return run

The processes are those of the demonstration (``hayloft_bench.demo.reader_process``).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import crc32c

from hayloft_bench.demo.crew import ReaderPool
from hayloft_bench.demo.errors import DemoFailed
from hayloft_bench.results.model import Access, Reading, Share

CHECK_EVERY = 32
"""One sample of so many is compared: 3 % of the bytes, at several GB/s and outside of the timed part."""
SHOWN_WRONG = 5
_TALLY = "hayloft_bench.run.reader_pool:ReadCounts"


class ReadCounts:
    """What one reader process read. The clock has started when it is made.

    Time spent in ``check`` and ``checked`` is taken off the clock: the tally's own, not the loader's.
    """

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress
        self._begun_s = time.monotonic()
        self._first_batch_s: float | None = None
        self._first_sample_s: float | None = None
        self._aside_s = 0.0
        self._aside_cpu_s = 0.0
        self._wanted = 0
        self._wrong: list[str] = []
        self._good = 0
        self._checks: list[tuple[str, int, int, int]] = []
        self.read_bytes = 0
        self.samples = 0
        self.sample_latencies_s: list[float] = []
        self.batch_latencies_s: list[float] = []

    def begin(self) -> None:
        """The clock starts now: for loaders that prepare something in ``run`` that no training would wait for."""
        self._begun_s = time.monotonic()

    def sample(self, latency_s: float, read_bytes: int, samples: int = 1) -> None:
        """One thing was read, which took that long and holds so many samples."""
        self.read_bytes += read_bytes
        self.samples += samples
        self.sample_latencies_s.append(latency_s)
        if self._first_sample_s is None:
            self._first_sample_s = self._elapsed_s()
        if self._progress is not None:
            self._progress(self.read_bytes or self.samples)  # so that progress shows where no bytes are read

    def batch(self, latency_s: float) -> None:
        """A batch is complete; the training loop waited that long for it."""
        self.batch_latencies_s.append(latency_s)
        if self._first_batch_s is None:
            self._first_batch_s = self._elapsed_s()

    def wants_check(self) -> bool:
        """To be asked once per sample: True for the first and then for one of ``CHECK_EVERY``."""
        self._wanted += 1
        return self._wanted % CHECK_EVERY == 1

    def check(self, path: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Notes the checksum of bytes that were read at ``offset`` of the file; it is compared after the clock."""
        before_s, before_cpu_s = time.monotonic(), time.process_time()
        self._checks.append((path, offset, len(data), crc32c.crc32c(data)))
        self._leave_out(before_s, before_cpu_s)

    def checksum(self, path: str, offset: int, length: int, crc: int) -> None:
        """The same where somebody else, such as a worker of a loader, has computed the CRC32C."""
        self._checks.append((path, offset, length, crc))

    def checked(self, ok: bool, what: str) -> None:
        """A comparison that the loader has made itself; ``what`` says what is wrong, if it is."""
        if ok:
            self._good += 1
        else:
            self._wrong.append(what)

    def _leave_out(self, before_s: float, before_cpu_s: float) -> None:
        self._aside_s += time.monotonic() - before_s
        self._aside_cpu_s += time.process_time() - before_cpu_s

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s - self._aside_s

    def answer(self) -> dict[str, Any]:
        """What the parent is told, as JSON has it."""
        first_s = self._first_sample_s if self._first_batch_s is None else self._first_batch_s
        return {
            "begun": self._begun_s,
            "bytes": self.read_bytes,
            "samples": self.samples,
            "sample_latencies_s": self.sample_latencies_s,
            "batch_latencies_s": self.batch_latencies_s,
            "first_batch_s": first_s or 0.0,
            "aside_s": self._aside_s,
            "aside_cpu_s": self._aside_cpu_s,
            "checks": self._checks,
            "good": self._good,
            "wrong": self._wrong,
        }


Run = Callable[[ReadCounts], None]


class ExpectedData(Protocol):
    """What the dataset holds, known from elsewhere than the target that is measured."""

    def checksum(self, path: str, offset: int, length: int) -> int | None:
        """CRC32C of a range; None where the dataset has no such range."""
        ...


def read(
    crew: ReaderPool,
    shares: Sequence[Share],
    access: Access,
    truth: ExpectedData,
    *,
    imports: Sequence[str] = (),
    before_start: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Reading:
    """One process for each share. ``before_start`` is called when all are ready and before the clock runs;
    ``progress`` is told the bytes read so far, ten times a second. Raises DemoFailed when a reader fails."""
    if not shares:
        raise DemoFailed("there is nothing to read here: the dataset has fewer files than there are ranks")
    jobs = [(share.job, {**share.arguments, "access": asdict(access)}) for share in shares]
    answers = crew.gather(_TALLY, jobs, imports=imports, before_start=before_start, progress=progress)
    return _reading(answers, truth)


def _reading(answers: Sequence[dict[str, Any]], truth: ExpectedData) -> Reading:
    wrong = [what for answer in answers for what in answer["wrong"]]
    checks = [check for answer in answers for check in answer["checks"]]
    for path, offset, length, crc in checks:
        if truth.checksum(path, offset, length) != crc:
            wrong.append(f"{path}, bytes {offset} to {offset + length}")
    begun = min(answer["begun"] for answer in answers)
    blocks = [answer["block_read_bytes"] for answer in answers]
    return Reading(
        seconds=max(answer["stop"] - answer["aside_s"] for answer in answers) - begun,
        read_bytes=sum(answer["bytes"] for answer in answers),
        samples=sum(answer["samples"] for answer in answers),
        first_batch_s=max(answer["first_batch_s"] for answer in answers),
        sample_latencies_s=[value for answer in answers for value in answer["sample_latencies_s"]],
        batch_latencies_s=[value for answer in answers for value in answer["batch_latencies_s"]],
        reader_cpu_s=sum(answer["cpu_s"] - answer["aside_cpu_s"] for answer in answers),
        reader_peak_bytes=max(answer["peak_bytes"] for answer in answers),
        wrong=wrong,
        checked=len(checks) + sum(answer["good"] for answer in answers),
        steady=[(_steady_s(answer), answer["samples"]) for answer in answers],
        block_read_bytes=None if None in blocks else sum(blocks),
    )


def _steady_s(answer: dict[str, Any]) -> float:
    """From a reader's first batch to its end."""
    return float(answer["stop"] - answer["aside_s"] - answer["begun"] - answer["first_batch_s"])


def repeated(arguments: dict[str, Any]) -> Run:
    """A job of jobs: ``arguments["parts"]`` holds (job, arguments) that are run one after the other."""
    runs = []
    for job, part in arguments["parts"]:
        module, _, function = job.partition(":")
        loader = getattr(importlib.import_module(module), function)
        runs.append(loader({**part, "access": arguments["access"]}))

    def run(tally: ReadCounts) -> None:
        for each in runs:
            each(tally)

    return run
