"""A loader of worker processes in the manner of torch's DataLoader, for machines without torch.

Each worker has a pipe: numbers of samples go in, what was read of them comes out. Batch ``n`` is read by worker
``n mod workers``, and the trainer takes them in order, so a slow worker holds up the others when they are far enough
ahead, exactly as with torch. A worker ends when its pipe is closed, however the trainer ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from hayloft_bench.loaders.samples import Batch

_NEXT = None
"""Asks a worker for the next batch of its stream; its answer is None at the end."""
END_TIMEOUT_S = 5.0
"""A worker that waits in a read of a mount that is gone does not see the end of its pipe."""


class ForkedLoader:
    """Forks when it is made; ``close`` ends the workers."""

    def __init__(self, dataset: Any, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for worker in range(workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            arguments = (dataset, theirs, list(self._pipes), worker, workers)
            process = context.Process(target=_work, args=arguments, daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of forks beside threads. The worker goes on with this thread alone, and makes its
                # clients itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self._processes.append(process)
            theirs.close()

    def map(self, batches: Sequence[list[int]], prefetch: int) -> Iterator[Batch]:
        """The batches, in order, each worker ``prefetch`` of them ahead. Raises RuntimeError where a worker failed."""
        ahead = min(len(batches), prefetch * len(self._pipes))
        for number in range(ahead):
            self._ask(number, batches[number])
        for number in range(len(batches)):
            batch = self._answer(number)
            if ahead < len(batches):
                self._ask(ahead, batches[ahead])
                ahead += 1
            yield batch or []

    def stream(self, prefetch: int) -> Iterator[Batch]:
        """The workers' own batches by turns until all of them are at their end. Raises RuntimeError."""
        reading = list(range(len(self._pipes)))
        for worker in reading * prefetch:
            self._ask(worker, _NEXT)
        while reading:
            for worker in list(reading):
                batch = self._answer(worker)
                if batch is None:
                    reading.remove(worker)
                    continue
                self._ask(worker, _NEXT)
                yield batch

    def close(self) -> None:
        """Ends the workers and waits for them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(END_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        self._processes.clear()

    def _ask(self, number: int, wanted: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # what went wrong is told where its answer is awaited
            self._pipes[number % len(self._pipes)].send(wanted)

    def _answer(self, number: int) -> Batch | None:
        try:
            answer = self._pipes[number % len(self._pipes)].recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("a worker of the loader has died") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a worker of the loader failed:\n{answer}")
        batch: Batch | None = answer
        return batch


def _work(dataset: Any, pipe: Connection, others: Sequence[Connection], worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's affair
    for other in others:
        other.close()  # else no worker would see the end of another's pipe
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            dataset.open()
            batches: Iterator[Batch] | None = None
            while True:
                wanted = pipe.recv()
                if wanted is not _NEXT:
                    pipe.send([dataset[number] for number in wanted])
                    continue
                if batches is None:
                    batches = dataset.batches(worker, workers)
                pipe.send(next(batches, None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception:  # noqa: BLE001 - told to the trainer, who raises it
            pipe.send(traceback.format_exc())
