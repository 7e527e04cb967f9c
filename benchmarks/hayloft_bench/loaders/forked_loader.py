"""A loader with worker processes that behaves like torch's DataLoader, for machines without torch.

Each worker has a pipe: sample numbers go in, the results of their reads come out. Batch ``n`` is read by worker
``n mod workers``, and the trainer takes batches in order, so one slow worker stalls the others once they are
``prefetch`` batches ahead, as with torch. A worker ends when its pipe is closed, however the trainer ended.
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
"""The request for the next batch of a worker's stream; the worker answers None at the end of the stream."""
END_TIMEOUT_S = 5.0
"""Then the worker is killed: one that is blocked in a read of a dead mount does not see the end of its pipe."""


class ForkedLoader:
    """The constructor forks the workers; ``close`` ends them."""

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
                # Python 3.12 warns of forks in a process with threads. The worker uses no other thread's state: it
                # has this thread alone and makes its own clients.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self._processes.append(process)
            theirs.close()

    def map(self, batches: Sequence[list[int]], prefetch: int) -> Iterator[Batch]:
        """Yields the batches in order; each worker reads ``prefetch`` of them ahead. Raises RuntimeError if a worker
        failed."""
        ahead = min(len(batches), prefetch * len(self._pipes))
        for number in range(ahead):
            self._request(number, batches[number])
        for number in range(len(batches)):
            batch = self._receive(number)
            if ahead < len(batches):
                self._request(ahead, batches[ahead])
                ahead += 1
            yield batch or []

    def stream(self, prefetch: int) -> Iterator[Batch]:
        """Yields the workers' own batches in turn until all streams have ended. Raises RuntimeError."""
        reading = list(range(len(self._pipes)))
        for worker in reading * prefetch:
            self._request(worker, _NEXT)
        while reading:
            for worker in list(reading):
                batch = self._receive(worker)
                if batch is None:
                    reading.remove(worker)
                    continue
                self._request(worker, _NEXT)
                yield batch

    def close(self) -> None:
        """Blocks until all workers have ended."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(END_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        self._processes.clear()

    def _request(self, number: int, request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # _receive raises the error of a dead worker
            self._pipes[number % len(self._pipes)].send(request)

    def _receive(self, number: int) -> Batch | None:
        try:
            answer = self._pipes[number % len(self._pipes)].recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("a worker of the loader has died") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a worker of the loader failed:\n{answer}")
        batch: Batch | None = answer
        return batch


def _work(dataset: Any, pipe: Connection, others: Sequence[Connection], worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C
    # The fork inherited the trainer's ends of the pipes. A pipe reads as ended only when every copy of its other end
    # is closed, so these copies must go, or no worker would see the end of its pipe.
    for other in others:
        other.close()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            dataset.open()
            batches: Iterator[Batch] | None = None
            while True:
                request = pipe.recv()
                if request is not _NEXT:
                    pipe.send([dataset[number] for number in request])
                    continue
                if batches is None:
                    batches = dataset.batches(worker, workers)
                pipe.send(next(batches, None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception:  # noqa: BLE001 - the trainer raises it
            pipe.send(traceback.format_exc())
