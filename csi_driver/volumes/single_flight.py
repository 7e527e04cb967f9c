"""One caller works for a volume at a time, and those who ask for the same wait for its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from csi_driver.model.errors import OperationPending

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    wish: object = field(repr=False)
    result: Future[T]


class SingleFlight(Generic[T]):
    """The lock guards the table of flights, and is never held while a flight works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight[T]] = {}

    def run(self, volume_id: str, wish: object, work: Callable[[], T]) -> T:
        """Does the work, or waits for the one who is doing it and shares the result or the error.

        ``wish`` says what is asked for, compared by equality; it may hold secrets and is never printed. Raises
        OperationPending when another wish for the same volume is being worked on.
        """
        with self._lock:
            flight = self._flights.get(volume_id)
            mine = flight is None
            if flight is None:
                flight = self._flights[volume_id] = _Flight(wish, Future())
        if not mine:
            if flight.wish != wish:
                raise OperationPending(f"volume {volume_id!r}: another call is under way; ask again in a moment")
            return flight.result.result()
        try:
            result = work()
        except BaseException as error:
            self._land(volume_id)
            flight.result.set_exception(error)
            raise
        self._land(volume_id)
        flight.result.set_result(result)
        return result

    def _land(self, volume_id: str) -> None:
        with self._lock:
            del self._flights[volume_id]
