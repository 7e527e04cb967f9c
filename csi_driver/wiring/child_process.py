"""A child process that is restarted, with backoff, when it dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_driver import telemetry
from csi_driver.wiring.shutdown import PARENT_VARIABLE

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 15.0
_HEALTHY_S = 30.0
"""Uptime after which the backoff is reset."""


def restart_delay_s(deaths_in_a_row: int) -> float:
    """0.2 s after the first death, then twice as long each time, up to 15 s."""
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(max(0, deaths_in_a_row - 1), 20))


@dataclass(frozen=True, slots=True)
class Ended:
    """The unexpected end of a child. ``exit_code`` is negative for a signal."""

    name: str
    exit_code: int


class Child:
    """One process. The thread that calls ``start`` must live as long as the process: the kernel's "parent died" signal
    refers to that thread."""

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
        """None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """In a new session, so that Ctrl-C in a terminal reaches only the parent, which stops everything in order."""
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(  # noqa: S603  # this program, with arguments of our own
            self._command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._started_s = self._clock()
        self._start_at_s = None

    def poll(self) -> Ended | None:
        """Reaps a dead child, and restarts it after the backoff. Reports each death once. To be called often."""
        if self._process is not None:
            exit_code = self._process.poll()
            if exit_code is None:
                return None
            uptime_s = self._clock() - self._started_s
            self._deaths = 1 if uptime_s >= _HEALTHY_S else self._deaths + 1
            self._process = None
            self._start_at_s = self._clock() + restart_delay_s(self._deaths)
            return Ended(self.name, exit_code)
        if self._start_at_s is not None and self._clock() >= self._start_at_s:
            self.start()
            logger.info("restarted a child process", extra=telemetry.fields(child=self.name, child_pid=self.process_id))
        return None

    def next_poll_s(self) -> float | None:
        """Seconds until ``poll`` restarts the child; None: no restart is pending."""
        return None if self._start_at_s is None else max(0.0, self._start_at_s - self._clock())

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL after the time-out. Does nothing when the child does not run. It stays stopped."""
        process, self._process, self._start_at_s = self._process, None, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            facts = telemetry.fields(child=self.name, child_pid=process.pid, timeout_s=timeout_s)
            logger.warning("a child process did not end after SIGTERM and is killed", extra=facts)
            process.kill()
            process.wait()
