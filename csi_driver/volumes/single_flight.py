"""Runs one piece of work for a volume at a time; concurrent callers with an equal request share its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from csi_driver.model.errors import Interrupted, OperationPending
from csi_driver.rpc import callers
from csi_driver.rpc.callers import SharedCallers, Waiting

T = TypeVar("T")


@dataclass(slots=True)
class _SharedCall(Generic[T]):
    request: object = field(repr=False)
    result: Future[T] = field(default_factory=Future)
    callers: SharedCallers = field(default_factory=SharedCallers)


class SingleFlight(Generic[T]):
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _in_flight; not held during the work
        self._in_flight: dict[str, _SharedCall[T]] = {}

    def run(self, volume_id: str, request: object, work: Callable[[], T]) -> T:
        """Does the work, or waits for an equal call in flight and returns its result or raises its error.

        The work sees a caller that is gone once all callers are gone. Requests are compared by equality; they may
        contain secrets and are never printed. Raises OperationPending while a call with another request for the volume
        is in flight, and Interrupted when the caller is gone.
        """
        caller = callers.current()
        while True:
            with self._lock:
                call = self._in_flight.get(volume_id)
                is_first = call is None
                if call is None:
                    call = self._in_flight[volume_id] = _SharedCall(request)
                if call.request != request:
                    raise OperationPending(f"volume {volume_id!r}: another call is in flight; retry in a moment")
                call.callers.members.append(caller)
            if is_first:
                return self._work(volume_id, call, work)
            try:
                return _result(call, caller)
            except Interrupted:
                # Race: this caller came while the work ended for lack of callers. It begins anew.
                callers.require(caller)

    def _work(self, volume_id: str, call: _SharedCall[T], work: Callable[[], T]) -> T:
        # The entry is removed before the result is set: a caller that retries upon it starts new work.
        try:
            with callers.working_for(call.callers):
                result = work()
        except BaseException as error:
            self._remove(volume_id)
            call.result.set_exception(error)
            raise
        self._remove(volume_id)
        call.result.set_result(result)
        return result

    def _remove(self, volume_id: str) -> None:
        with self._lock:
            del self._in_flight[volume_id]


def _result(call: _SharedCall[T], caller: Waiting) -> T:
    """Waits for the work of another thread. Raises its error, or Interrupted when the caller is gone."""
    while True:
        try:
            return call.result.result(callers.POLL_S)
        except TimeoutError:
            if call.result.done():  # the error of the work itself
                return call.result.result()
            callers.require(caller)
