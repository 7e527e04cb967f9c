"""Takes back what was done with a driver, in the opposite order."""

from __future__ import annotations

from collections.abc import Callable

from hayloft_lab.emulated_kubelet import CallRefused


class Undo:
    """Calls what was noted, last first. Goes on when one fails: the next may still help."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._actions: list[Callable[[], None]] = []

    def later(self, action: Callable[[], None]) -> None:
        """Notes it; it must be harmless if what it undoes was not done."""
        self._actions.append(action)

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Raises the first CallRefused, unless another error is on its way: then it is only told."""
        first: CallRefused | None = None
        while self._actions:
            try:
                self._actions.pop()()
            except CallRefused as refused:
                first = first or refused
                if error is not None:
                    self._complain(f"while cleaning up: {refused}")
        if first is not None and error is None:
            raise first
