"""SIGINT and SIGTERM end the demonstration in order: the first one is raised once, and never inside a shield."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hayloft_bench.demo.errors import Stopped


class Stopping:
    """Turns the first SIGINT or SIGTERM into ``Stopped`` in the main thread and ignores the ones after it.

    Inside ``shield`` the signal is only noted and raised at its end. Starting a process and noting that it must be
    ended belong into one shield, else a signal between the two leaves the process behind.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None
        self._raised = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handles the two signals until the block ends. Outside of the main thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Holds the signal back until the outermost shield ends."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self._raise_pending()

    def stop_listening(self) -> None:
        """From here on signals are ignored: what follows is the cleaning up that they would ask for."""
        self._raised = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._pending is None:
            self._pending = number
        self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending is not None and self._depth == 0 and not self._raised:
            self._raised = True
            raise Stopped(self._pending)
