"""Runs the cache daemon as a child, and starts it again at once when it dies.

Kubelet waits 10 s before it starts a container again, then 20, 40, up to 5 minutes; readers of served files wait as
long. The supervisor is the first process of the container. It has imported what the daemon needs, and forks it: that
takes milliseconds where a new Python takes most of a second, and the memory of what was imported is shared. It has one
thread and does nothing but wait for the end of its child.

A child that ends by itself before it has served has said why: a cache directory that cannot be used, a port in use.
Then the supervisor ends with the same exit code, for kubelet to show. When the supervisor dies, the kernel sends the
child SIGTERM; and whatever becomes of both, the lock of the cache directory is released by the end of the child alone,
so that no two daemons ever use one.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from csi_driver import telemetry
from csi_driver.wiring.control_group import end_processes_one_by_one, out_of_memory_kills
from csi_driver.wiring.shutdown import STOP_SIGNALS, Signals, end_with_parent, watching

logger = logging.getLogger(__name__)

_SERVING_VARIABLE = "HAYLOFT_SERVING_FD"
"""For the child: a descriptor to write to once it serves."""

_ENDS_VARIABLE = "HAYLOFT_EARLIER_ENDS"
"""For the child: why the ones before it ended, as JSON: counts by cause."""

_PASSED_ON = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_MOST_FAILURES = 8
"""Children in a row that a signal ended before they served. Then kubelet's back-off applies, and its count of restarts
shows the fault."""

_MEMORY_POLL_S = 60.0
"""Interval at which the kernel's count of processes killed for lack of memory is read: one that was killed earlier, as
a listing may be, is not taken for the cause of the daemon's end."""


def supervise(command: Callable[[], int], prepare: Callable[[], None]) -> int:
    """Runs ``command`` in a child process, anew whenever that dies, and returns the exit code of this process. What
    ``command`` raises is raised in the child. ``prepare`` is called before each child is made, to import what it will
    need; it must start no thread. To be called in the main thread, the only one. Stop signals are passed on, and end
    both."""
    end_processes_one_by_one()
    code = _Supervisor(prepare).run()
    return command() if code is None else code  # None: this is the child


def restart_delay_s(exit_code: int, *, served: bool, failures: int) -> float | None:
    """Seconds until the child is to be started again, whose exit code is negative for a signal; None: not any more.
    ``failures``: children in a row, this one included, that ended before they served."""
    if served:
        return 0.0
    if exit_code >= 0 or failures > _MOST_FAILURES:
        return None
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (failures - 1))


class _Supervisor:
    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._child_pid = 0
        self._serving_fd = -1
        self._ends: Counter[str] = Counter()
        self._memory_kills = 0

    def run(self) -> int | None:
        """The exit code; None in a child, which has the handlers of signals that were there before."""
        failures = 0
        with watching(*_PASSED_ON, signal.SIGCHLD) as signals:
            while self._start():
                started_s = time.monotonic()
                exit_code, stopped = self._wait(signals)
                served = self._has_served()
                if stopped:
                    return exit_code if exit_code >= 0 else 128 - exit_code
                failures = 0 if served else failures + 1
                delay_s = restart_delay_s(exit_code, served=served, failures=failures)
                if delay_s is None and exit_code >= 0:
                    return exit_code  # the child has said why
                self._note_end(exit_code, time.monotonic() - started_s, delay_s)
                if delay_s is None:
                    return 128 - exit_code
                if self._is_stopped_within(delay_s, signals):
                    return 0
        # The child: a signal that was sent since the fork ends it only now, as its handler was the supervisor's.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return None

    def _start(self) -> bool:
        """False in the child."""
        self._prepare()
        gc.freeze()  # or both collectors would copy the pages of what was imported
        self._memory_kills = out_of_memory_kills()
        parent_pid = os.getpid()
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        pid = os.fork()
        if not pid:
            end_with_parent(parent_pid)
            os.close(read_fd)
            os.environ[_SERVING_VARIABLE] = str(write_fd)
            os.environ[_ENDS_VARIABLE] = json.dumps(self._ends)
            return False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        os.close(write_fd)
        self._child_pid, self._serving_fd = pid, read_fd
        return True

    def _wait(self, signals: Signals) -> tuple[int, bool]:
        """The exit code of the child, and whether it had been asked to stop. Reaps other children too: as the first
        process of a container this one inherits orphans."""
        stopped = False
        while True:
            number = signals.wait(_MEMORY_POLL_S)
            if number is None:
                self._memory_kills = out_of_memory_kills()
            elif number != signal.SIGCHLD:
                stopped = stopped or number in STOP_SIGNALS
                os.kill(self._child_pid, number)  # not reaped yet, so the number is not that of another process
            exit_code = self._reap()
            if exit_code is not None:
                return exit_code, stopped

    def _reap(self) -> int | None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self._child_pid:
                    return os.waitstatus_to_exitcode(status)
                if not pid:
                    break
        return None

    def _has_served(self) -> bool:
        try:
            return bool(os.read(self._serving_fd, 1))
        except BlockingIOError:  # a process that the child has left behind has the other end
            return False
        finally:
            os.close(self._serving_fd)

    def _note_end(self, exit_code: int, uptime_s: float, delay_s: float | None) -> None:
        for_memory = exit_code == -signal.SIGKILL and out_of_memory_kills() > self._memory_kills
        cause = "OutOfMemory" if for_memory else cause_of(exit_code)
        self._ends[cause] += 1
        facts = telemetry.fields(
            cause=cause, uptime_s=f"{uptime_s:.1f}", child_pid=self._child_pid, restart_in_s=delay_s
        )
        if delay_s is None:
            logger.error("the cache daemon ended before it served, and is not started again here", extra=facts)
        else:
            logger.warning("the cache daemon ended unexpectedly and is started again", extra=facts)

    def _is_stopped_within(self, delay_s: float, signals: Signals) -> bool:
        until_s = time.monotonic() + delay_s
        while (left_s := until_s - time.monotonic()) > 0:
            if signals.wait(left_s) in STOP_SIGNALS:
                return True
        return False


def cause_of(exit_code: int) -> str:
    """Such as ``SIGKILL``, or ``exit code 1``."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"


# -- the child's side --


def report_serving(environment: Mapping[str, str]) -> None:
    """To be called once the daemon serves. Does nothing without a supervisor."""
    descriptor = environment.get(_SERVING_VARIABLE, "")
    if descriptor.isdigit():
        with suppress(OSError):
            os.write(int(descriptor), b"1")


def earlier_ends(environment: Mapping[str, str]) -> dict[str, int]:
    """How often an earlier daemon of this supervisor ended unexpectedly, by cause."""
    try:
        return {str(cause): int(count) for cause, count in json.loads(environment.get(_ENDS_VARIABLE, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
