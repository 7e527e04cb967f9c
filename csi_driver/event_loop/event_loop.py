"""One thread that polls many descriptors and runs, one after the other, the steps that are due when they are ready.

A step takes tens of microseconds, and only one thread at a time has the interpreter: with a thread for each descriptor,
switching between them costs more than the work. Steps that may block belong on other threads. If one is stuck all the
same, in a write to a disk that hangs, a new thread takes over the loop, and the stuck one ends after its step.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from csi_driver.event_loop.once import Once

logger = logging.getLogger(__name__)

STUCK_S = 0.25
"""A step that takes longer is stuck, and another thread takes over the loop."""

TICK_S = 1.0
"""How often ``LoopWork.tick`` is called while anything is in flight."""

_CLOSE_TIMEOUT_S = 3.0
_JOIN_POLL_S = 0.05
_BACKOFF_S = 0.1
"""After an unexpected error that may repeat at once: mounts are served meanwhile, and the log stays readable."""

Step = Callable[[], None]
"""Work that may get stuck. While it runs another thread may take over the loop, so it touches no state of the
``LoopWork`` that needs one thread at a time."""


class LoopWork:
    """Work that the loop's thread does besides watching descriptors; here it is none.

    All methods are called by one thread at a time, which is another one after a step was stuck.
    """

    def register(self, poll: select.poll) -> None:
        """Called on each new thread: registers the descriptors of everything in flight."""

    def start_pending(self, poll: select.poll) -> None:
        """Starts what can be started now. Called before each poll and after each event."""

    @property
    def busy(self) -> int:
        """How much is in flight. May be read from any thread."""
        return 0

    def poll_timeout_ms(self) -> float | None:
        """How long to wait for an event; None: without limit."""
        return None

    def on_ready(self, descriptor: int, poll: select.poll) -> Step | None:
        """A registered descriptor is ready. Returns a step to run at once."""
        return None

    def next_deferred(self) -> Step | None:
        """A step to run while no event is pending."""
        return None

    def tick(self, poll: select.poll) -> None:
        """Checks timeouts."""

    def abort(self) -> None:
        """The loop is closing: ends everything in flight."""


class EventLoop:
    """``watch``, ``unwatch``, ``wake`` and ``close`` may be called from any thread.

    ``_lock`` guards ``_thread``, the one that runs the loop now. Nothing that blocks is done under it. ``_wake_fd``
    needs none: it is open for as long as any thread can call a method. ``_current_step`` is the step that runs now, or
    ran last: it is claimed when it has ended or, if it was stuck, when another thread has taken over the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._work = LoopWork()
        self._clock = clock
        self._callbacks: dict[int, Step] = {}
        """Of the watched descriptors."""
        self._due: deque[int] = deque()
        """Watched descriptors whose callback is called without waiting for them; append and popleft are atomic."""
        self._watched = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake_fd).atexit = False
        self._polling = False
        self._lock = threading.Lock()
        self._current_step = Once()
        self._current_step.claim()
        self._monitor_is_timing = False
        """True while the monitor looks at the steps by itself; else ``_step_began`` has to wake it."""
        self._step_began = threading.Event()
        self._closing, self._closed = threading.Event(), threading.Event()

    def attach(self, work: LoopWork) -> None:
        """Gives the loop its work. Before ``start``."""
        self._work = work

    def start(self) -> None:
        """Starts the thread, and one that monitors its steps."""
        self._start_thread()
        threading.Thread(target=self._monitor, name="loop-watch", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether the attached work has anything in flight."""
        return bool(self._work.busy)

    def watch(self, descriptor: int, ready: Step, *, at_once: bool = False) -> None:
        """Calls ``ready``, on the loop's thread, whenever the descriptor is readable or broken, and with ``at_once``
        also as soon as possible. It must not block in a read: another thread may have read what was there."""
        self._callbacks[descriptor] = ready  # first: the loop's thread may find the descriptor ready at once
        self._watched.register(descriptor, select.EPOLLIN)
        if at_once:
            self._due.append(descriptor)
            self._interrupt_poll()

    def unwatch(self, descriptor: int) -> None:
        """Ends ``watch``; a descriptor that is not watched is success. Returns at once: a call may still be running."""
        # The pop is atomic and decides which of two calls unregisters: after that the number may be reused.
        if self._callbacks.pop(descriptor, None) is not None:
            self._watched.unregister(descriptor)

    def wake(self) -> None:
        """The attached work has something to start."""
        if self._polling:  # read without the lock: see _handle_events() for the order that makes it safe
            self._interrupt_poll()

    def close(self) -> None:
        """Aborts what is in flight, runs the deferred steps and ends the thread. Returns after 3 s at the latest."""
        self._closing.set()
        self._interrupt_poll()
        until = time.monotonic() + _CLOSE_TIMEOUT_S
        # Joined in short waits: a thread that is stuck is replaced meanwhile, and then the new one is to be joined.
        while self._is_running() and time.monotonic() < until:
            self._thread.join(_JOIN_POLL_S)
        self._closed.set()
        self._step_began.set()

    def _interrupt_poll(self) -> None:
        self._polling = False
        os.eventfd_write(self._wake_fd, 1)

    def _is_running(self) -> bool:
        with self._lock:  # the monitor replaces a stuck thread under the lock, so none is about to be replaced here
            return self._thread.is_alive()

    # -- the loop's thread --

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _replace_thread(self) -> bool:
        """False if the process may have no more threads."""
        try:
            self._start_thread()
        except RuntimeError:
            logger.error("no thread can be started in the place of one that is stuck; tried again (pids.max, memory)")
            return False
        return True

    def _run(self) -> None:
        if not self._closing.is_set() and not self._run_until_closing():
            return
        self._work.abort()
        while (step := self._work.next_deferred()) is not None and self._run_step(step):
            pass

    def _run_until_closing(self) -> bool:
        """False if another thread has taken over."""
        work = self._work
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        poll.register(self._watched, select.POLLIN)
        work.register(poll)
        next_tick_s = self._clock() + TICK_S
        while not self._closing.is_set():
            try:
                if not self._handle_events(poll) or not self._run_step(work.next_deferred()):
                    return False
                if self._clock() >= next_tick_s:
                    next_tick_s = self._clock() + TICK_S
                    work.tick(poll)
            except BaseException:  # whatever it is, all mounts depend on this thread
                logger.exception("unexpected error in the event loop; it continues")
                self._closing.wait(_BACKOFF_S)
        return True

    def _handle_events(self, poll: select.poll) -> bool:
        """Polls once. False if another thread has taken over."""
        work, watched = self._work, self._watched.fileno()
        work.start_pending(poll)
        # In this order: what is submitted from here on interrupts the poll, and poll_timeout_ms() sees what was
        # submitted before. The other way round, a submission between the two would wait for the next event.
        self._polling = True
        events = poll.poll(work.poll_timeout_ms())
        self._polling = False
        for descriptor, _ in events:
            if self._closing.is_set():
                break
            if descriptor == self._wake_fd:
                os.eventfd_read(descriptor)
            elif descriptor != watched and not self._run_step(work.on_ready(descriptor, poll)):
                return False
            if self._callbacks and not self._call_ready_watchers():
                return False
            work.start_pending(poll)
        return True

    def _call_ready_watchers(self) -> bool:
        """False if another thread has taken over."""
        while self._due:
            if not self._run_step(self._callbacks.get(self._due.popleft())):
                return False
        return all(self._run_step(self._callbacks.get(descriptor)) for descriptor, _ in self._watched.poll(0))

    # -- steps that may get stuck --

    def _run_step(self, step: Step | None) -> bool:
        """False if another thread has taken over the loop: the caller returns and touches nothing more."""
        if step is None:
            return True
        current = self._current_step = Once()
        if not self._monitor_is_timing:
            self._step_began.set()
        try:
            step()
        except BaseException:  # whatever it is, all mounts depend on this thread
            logger.exception("unexpected error in a step of the event loop; the loop continues")
        return current.claim()

    def _monitor(self) -> None:
        """Replaces the loop's thread when a step is stuck. Sleeps while no steps run."""
        while not self._closed.is_set():
            # Cleared before the look at the step: one that begins between the two sets the event again.
            self._step_began.clear()
            self._monitor_is_timing = False
            if self._current_step.claimed:
                self._step_began.wait()
            self._monitor_is_timing = True
            step = self._current_step
            closed = self._closed.wait(STUCK_S)
            with self._lock:
                # The claim decides the race with a step that ends just now: the loser leaves the loop to the winner.
                if closed or step is not self._current_step or not step.claim():
                    continue
                while not self._replace_thread() and not self._closing.wait(STUCK_S):
                    pass
