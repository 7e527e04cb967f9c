"""Child processes that are started again when they die."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_driver import telemetry
from csi_driver.wiring.lifetime import PARENT_VARIABLE

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 15.0
_HEALTHY_S = 30.0
"""A child that has run for so long was well; its next death is a first one."""


def restart_delay_s(deaths_in_a_row: int) -> float:
    """0.2 s after the first death, then twice as long each time, up to 15 s."""
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(max(0, deaths_in_a_row - 1), 20))


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that was not asked to stop, and did. ``exit_code`` is negative for a signal."""

    name: str
    exit_code: int


class Child:
    """One process, started by the thread that calls ``start``, which must live as long as the process shall: the
    kernel's word "parent died" means that thread."""

    def __init__(self, name: str, command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._command = tuple(command)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._deaths = 0
        self._start_at_s: float | None = None

    @property
    def process_id(self) -> int | None:
        """While it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """A session of its own, so that Ctrl-C in a terminal reaches only the parent, which ends things in order."""
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(  # noqa: S603  # this program, with arguments of our own
            self._command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._started_s = self._clock()
        self._start_at_s = None

    def look_after(self) -> Ended | None:
        """Reaps a dead child, and starts it again when it is time. Tells of a death once. To be called often."""
        if self._process is not None:
            exit_code = self._process.poll()
            if exit_code is None:
                return None
            return self._mourn(exit_code)
        if self._start_at_s is not None and self._clock() >= self._start_at_s:
            self.start()
            logger.info("started again", extra=telemetry.fields(child=self.name, child_pid=self.process_id))
        return None

    def next_look_s(self) -> float | None:
        """How long until ``look_after`` has something to do by itself; None: not before a child dies."""
        return None if self._start_at_s is None else max(0.0, self._start_at_s - self._clock())

    def _mourn(self, exit_code: int) -> Ended:
        lived_s = self._clock() - self._started_s
        self._deaths = 1 if lived_s >= _HEALTHY_S else self._deaths + 1
        delay_s = restart_delay_s(self._deaths)
        self._process = None
        self._start_at_s = self._clock() + delay_s
        return Ended(self.name, exit_code)

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL when it takes longer. Harmless when it does not run; it stays stopped."""
        process, self._process, self._start_at_s = self._process, None, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("a child process does not end and is killed", extra=telemetry.fields(child=self.name))
            process.kill()
            process.wait()
