"""Records the opens of training-like readers: run it as ``python -m hayloft_bench.micro.record_opens``. It writes the
traces into ``hayloft_bench/micro/traces``.

The readers are real: worker processes that take batches from a queue, read ahead of a slower trainer, and open real
files. An audit hook of Python reports every open; each process appends its opens to one log, so the order of the log is
the order of the opens. The files are sparse and few bytes of each are read: only the order of the opens and the sizes
matter.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from hayloft_bench.micro.eviction_traces import Trace, save

WORKERS = 4
BATCH = 32
AHEAD_BATCHES = 2 * WORKERS
COMPUTE_S = 0.001


def record(name: str, sizes_bytes: Sequence[Sequence[int]], read: Callable[[Path, Callable[[], None]], None]) -> Trace:
    """The trace of ``read``, which gets the directory of the datasets and a function to call after each epoch."""
    trace = Trace(name)
    with tempfile.TemporaryDirectory(prefix="record-opens-", dir="/var/tmp") as temporary:
        root, log = Path(temporary) / "data", Path(temporary) / "log"
        for dataset, sizes in enumerate(sizes_bytes):
            (root / str(dataset)).mkdir(parents=True)
            for number, size_bytes in enumerate(sizes):
                with (root / str(dataset) / str(number)).open("wb") as file:
                    file.truncate(size_bytes)
                trace.sizes_bytes[dataset, number] = size_bytes
        reader = multiprocessing.get_context("spawn").Process(target=_record, args=(root, log, read))
        reader.start()
        reader.join()
        assert reader.exitcode == 0
        trace.epochs = _epochs(log)
    return trace


def _record(root: Path, log: Path, read: Callable[[Path, Callable[[], None]], None]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    prefix = os.fspath(root) + "/"

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(prefix):
            os.write(descriptor, arguments[0].removeprefix(prefix).encode() + b"\n")

    sys.addaudithook(audit)
    read(root, lambda: _end_epoch(descriptor))


def _end_epoch(descriptor: int) -> None:
    os.write(descriptor, b"epoch\n")


def _epochs(log: Path) -> list[list[tuple[int, int]]]:
    epochs: list[list[tuple[int, int]]] = [[]]
    for line in log.read_text().splitlines():
        if line == "epoch":
            epochs.append([])
        else:
            dataset, number = line.split("/")
            epochs[-1].append((int(dataset), int(number)))
    return epochs[:-1]


def load_batches(root: Path, batches: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Like a data loader: workers read batches ahead of a trainer that takes them one by one."""
    context = multiprocessing.get_context("fork")
    requests: Queue[Sequence[tuple[int, int]] | None] = context.Queue()
    ready: Queue[int] = context.Queue()
    workers = [context.Process(target=_work, args=(root, requests, ready)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    remaining = iter(batches)
    for batch in [batch for _, batch in zip(range(AHEAD_BATCHES), remaining, strict=False)]:
        requests.put(batch)
    for _ in batches:
        ready.get()
        time.sleep(COMPUTE_S)
        requests.put(next(remaining, None))
    for _ in workers:
        requests.put(None)
    for worker in workers:
        worker.join()


def _work(root: Path, requests: Queue[Sequence[tuple[int, int]] | None], ready: Queue[int]) -> None:
    while (batch := requests.get()) is not None:
        for dataset, number in batch:
            with open(f"{root}/{dataset}/{number}", "rb") as file:
                file.read(4096)
        ready.put(len(batch))


def batches_of(dataset: int, count: int, draw: random.Random | None) -> list[list[tuple[int, int]]]:
    """All files of a dataset once, in order or shuffled."""
    order = list(range(count))
    if draw is not None:
        draw.shuffle(order)
    return [[(dataset, number) for number in order[at : at + BATCH]] for at in range(0, count, BATCH)]


def image_sizes(count: int, seed: int) -> list[int]:
    """About 110 kB with a long tail, as JPEGs have."""
    draw = random.Random(seed)
    return [int(draw.lognormvariate(11.5, 0.45)) for _ in range(count)]


def _shuffled(root: Path, epoch_ends: Callable[[], None]) -> None:
    draw = random.Random(1)
    for _ in range(5):
        load_batches(root, batches_of(0, 3000, draw))
        epoch_ends()


def _shards(root: Path, epoch_ends: Callable[[], None]) -> None:
    for _ in range(5):
        load_batches(root, [[file] for batch in batches_of(0, 400, None) for file in batch])
        epoch_ends()


def _train_and_validate(root: Path, epoch_ends: Callable[[], None]) -> None:
    draw = random.Random(2)
    for _ in range(5):
        load_batches(root, batches_of(0, 3000, draw))
        load_batches(root, batches_of(1, 300, None))
        epoch_ends()


def _move_on(root: Path, epoch_ends: Callable[[], None]) -> None:
    draw = random.Random(3)
    for dataset in (0, 0, 0, 1, 1, 1, 1):
        load_batches(root, batches_of(dataset, 1500, draw))
        epoch_ends()


def main() -> None:
    shards = [random.Random(4).randint(90, 130) << 20 for _ in range(400)]
    for trace in (
        record("shuffled-images", [image_sizes(3000, 1)], _shuffled),
        record("sequential-shards", [shards], _shards),
        record("train-and-validate", [image_sizes(3000, 2), image_sizes(300, 3)], _train_and_validate),
        record("moving-on", [image_sizes(1500, 4), image_sizes(1500, 5)], _move_on),
    ):
        path = save(trace)
        print(f"{path.name}: {sum(map(len, trace.epochs)):,} opens, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
