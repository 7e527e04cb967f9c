"""A small object in flight at one of several stores, whose end is noted."""

from __future__ import annotations

import time
from collections.abc import Callable

from csi_driver.objects.store import InFlightObject, UnusableResponse, WholeObject
from csi_driver.objects.wrapped_object import WrappedObject


class NotedObject(WrappedObject):
    """An ``InFlightObject``. Only a store that sends no byte in time counts as failed: after another error the fallback
    path asks again, and a store that has merely closed an idle connection answers then."""

    __slots__ = ("_failed", "_since_s", "_worked")

    def __init__(
        self, response: InFlightObject, worked: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        super().__init__(response)
        self._worked, self._failed = worked, failed
        self._since_s = time.monotonic()

    def advance(self) -> WholeObject | None:
        try:
            whole = self._response.advance()
        except (UnusableResponse, OSError):
            self._since_s = float("inf")
            raise
        self._since_s = time.monotonic()
        if whole is not None:
            self._worked()
        return whole

    def abort(self) -> None:
        """No byte was received in time, or nothing needs the object any more."""
        if time.monotonic() - self._since_s >= 0.9 * self._response.timeout_s:
            self._failed(TimeoutError("no byte was received in time"))
        self._response.abort()
