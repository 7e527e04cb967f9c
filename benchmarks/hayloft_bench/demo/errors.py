"""What can go wrong in a demonstration, beside the errors of the driver itself."""

from __future__ import annotations


class DemoFailed(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


class WrongBytes(DemoFailed):
    """The mount gave other bytes than were uploaded."""


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no handler of ordinary errors swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
