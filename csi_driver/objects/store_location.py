"""Where a store is, for error messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Endpoint and bucket that requests are sent to."""

    endpoint: str
    bucket: str

    def name(self, key: str | None) -> str:
        """The object, or the bucket if ``key`` is None, as a message names it."""
        if key is None:
            return f"bucket {self.bucket!r} at {self.endpoint}"
        return f"object {key!r} in bucket {self.bucket!r} at {self.endpoint}"
