"""Tokens for Google Cloud Storage: signed by the key of a service account, or those of the node."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import google.auth
import google.auth.exceptions
import google.auth.jwt
import google.auth.transport.urllib3
from google.auth import identity_pool

from csi_driver.model.dataset import Credentials
from csi_driver.model.errors import CredentialsRejected, InvalidParameter, TransientStoreError
from csi_driver.objects.bearer_tokens import BearerToken, BearerTokens, given_token
from csi_driver.objects.google_service_account import SERVICE_ACCOUNT_FIELD
from csi_driver.objects.http.connection_pool import IdentityServices

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_UNUSED = "https://oauth2.googleapis.com/token"
"""The library requires an address for tokens in a key, and asks none for this kind."""
_TIMEOUT_S = 10.0
"""Of Google's identity services, which answer within a second; the library would wait for 2 minutes."""
_LIFE_S = 3600.0
"""Of a token whose expiry is not known; Google's live so long."""


def open_tokens(credentials: Credentials) -> BearerTokens:
    """Sends nothing. Raises InvalidParameter for a key that cannot sign."""
    given = credentials.values.get("access_token")
    if given is not None:
        return BearerTokens(lambda: given_token(given))
    text = credentials.values.get("service_account_json")
    return BearerTokens(_NodeTokens().request if text is None else _SelfSigned(text).request)


class _SelfSigned:
    """Tokens that the key of a service account signs itself: no server is asked for them, so that no field of a
    Secret can name one (https://google.aip.dev/auth/4111)."""

    def __init__(self, text: str) -> None:
        try:
            self._credentials = google.auth.jwt.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                {**json.loads(text), "token_uri": _UNUSED}, audience=None, additional_claims={"scope": SCOPE}
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
                self._found = _federated() or google.auth.default(scopes=[SCOPE], request=transport)[0]
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


def _federated() -> google.auth.credentials.Credentials | None:
    """Those of a file for workload identity federation. The library's own way to them asks another service which
    project they are of, with the token, and fails if that does not answer; no request here needs to know."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # part of the ambient identity, not a setting
    if not path:
        return None
    info = json.loads(Path(path).read_text())
    if not isinstance(info, dict) or info.get("type") != "external_account":
        return None
    source = info.get("credential_source")
    if not isinstance(source, dict) or not source.keys() & {"file", "url"}:
        return None
    found: google.auth.credentials.Credentials = identity_pool.Credentials.from_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    return found


def _token(found: google.auth.credentials.Credentials) -> BearerToken:
    token = found.token
    return BearerToken(token.decode() if isinstance(token, bytes) else str(token), time.time() + token_life_s(found))


def token_life_s(found: google.auth.credentials.Credentials) -> float:
    """For how many seconds its token is valid."""
    # google-auth writes the expiry in UTC, without a time zone.
    expiry = found.expiry
    return _LIFE_S if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
