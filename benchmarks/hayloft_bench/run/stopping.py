"""SIGINT and SIGTERM end a run in order: the first one is raised once, and never inside a shield."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hayloft_bench.errors import Stopped


class Stopping:
    """Turns the first SIGINT or SIGTERM into ``Stopped`` in the main thread and ignores the ones after it.

    Inside ``shield`` the signal is only recorded, and raised at the end of the shield. Starting a process and
    registering its end belong into one shield: a signal between the two would leave the process running.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None
        self._raised = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handles the two signals until the block ends. Does nothing outside the main thread, where Python allows no
        handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Delays the signal until the outermost shield ends. An error that leaves the shield is not replaced by it."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self._raise_pending()

    def stop_listening(self) -> None:
        """Ignores signals from here on: the clean-up that they would request is what follows."""
        self._raised = True

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._pending is None:
            self._pending = number
        self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending is not None and self._depth == 0 and not self._raised:
            self._raised = True
            raise Stopped(self._pending)
