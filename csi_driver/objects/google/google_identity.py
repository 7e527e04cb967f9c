"""Tokens for Google Cloud Storage: signed by the key of a service account, or those of the node."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import google.auth
import google.auth.exceptions
import google.auth.jwt
import google.auth.transport.urllib3

from csi_driver.model.dataset import Credentials
from csi_driver.model.errors import CredentialsRejected, InvalidParameter, TransientStoreError
from csi_driver.objects.bearer_tokens import BearerToken, BearerTokens
from csi_driver.objects.google_service_account import SERVICE_ACCOUNT_FIELD
from csi_driver.objects.http.connection_pool import IdentityServices

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_UNUSED = "https://oauth2.googleapis.com/token"
"""The library requires an address for tokens in a key, and asks none for this kind."""
_TIMEOUT_S = 10.0
"""Of Google's identity services, which answer within a second; the library would wait for 2 minutes."""
_LIFE_S = 3600.0
"""Of a token whose expiry is not known; Google's live so long."""


def open_tokens(credentials: Credentials) -> BearerTokens:
    """Sends nothing. Raises InvalidParameter for a key that cannot sign."""
    text = credentials.values.get("service_account_json")
    return BearerTokens(_NodeTokens().request if text is None else _SelfSigned(text).request)


class _SelfSigned:
    """Tokens that the key of a service account signs itself: no server is asked for them, so that no field of a
    Secret can name one (https://google.aip.dev/auth/4111)."""

    def __init__(self, text: str) -> None:
        try:
            self._credentials = google.auth.jwt.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                {**json.loads(text), "token_uri": _UNUSED}, audience=None, additional_claims={"scope": _SCOPE}
            )
        except (ValueError, TypeError, google.auth.exceptions.GoogleAuthError):
            allowed = "the JSON text of a service account key"
            raise InvalidParameter(SERVICE_ACCOUNT_FIELD, "(hidden)", allowed) from None

    def request(self) -> BearerToken:
        self._credentials.refresh(None)
        return _token(self._credentials)


class _NodeTokens:
    """Google's application default: a file that the environment names, else the metadata service."""

    def __init__(self) -> None:
        self._found: google.auth.credentials.Credentials | None = None
        """Set by the thread that holds the lock of ``BearerTokens``."""
        self._services = IdentityServices()

    def request(self) -> BearerToken:
        """Raises CredentialsRejected, TransientStoreError."""
        transport: Any = partial(google.auth.transport.urllib3.Request(self._services), timeout=_TIMEOUT_S)  # type: ignore[no-untyped-call]
        try:
            if self._found is None:
                self._found, _ = google.auth.default(scopes=[_SCOPE], request=transport)
            self._found.refresh(transport)  # type: ignore[no-untyped-call]
        except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
            self._found = None  # a file may be corrected meanwhile
            if getattr(error, "retryable", False):
                raise TransientStoreError("Google's identity service does not answer") from None
            raise CredentialsRejected(
                f"the node's own credentials for Google cannot be used ({type(error).__name__}); give the volume a "
                "secret, give the node a service account, or set anonymous for a public bucket"
            ) from None
        return _token(self._found)


def _token(found: google.auth.credentials.Credentials) -> BearerToken:
    # google-auth writes the expiry in UTC, without a time zone.
    expiry = found.expiry
    life_s = _LIFE_S if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    token = found.token
    return BearerToken(token.decode() if isinstance(token, bytes) else str(token), time.time() + life_s)
