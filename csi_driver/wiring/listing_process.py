"""The process of one listing: what it may use, what it does, and how it reports."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import resource
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from csi_driver.model.errors import BudgetExceeded, HayloftError
from csi_driver.model.syscall_numbers import SCHED_SETATTR
from csi_driver.volumes.dataset_lister import PinRequest, SelectionRequest
from csi_driver.volumes.dataset_listing import list_dataset, pin_dataset, select_files
from csi_driver.wiring.core_files import keep_no_core_files
from csi_driver.wiring.listing_messages import Message, Receiver, request_from, send
from csi_driver.wiring.listing_spans import PAGES, PageMarks
from csi_driver.wiring.listing_store import open_listing_store
from csi_driver.wiring.process_name import name_this_process

_NICENESS = 5
"""Reads of mounted volumes come first where processors are scarce."""

_PROGRESS_S = 2.0
"""Calls that are repeated meanwhile say how far it is."""

_SLICE_NS = 100_000
"""The shortest that the kernel takes: a reader that wakes up waits so long for a processor, and not 3 ms."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_listing(connection: socket.socket, parent_pid: int) -> None:
    """Receives one request, lists, and sends the answer: ``facts``, or ``error`` with ``message``; before it any number
    of ``listed``, and of ``page`` if they are asked for. To be called in a new process that ends afterwards."""
    _become_a_listing(parent_pid)
    message = Receiver(connection).receive()
    if message is not None:
        send(connection, _answer(message, _Progress(connection, pages=PAGES in message)))


class _Progress:
    """Sends the number of objects that were listed so far, from time to time: ``listed``; for the trace: ``page``."""

    def __init__(self, connection: socket.socket, *, pages: bool) -> None:
        self._connection = connection
        self._marks = PageMarks() if pages else None
        self._due_s = time.monotonic() + _PROGRESS_S

    def __call__(self, listed: int) -> None:
        if self._marks is not None and self._marks.reached(listed):
            send(self._connection, {"page": listed})
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _PROGRESS_S
            send(self._connection, {"listed": listed})


def _answer(message: Message, progress: Callable[[int], None]) -> Message:
    try:
        request, target, limits = request_from(message)
        with _memory_limit(limits.memory_bytes):
            if isinstance(request, SelectionRequest):
                select_files(request, target)
                return {"done": True}
            open_store = partial(open_listing_store, limits=limits)
            if isinstance(request, PinRequest):
                return {"facts": dataclasses.asdict(pin_dataset(open_store, request, target))}
            facts = list_dataset(open_store, request, target, limits, progress)
        return {"facts": dataclasses.asdict(facts)}
    except HayloftError as error:
        return _error(type(error).__name__, str(error))
    except MemoryError:
        return _error(
            BudgetExceeded.__name__,
            "the listing needs more memory than it may have; name a longer prefix, or have the operator give it more",
        )
    except OSError as error:
        return {"errno": error.errno, "message": _strerror(error), "file": error.filename}
    except BaseException as error:  # noqa: BLE001  # the daemon reports it; obstore's panics are no Exceptions
        # Without the text of the error and the values of variables, which may be secret.
        frames = [f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in traceback.extract_tb(error.__traceback__)]
        return {"unexpected": type(error).__name__, "frames": frames}


def _strerror(error: OSError) -> str:
    """From the system's table, since ``strerror`` may be any text."""
    return os.strerror(error.errno) if error.errno is not None else type(error).__name__


def _error(class_name: str, message: str) -> Message:
    return {"error": class_name, "message": message}


def _become_a_listing(parent_pid: int) -> None:
    """Limits of this process that do not depend on the request."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:  # race: the parent died before the call, so no signal will follow
        os._exit(0)
    name_this_process("listing")
    _take_short_slices()
    keep_no_core_files()
    gc.set_threshold(50_000, 20, 100)  # as in the daemon (``cache_process.py``)


def _take_short_slices() -> None:
    """Priority and time slice of this process. Kernels before 6.12 know no slices, and take the priority alone."""
    number = SCHED_SETATTR.get(os.uname().machine)
    # struct sched_attr (linux/sched/types.h): size, policy, flags, nice, priority, runtime (the slice), and two more
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, _NICENESS, 0, _SLICE_NS, 0, 0)
    if number is None or ctypes.CDLL(None).syscall(number, 0, attributes, 0):
        os.nice(_NICENESS)


@contextmanager
def _memory_limit(memory_bytes: int) -> Iterator[None]:
    """Allocations of the body that exceed the limit raise MemoryError, in Python and in Arrow; in Rust they abort the
    process. Counts private writable memory beyond that of this moment."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit_bytes = data_pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)  # the answer needs memory too
