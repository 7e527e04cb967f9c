"""How long the call that this thread works on may still take.

A call to the node plugin becomes a call to the daemon; the second must not outlive the first. The protocol between
them (``DataPlane``) knows no deadlines, so they travel beside it, in a context variable of the thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("hayloft_call_deadline", default=None)
"""On the clock of ``time.monotonic``; None: no limit."""


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """The body may take this long (None: as long as it likes), and not longer than an outer ``within`` allows."""
    outer = _deadline.get()
    inner = None if seconds is None else time.monotonic() + seconds
    both = [limit for limit in (outer, inner) if limit is not None]
    token = _deadline.set(min(both, default=None))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining_s(at_most: float) -> float:
    """Seconds left, never below 0 nor above ``at_most``."""
    deadline = _deadline.get()
    return at_most if deadline is None else max(0.0, min(at_most, deadline - time.monotonic()))
