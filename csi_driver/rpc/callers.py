"""Whether a caller still waits for the answer of the call that this thread works on.

Work that takes long polls it and ends early: a client that was killed, or a pod that was deleted, must occupy neither a
thread nor a listing. As the deadline (``deadlines.py``), it is passed in a context variable of the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from csi_driver.model.errors import Interrupted

POLL_S = 0.5
"""Interval at which waiting work polls its caller. Each poll takes the interpreter from reads for 0.1 ms, and a tenant
may have 32 calls waiting, each at two or three places: at 0.1 s that would be a twentieth of the time."""


class Waiting(Protocol):
    """The caller of a call, or all callers of shared work."""

    @property
    def gone(self) -> bool:
        """Nothing waits for the answer any more."""

    @property
    def timed_out(self) -> bool:
        """The call ended at its deadline. Kubelet and external-provisioner repeat such a call; they do not repeat one
        that they cancelled."""


@dataclass(slots=True)
class Caller:
    """Of one call. Written by the server's thread, read by the one that works on the call."""

    gone: bool = False
    timed_out: bool = False
    repeats: bool = False
    """The call is one that its caller repeats from time to time: its success is not worth a line of the log."""


@dataclass(slots=True)
class SharedCallers:
    """All callers of one piece of work. It ends with the last of them."""

    members: list[Waiting] = field(default_factory=list)
    """Append-only, so no lock is needed."""

    @property
    def gone(self) -> bool:
        return all(member.gone for member in self.members)

    @property
    def timed_out(self) -> bool:
        return any(member.timed_out for member in self.members)


_current: ContextVar[Waiting | None] = ContextVar("hayloft_caller", default=None)


@contextmanager
def working_for(caller: Waiting) -> Iterator[None]:
    """Sets the caller of the body."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Waiting:
    """The caller that this thread works for. Outside of a call one that never leaves."""
    return _current.get() or Caller()


def note_repeat() -> None:
    """The call that this thread works on is a repetition."""
    caller = _current.get()
    if isinstance(caller, Caller):
        caller.repeats = True


def require(caller: Waiting) -> None:
    """Raises Interrupted when the caller is gone; no one sees the error but the log."""
    if caller.gone:
        raise Interrupted("the caller does not wait any more; the work was ended")
