"""What a small object costs a warmup, in microseconds of processor time by thread and by step.

Run it as ``python -m hayloft_bench.micro.small_object_budget``, with ``--against CHECKOUT`` for another one in turns.
Each turn is a process of its own with an empty cache, which warms the objects of ``canned_objects`` up through the
read-through cache, without a mount. It prints the processor time of the process for each object, in user mode and in
the kernel, page faults, the time of its threads, and with ``--steps`` that of single steps, called in a row.
``--perf FILE`` records the process with perf(1). Rates depend on the load of the machine, and are not printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hayloft_bench.micro.canned_objects import answer, content

if TYPE_CHECKING:
    from csi_driver.reading.services import ObjectSource

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
BUCKET = "budget"
_STEP_REPEATS = 2000
_WARM = 100
"""Objects that are fetched first, so that connections are open and modules are imported."""


class Cost(NamedTuple):
    """Of one object, in microseconds of processor time."""

    user: float
    kernel: float

    @property
    def total(self) -> float:
        return self.user + self.kernel


def _ticks(thread: threading.Thread) -> tuple[int, int]:
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]), int(fields[12])


def _threads() -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for thread in threading.enumerate():
        try:
            user, kernel = _ticks(thread)
        except OSError:  # it has ended
            continue
        name = thread.name.rstrip("0123456789")
        before = found.get(name, (0, 0))
        found[name] = before[0] + user, before[1] + kernel
    return found


def _sources(port: int, count: int, size_bytes: int) -> Callable[[int], ObjectSource]:
    """The object of a number."""
    from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
    from csi_driver.model.snapshot import ObjectVersion
    from csi_driver.objects.store_factory import open_store
    from csi_driver.reading.access import Access
    from csi_driver.reading.services import ObjectSource

    keys = Credentials({"access_key_id": KEY, "secret_access_key": SECRET})
    options = StoreOptions(endpoint=f"http://127.0.0.1:{port}")
    store = open_store(DatasetUrl.parse(f"s3://{BUCKET}/"), options, keys)
    etag = hashlib.md5(content(size_bytes), usedforsecurity=False).hexdigest()
    access = Access(files=count)

    def source(number: int) -> ObjectSource:
        key = f"train/n0{number % 1000:04}/image-{number:08}.jpg"
        version = ObjectVersion("d", store.endpoint, BUCKET, key, etag, size_bytes)
        return ObjectSource(version, store, access=access, row=number)

    return source


class _Files(NamedTuple):
    """``WarmupFiles``."""

    numbers: range
    of_each_bytes: int
    source_of: Callable[[int], ObjectSource]

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        return self.numbers

    def size_bytes(self, number: int) -> int:
        return self.of_each_bytes

    def source(self, number: int) -> ObjectSource:
        return self.source_of(number)

    def wanted(self, number: int) -> tuple[range, ...]:
        return (range(1),)


def measure(port: int, objects: int, size_bytes: int, directory: Path, *, steps: bool, perf: str) -> None:
    """Warms up, and prints the costs. Ends the process."""
    from csi_driver.cache.chunk_store import ChunkStore
    from csi_driver.event_loop.event_loop import EventLoop
    from csi_driver.reading.read_through_cache import ReadThroughCache
    from csi_driver.reading.warmup import Warmup
    from csi_driver.settings import ChunkStoreSettings, ReadingSettings

    chunk_store = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=64 << 30, free_floor_bytes=0))
    event_loop = EventLoop()
    cache = ReadThroughCache(chunk_store, ReadingSettings(), event_loop)
    event_loop.start()
    source_of = _sources(port, _WARM + objects, size_bytes)
    is_roomy = getattr(chunk_store, "is_roomy", lambda count_bytes: False)  # a checkout of before has none

    def has_space(count_bytes: int) -> bool:  # as of ``WarmupJobs``
        return is_roomy(count_bytes) or chunk_store.has_space_for_warmup(count_bytes, 0, {0})

    def warm(first: int, count: int) -> None:
        warmup = Warmup("budget", _Files(range(first, first + count), size_bytes, source_of), cache, has_space)
        warmup.start()
        warmup.join(3600)
        if warmup.progress().done_files != count:
            raise SystemExit(f"the warmup ended as {warmup.progress()}")

    warm(0, _WARM)
    recorder = None
    if perf:
        recorder = subprocess.Popen(["perf", "record", "-q", "-g", "-o", perf, "-p", str(os.getpid())])
        time.sleep(2)
    threads, began = _threads(), resource.getrusage(resource.RUSAGE_SELF)
    warm(_WARM, objects)
    chunk_store.checkpoint()
    ended = resource.getrusage(resource.RUSAGE_SELF)
    if recorder is not None:
        recorder.terminate()
        recorder.wait()
    _print_costs(began, ended, threads, objects)
    if steps:
        _print_steps(size_bytes, directory)
    os._exit(0)


def _print_costs(
    began: resource.struct_rusage, ended: resource.struct_rusage, threads: dict[str, tuple[int, int]], objects: int
) -> None:
    user_us, kernel_us = (ended.ru_utime - began.ru_utime) * 1e6, (ended.ru_stime - began.ru_stime) * 1e6
    print(f"cost {user_us / objects:.1f} {kernel_us / objects:.1f}")
    faults, waits = ended.ru_minflt - began.ru_minflt, ended.ru_nvcsw - began.ru_nvcsw
    print(f"  {faults / objects:.1f} page faults, {waits / objects:.1f} times a thread waited")
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK") / objects
    for name, (user, kernel) in sorted(_threads().items()):
        before = threads.get(name, (0, 0))
        used = Cost((user - before[0]) * tick_us, (kernel - before[1]) * tick_us)
        if used.total >= 1:
            print(f"  thread {name}: user {used.user:.0f}, kernel {used.kernel:.0f}")
    sys.stdout.flush()


def _print_steps(size_bytes: int, directory: Path) -> None:
    """Each alone, one call after the other, by the processor time of this thread."""
    import crc32c

    from csi_driver.objects.checksums import new_checksum
    from csi_driver.objects.http.in_flight_response import ResponseHead

    body = memoryview(content(size_bytes))
    head = answer(size_bytes, checksum=True).split(b"\r\n\r\n")[0]
    place = directory / "steps"
    place.mkdir()

    def md5() -> None:
        checksum = new_checksum("md5")
        checksum.update(body)
        checksum.digest()

    numbers = iter(range(1 << 30))

    def write_file() -> None:
        path = f"{place}/{next(numbers)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        os.pwrite(descriptor, body, 0)
        os.close(descriptor)

    def buffer() -> None:
        bytearray(size_bytes)

    found: list[tuple[str, Callable[[], object]]] = [
        ("md5", md5),
        ("crc32c", lambda: crc32c.crc32c(body)),
        ("parse the head", lambda: ResponseHead.parse(head)),
        ("a buffer, zeroed", buffer),
        ("create, write and close a file", write_file),
    ]
    for name, step in found:
        began = time.thread_time()
        for _ in range(_STEP_REPEATS):
            step()
        print(f"  step {name}: {(time.thread_time() - began) / _STEP_REPEATS * 1e6:.1f}", flush=True)


def _turn(checkout: Path, here: Path, port: int, home: Path, arguments: argparse.Namespace) -> Cost:
    directory = Path(tempfile.mkdtemp(dir=home))
    command = [sys.executable, __file__, "--measure", str(port), str(directory)]
    command += [f"--objects={arguments.objects}", f"--bytes={arguments.bytes}", f"--perf={arguments.perf}"]
    command += ["--steps"] if arguments.steps else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(here / "benchmarks")])}
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(directory)
    first, *rest = done.stdout.splitlines()
    cost = Cost(*map(float, first.split()[1:]))
    print(f"{checkout}: {cost.total:.0f} microseconds an object, {cost.kernel:.0f} of them in the kernel")
    print("\n".join(rest), flush=True)
    return cost


def main() -> None:
    """The costs of one or two checkouts, in turns, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout; without it this one is measured alone")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=110_000)
    parser.add_argument("--checksum", action="store_true", help="the store sends a CRC32C; else the ETag is an MD5")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--perf", default="", metavar="FILE")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="of the cache")  # noqa: S108
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        port, directory = int(arguments.measure[0]), Path(arguments.measure[1])
        measure(port, arguments.objects, arguments.bytes, directory, steps=arguments.steps, perf=arguments.perf)
        return
    here = Path(__file__).resolve().parents[3]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    server = [sys.executable, "-m", "hayloft_bench.micro.canned_objects", f"--bytes={arguments.bytes}"]
    server += ["--checksum"] if arguments.checksum else []
    costs: dict[Path, list[Cost]] = {checkout: [] for checkout in checkouts}
    with (
        tempfile.TemporaryDirectory(prefix="budget-", dir=arguments.directory) as home,
        subprocess.Popen(server, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for turn in range(arguments.turns):
            for checkout in checkouts if turn % 2 else reversed(checkouts):
                costs[checkout].append(_turn(checkout, here, port, Path(home), arguments))
        process.communicate()
    print("medians, in microseconds an object")
    for checkout, found in costs.items():
        user, kernel = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{checkout}: user {user:.0f}, kernel {kernel:.0f}, {statistics.median(c.total for c in found):.0f}")


if __name__ == "__main__":
    main()
