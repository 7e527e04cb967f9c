"""Where a store is, for error messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Endpoint and bucket that requests are sent to."""

    endpoint: str
    bucket: str
    anonymous: bool = False
    """Whether requests carry no credentials, which changes what helps against a refusal."""
    proxy: str = ""
    """The proxy that requests go through, without its credentials; empty: none."""

    @property
    def place(self) -> str:
        """The endpoint, and the way there if that is a proxy."""
        return f"{self.endpoint} through the proxy {self.proxy}" if self.proxy else self.endpoint

    def name(self, key: str | None) -> str:
        """The object, or the bucket if ``key`` is None, as a message names it."""
        if key is None:
            return f"bucket {self.bucket!r} at {self.place}"
        return f"object {key!r} in bucket {self.bucket!r} at {self.place}"
