"""The deadline of the call that this thread works on.

A call to the node plugin becomes a call to the daemon; the second must not outlive the first. The protocol between
them (``DataPlane``) has no deadlines, so they are passed in a context variable of the thread.
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
    """Sets the deadline of the body (None: no limit of its own); that of an outer ``within`` holds as well."""
    outer = _deadline.get()
    inner = None if seconds is None else time.monotonic() + seconds
    limits = [limit for limit in (outer, inner) if limit is not None]
    token = _deadline.set(min(limits, default=None))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining_s(at_most: float) -> float:
    """Seconds until the deadline, from 0 to ``at_most``."""
    deadline = _deadline.get()
    return at_most if deadline is None else max(0.0, min(at_most, deadline - time.monotonic()))
