"""Tokens that a request carries as they are (``Authorization: Bearer``), cached until they expire."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from csi_driver.model.errors import HayloftError

RENEWED_EARLY_S = 300.0
"""A token is requested again so long before it expires: identity services renew them from then on."""
_ATTEMPT_EVERY_S = 10.0
"""An identity service that fails is asked so seldom while the old token is valid."""


class BearerToken(NamedTuple):
    """``expires_at_s``: by the clock of ``time.time``."""

    text: str
    expires_at_s: float


def given_token(text: str) -> BearerToken:
    """One that comes in a Secret, which a later one replaces: its store says when it has expired."""
    return BearerToken(text, math.inf)


class BearerTokens:
    """The token of one identity. Safe for any number of threads."""

    def __init__(self, request: Callable[[], BearerToken]) -> None:
        """``request`` blocks on the identity service; raises CredentialsRejected, TransientStoreError."""
        self._request = request
        # Guards: _next_attempt_s. While held: the identity service is asked, and the other threads wait for the same
        # answer, unless the token that they have is still valid.
        self._lock = threading.Lock()
        self._next_attempt_s = 0.0
        self._token: BearerToken | None = None
        """Replaced as one value, read without the lock."""

    def valid(self) -> str | None:
        """The cached token, unless it is about to expire. Never blocks."""
        token = self._token
        return token.text if token is not None and time.time() < token.expires_at_s - RENEWED_EARLY_S else None

    def get(self) -> str:
        """A valid token. Blocks on the identity service if there is none. A service that fails while the old token
        is valid is no error. Raises what ``request`` raises."""
        found = self.valid()
        if found is not None:
            return found
        token = self._token
        if token is not None and time.time() < token.expires_at_s:
            if self._lock.acquire(blocking=False):
                try:
                    return self._renewed(token)
                finally:
                    self._lock.release()
            return token.text
        with self._lock:
            return self.valid() or self._renewed(None)

    def _renewed(self, still_valid: BearerToken | None) -> str:
        now = time.time()
        if still_valid is not None and now < self._next_attempt_s:
            return still_valid.text
        self._next_attempt_s = now + _ATTEMPT_EVERY_S
        try:
            self._token = self._request()
        except HayloftError:
            if still_valid is None:
                raise
            return still_valid.text
        return self._token.text
