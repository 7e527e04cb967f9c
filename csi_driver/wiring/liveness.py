"""Whether a process is alive and able to work, for the probes of kubelet.

A dead-locked process answers a probe that only asks whether it runs. So each part that everything else needs is used
from time to time: the event loop calls a callback, each lock is taken once. A part that does not return for
``LIMIT_S`` never will, and a restart helps. Nothing here asks a store, a disk or the kernel's mounts: those may be away
for hours, and a restart would bring none of them back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum

from csi_driver import telemetry
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.model.errors import DaemonUnavailable, ProcessStuck

logger = logging.getLogger(__name__)

LIMIT_S = 60.0
"""A step of the event loop that hangs in a disk is replaced after 0.25 s, and no lock is held across disk or network. A
machine that is so overloaded that a thread does not run for a minute is not helped by a restart, but hurt little."""

PERIOD_S = 2.0
_JOIN_S = 1.0


class Liveness:
    """Runs each check on a thread of its own, every ``PERIOD_S``. May be used from any thread: of each part one value
    is replaced as a whole."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], object]],
        *,
        limit_s: float = LIMIT_S,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``checks``, by the name of the part: each returns if the part moves, and else blocks. What it raises shows
        that the part moves, and is logged."""
        self._limit_s, self._period_s, self._clock = limit_s, period_s, clock
        self._ending = threading.Event()
        self._began_s: dict[str, float | None] = dict.fromkeys(checks)
        """When the check that runs now was started; None between two."""
        self._threads = [
            threading.Thread(target=self._run, args=(name, check), name=f"alive-{name}"[:15], daemon=True)
            for name, check in checks.items()
        ]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Checks during the body."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in self._threads:
                thread.join(_JOIN_S)  # one that is stuck is left behind

    def require(self) -> None:
        """Raises ProcessStuck."""
        now = self._clock()
        for name, began_s in self._began_s.items():
            if began_s is not None and now - began_s > self._limit_s:
                raise ProcessStuck(f"{name}: has not moved for {now - began_s:.0f} s; the process has to be restarted")

    def _run(self, name: str, check: Callable[[], object]) -> None:
        while not self._ending.is_set():
            self._began_s[name] = self._clock()
            try:
                check()
            except Exception:
                logger.exception("unexpected error in a check of liveness", extra=telemetry.fields(part=name))
            self._began_s[name] = None
            self._ending.wait(self._period_s)


class LoopBeat:
    """A check of an event loop: has it call a callback, and waits for that. Used by one thread."""

    def __init__(self, event_loop: EventLoop) -> None:
        self._event_loop = event_loop
        self._called = threading.Event()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        event_loop.watch(self._fd, self._on_ready)

    def __call__(self) -> None:
        self._called.clear()
        os.eventfd_write(self._fd, 1)
        self._called.wait()

    def close(self) -> None:
        """Before the loop is closed."""
        self._event_loop.unwatch(self._fd)
        self._called.set()
        os.close(self._fd)

    def _on_ready(self) -> None:
        with suppress(BlockingIOError, OSError):  # read already, or closed
            os.eventfd_read(self._fd)
        self._called.set()


class Stage(Enum):
    """Of a daemon."""

    LOADING = "it is loading, and adopts the mounts of an earlier daemon"
    STANDBY = "it waits for the end of another daemon"
    SERVING = "it serves"


class DaemonHealth:
    """Liveness and readiness of a daemon. ``stage`` is set by one thread, and read by any."""

    def __init__(self) -> None:
        self.stage = Stage.LOADING
        self._liveness: Liveness | None = None

    @contextmanager
    def watching(self, event_loop: EventLoop, probe: Callable[[], object]) -> Iterator[None]:
        """Checks the loop and, with ``probe``, the locks of the data plane during the body."""
        beat = LoopBeat(event_loop)
        try:
            self._liveness = Liveness({"event loop": beat, "data plane": probe})
            with self._liveness.watching():
                yield
        finally:
            self._liveness = None
            beat.close()

    def require_alive(self) -> None:
        """Raises ProcessStuck. While the daemon is loading it is alive: crash recovery may take minutes."""
        liveness = self._liveness
        if liveness is not None:
            liveness.require()

    def require_ready(self) -> None:
        """Raises ProcessStuck, and DaemonUnavailable while mounts cannot be served. In standby it is as ready as one
        can be beside another daemon, which is ended only when this one is ready."""
        self.require_alive()
        if self.stage is Stage.LOADING:
            raise DaemonUnavailable(f"the cache daemon is not ready: {self.stage.value}")
