"""Small files on FUSE, from the page cache or from the disk, opened as Python programs open them: one checkout of the
driver beside another.

Run it as ``python -m hayloft_bench.micro.hot_opens --against CHECKOUT``, as root. Each pair starts the driver of both
checkouts, one after the other and in alternating order, with the same dataset of local files and ``view: fuse``. All
files are read once; then readers of their own processes read them again and again. It prints files a second, and
microseconds of processor time for each file, of the readers and of the driver's processes.

With ``--from-disk`` no page of the mount and of the cache is in memory when a round begins, and each file is read by
one of the readers. To drop its pages each file is opened, so with ``--opens daemon`` the daemon has some of them open,
idle, when a round begins.

- ``pil``: ``open``, 16 bytes, then 64 KiB at a time to the end: the calls of ``PIL.Image.open`` and of its decoder.
- ``whole``: ``open`` and ``read``, as ``Path.read_bytes``.
- ``unbuffered``: ``open(..., buffering=0)``. Only this one does not ask whether the file is a terminal, before Python
  3.14.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from hayloft_bench.run import usage
from hayloft_bench.run.page_cache import evict, write_out
from hayloft_lab.driver import START_TIMEOUT_S, unmount_below
from hayloft_lab.emulated_kubelet import EmulatedKubelet

FILES = 600
_HEADER_BYTES = 16
_DECODER_BYTES = 65536
_STOP_TIMEOUT_S = 30.0


class Figures(NamedTuple):
    """Of one kind of reader on one checkout."""

    files_per_s: float
    reader_us: float
    driver_us: float


def _read_as_pil(path: str) -> None:
    with open(path, "rb") as file:
        file.read(_HEADER_BYTES)
        while file.read(_DECODER_BYTES):
            pass


def _read_whole(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def _read_unbuffered(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        file.read()


_READERS: dict[str, Callable[[str], None]] = {
    "pil": _read_as_pil,
    "whole": _read_whole,
    "unbuffered": _read_unbuffered,
}


def _read(root: str, kind: str, rounds: int, seed: int, part: slice, start: Barrier, used_s: Queue[float]) -> None:
    read = _READERS[kind]
    paths = [f"{root}/{number}.jpg" for number in range(FILES)][part]
    random.Random(seed).shuffle(paths)
    for path in paths:
        read(path)
    start.wait()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(rounds):
        for path in paths:
            read(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s.put(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(root: str, driver_pid: int, kind: str, readers: int, rounds: int) -> Figures:
    """Reads each file ``rounds`` times with each reader. Blocks."""
    return _measure(root, driver_pid, kind, rounds, [slice(None)] * readers, lambda: None)


def measure_from_disk(root: str, driver_pid: int, kind: str, readers: int, rounds: int, cache: Path) -> Figures:
    """Reads each file ``rounds`` times, each time by one of the readers. ``cache``: the driver's. Blocks."""
    parts = [slice(number, None, readers) for number in range(readers)]
    write_out(cache)

    def empty_page_cache() -> None:
        evict(Path(root).iterdir())
        evict(path for path in cache.rglob("*") if path.is_file())

    return _medians([_measure(root, driver_pid, kind, 1, parts, empty_page_cache) for _ in range(rounds)])


def _medians(rounds: list[Figures]) -> Figures:
    return Figures(*map(statistics.median, zip(*rounds, strict=True)))


def _measure(
    root: str, driver_pid: int, kind: str, rounds: int, parts: list[slice], prepare: Callable[[], None]
) -> Figures:
    start = multiprocessing.Barrier(len(parts) + 1)
    used_s: Queue[float] = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=_read, args=(root, kind, rounds, seed, part, start, used_s))
        for seed, part in enumerate(parts)
    ]
    for process in processes:
        process.start()
    while start.n_waiting < len(parts):
        time.sleep(0.01)
    prepare()
    before_s, began = _processor_s(driver_pid), time.perf_counter()
    start.wait()
    reader_s = sum(used_s.get() for _ in processes)
    seconds, driver_s = time.perf_counter() - began, _processor_s(driver_pid) - before_s
    for process in processes:
        process.join()
    files = rounds * sum(len(range(FILES)[part]) for part in parts)
    return Figures(files / seconds, reader_s / files * 1e6, driver_s / files * 1e6)


def _processor_s(pid: int) -> float:
    found = 0.0
    for process in usage.tree(pid):
        times = process.cpu_times()
        found += times.user + times.system
    return found


@contextmanager
def mounted(checkout: Path, directory: Path, dataset: Path, opens: str) -> Iterator[tuple[str, int]]:
    """The dataset, published by the driver of a checkout, and the process id of that driver. ``opens``: the parameter
    of the volume."""
    (directory / "cache").mkdir(parents=True)
    endpoint = f"unix://{directory}/csi.sock"
    command = [sys.executable, "-m", "csi_driver.cli", "all-in-one", f"--endpoint={endpoint}"]
    command += [f"--registry={directory}/registry", f"--cache-dir={directory}/cache", f"--kubelet-dir={directory}"]
    command.append("--free-floor=64MiB")  # the disk may be fuller than a cache on that of kubelet leaves it
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with (directory / "log").open("wb") as log:
        # In that directory: ``-m`` looks for modules where it is started.
        driver = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)
    kubelet = EmulatedKubelet(endpoint, directory)
    try:
        kubelet.wait_until_ready(START_TIMEOUT_S, lambda: driver.poll() is None)
        volume = kubelet.create("pvc-hot", {"url": f"file://{dataset}", "view": "fuse", "opens": opens}, {})
        kubelet.stage(volume)
        yield str(kubelet.publish(volume)), driver.pid
        kubelet.unpublish(volume)
        kubelet.unstage(volume)
    finally:
        kubelet.close()
        driver.terminate()
        driver.wait(_STOP_TIMEOUT_S)
        unmount_below(directory)


def main() -> None:
    """One line for each number of readers and kind of reader: medians of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout; without it this one is measured alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=24, help="times that each reader reads each file")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--kinds", nargs="+", choices=list(_READERS), default=list(_READERS))
    parser.add_argument("--bytes", type=int, default=110_000, help="of each file")
    parser.add_argument("--from-disk", action="store_true")
    parser.add_argument("--opens", choices=["auto", "kernel", "daemon"], default="auto", help="parameter of the volume")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="of the cache")  # noqa: S108
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[3]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    found: dict[tuple[Path, int, str], list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="hot-", dir=arguments.directory) as home:
        dataset = Path(home, "dataset")
        dataset.mkdir()
        for number in range(FILES):
            (dataset / f"{number}.jpg").write_bytes(os.urandom(arguments.bytes))
        for pair in range(arguments.pairs):
            for number, checkout in enumerate(checkouts if pair % 2 else reversed(checkouts)):
                directory = Path(home, f"{pair}-{number}")
                with mounted(checkout, directory, dataset, arguments.opens) as (root, pid):
                    for readers in arguments.readers:
                        for kind in arguments.kinds:
                            if arguments.from_disk:
                                figures = measure_from_disk(
                                    root, pid, kind, readers, arguments.rounds, directory / "cache"
                                )
                            else:
                                figures = measure(root, pid, kind, readers, max(1, arguments.rounds // readers))
                            found.setdefault((checkout, readers, kind), []).append(figures)
    _show(checkouts, found)


def _show(checkouts: list[Path], found: dict[tuple[Path, int, str], list[Figures]]) -> None:
    medians = {key: _medians(values) for key, values in found.items()}
    for (checkout, readers, kind), figures in medians.items():
        total_us = figures.reader_us + figures.driver_us
        line = (
            f"{checkout.name}, {readers} readers, {kind}: {figures.files_per_s:,.0f} files/s; processor time of a file "
            f"{total_us:.1f} us: readers {figures.reader_us:.1f}, driver {figures.driver_us:.1f}"
        )
        if checkout == checkouts[-1] and len(checkouts) > 1:
            pairs = zip(found[checkouts[0], readers, kind], found[checkout, readers, kind], strict=True)
            ratios = sorted(ours.files_per_s / theirs.files_per_s for theirs, ours in pairs)
            theirs = medians[checkouts[0], readers, kind]
            line += (
                f"; files/s by {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
                f"processor time by {total_us / (theirs.reader_us + theirs.driver_us):.2f}"
            )
        print(line)


if __name__ == "__main__":
    main()
