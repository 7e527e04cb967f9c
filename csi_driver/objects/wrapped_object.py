"""What the wrappers of an object in flight have in common."""

from __future__ import annotations

from csi_driver.objects.store import InFlightObject


class WrappedObject:
    """The part of an ``InFlightObject`` that is that of another one. Subclasses have ``advance`` and ``abort``."""

    __slots__ = ("_response",)

    def __init__(self, response: InFlightObject) -> None:
        self._response = response

    @property
    def timeout_s(self) -> float:
        return self._response.timeout_s

    @property
    def events(self) -> int:
        return self._response.events

    @property
    def progress(self) -> int:
        return self._response.progress

    def fileno(self) -> int:
        return self._response.fileno()
