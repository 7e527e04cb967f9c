"""Runs one piece of work for a volume at a time; concurrent callers with an equal request share its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from csi_driver.model.errors import OperationPending

T = TypeVar("T")


@dataclass(slots=True)
class _SharedCall(Generic[T]):
    request: object = field(repr=False)
    result: Future[T]


class SingleFlight(Generic[T]):
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _in_flight; not held during the work
        self._in_flight: dict[str, _SharedCall[T]] = {}

    def run(self, volume_id: str, request: object, work: Callable[[], T]) -> T:
        """Does the work, or waits for an equal call in flight and returns its result or raises its error.

        Requests are compared by equality; they may contain secrets and are never printed. Raises OperationPending while
        a call with another request for the volume is in flight.
        """
        with self._lock:
            call = self._in_flight.get(volume_id)
            is_first = call is None
            if call is None:
                call = self._in_flight[volume_id] = _SharedCall(request, Future())
        if not is_first:
            if call.request != request:
                raise OperationPending(f"volume {volume_id!r}: another call is in flight; retry in a moment")
            return call.result.result()
        # The entry is removed before the result is set: a caller that retries upon it starts new work.
        try:
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
