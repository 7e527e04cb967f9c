"""A thread that waits for many descriptors and does what comes of them, one thing after the other.

What it does for one takes tens of microseconds, and the interpreter belongs to one thread at a time: with a thread for
each descriptor, handing it around costs more than the work. Whatever may take long is done elsewhere. A step that is
stuck all the same, in a write to a disk that hangs, does not stop the others: another thread goes on in the place of
the one that is stuck.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Protocol

from csi_driver.event_loop.once import Once

logger = logging.getLogger(__name__)

STUCK_S = 0.25
"""A step that takes so long is stuck, and another thread takes over everything else."""

LOOK_S = 1.0
"""How often ``LoopWork.look`` is called while something is waited for."""
_STOP_S, _LOOK_AGAIN_S = 3.0, 0.05
_PAUSE_S = 0.1
"""After a failure that may come again at once: mounts are served between them, and the log stays readable."""

Step = Callable[[], None]
"""Something that may get stuck, and that touches nothing of the work then which another thread would need."""


class LoopWork(Protocol):
    """What the thread does of its own. All methods are called by one thread at a time."""

    def resume(self, poll: select.poll) -> None:
        """On a new thread: registers all that is waited for."""

    def begin(self, poll: select.poll) -> None:
        """Begins what can be begun. Called before each wait and after each thing that was done."""

    def wait_ms(self) -> float | None:
        """How long nothing may come until something is to be done; None: for ever."""

    def take(self, descriptor: int, poll: select.poll) -> Step | None:
        """A descriptor that was registered is ready. Returns what is to be done at once."""

    def next_left(self) -> Step | None:
        """What is to be done when nothing else has come."""

    def look(self, poll: select.poll) -> None:
        """Time has passed."""

    def give_up(self) -> None:
        """The end: nothing is waited for any more."""


class EventLoop:
    """See the module. ``watch``, ``unwatch``, ``awake`` and ``close`` may be called from any thread.

    ``_lock`` guards ``_bell``, so that nobody rings one that is gone, and ``_thread``, the one that does all this now.
    ``_turn`` is the step that runs now, or ran last.
    """

    def __init__(self, work: LoopWork, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts nothing yet."""
        self._work = work
        self._clock = clock
        self._ready: dict[int, Step] = {}
        """By descriptor, of those that are watched for others."""
        self._watched = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sleeping = False
        self._lock = threading.Lock()
        self._turn = Once()
        self._turn.take()
        self._looked_at = False
        """Whether somebody looks soon whether a step is stuck."""
        self._step_began = threading.Event()
        self._closing, self._closed = threading.Event(), threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        self._go_on()
        threading.Thread(target=self._look_after, name="loop-watch", daemon=True).start()

    def watch(self, descriptor: int, ready: Step) -> None:
        """Calls this, on the thread, whenever the descriptor can be read, or is broken. It must not block in a read:
        another thread may have taken over what was there."""
        self._ready[descriptor] = ready
        self._watched.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Ends that. Returns at once: a call may be under way. One that is not watched is success."""
        if self._ready.pop(descriptor, None) is not None:
            self._watched.unregister(descriptor)

    def awake(self) -> None:
        """There is something to begin."""
        if self._sleeping:
            self._ring()

    @property
    def closing(self) -> bool:
        """True from the beginning of ``close``."""
        return self._closing.is_set()

    def close(self) -> None:
        """Ends the thread, which does before what is left, as far as that takes no more than 3 s."""
        self._closing.set()
        self._ring()
        until = time.monotonic() + _STOP_S
        while self._runs() and time.monotonic() < until:
            self._thread.join(_LOOK_AGAIN_S)
        self._closed.set()
        self._step_began.set()
        with self._lock:
            os.close(self._bell)
            self._bell = -1

    def _ring(self) -> None:
        self._sleeping = False
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _runs(self) -> bool:
        with self._lock:  # nobody is about to go on in the place of the one that is looked at
            return self._thread.is_alive()

    # -- the thread --

    def _go_on(self) -> None:
        """In a new thread: the first, or one in place of one that is stuck."""
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if not self._closing.is_set() and not self._do_all():
            return
        self._work.give_up()
        while (step := self._work.next_left()) is not None and self._do(step):
            pass

    def _do_all(self) -> bool:
        """Until the end. False if another thread has gone on meanwhile."""
        work = self._work
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._watched, select.POLLIN)
        work.resume(poll)
        look_s = self._clock() + LOOK_S
        while not self._closing.is_set():
            try:
                if not self._do_what_came(poll) or not self._do(work.next_left()):
                    return False
                if self._clock() >= look_s:
                    look_s = self._clock() + LOOK_S
                    work.look(poll)
            except Exception:
                logger.exception("the loop failed in a way nobody foresaw")
                self._closing.wait(_PAUSE_S)
        return True

    def _do_what_came(self, poll: select.poll) -> bool:
        """Waits, if there is nothing to do. False if another thread has gone on meanwhile."""
        work, watched = self._work, self._watched.fileno()
        work.begin(poll)
        for descriptor, _ in self._events(poll):
            if self._closing.is_set():
                break
            if descriptor == self._bell:
                os.eventfd_read(descriptor)
            elif descriptor != watched and not self._do(work.take(descriptor, poll)):
                return False
            if self._ready and not self._tell():
                return False
            work.begin(poll)
        return True

    def _events(self, poll: select.poll) -> list[tuple[int, int]]:
        # Whoever has something after this rings; whoever had it before is seen by the work.
        self._sleeping = True
        events = poll.poll(self._work.wait_ms())
        self._sleeping = False
        return events

    def _tell(self) -> bool:
        """Calls for what is watched and ready. False if another thread has gone on meanwhile."""
        return all(self._do(self._ready.get(descriptor)) for descriptor, _ in self._watched.poll(0))

    # -- steps that may get stuck --

    def _do(self, step: Step | None) -> bool:
        """False if another thread has gone on meanwhile."""
        if step is None:
            return True
        turn = self._turn = Once()
        if not self._looked_at:
            self._step_began.set()
        try:
            step()
        except Exception:
            logger.exception("a step failed in a way nobody foresaw")
        return turn.take()

    def _look_after(self) -> None:
        """Has another thread go on when one is stuck. Looks only while there are steps."""
        while not self._closed.is_set():
            self._step_began.clear()
            self._looked_at = False
            if not self._turn.waiting:
                self._step_began.wait()
            self._looked_at = True
            turn = self._turn
            closed = self._closed.wait(STUCK_S)
            with self._lock:
                if not closed and turn is self._turn and turn.take():
                    self._go_on()
