"""How requests to Azure are authorised: by a shared key, a shared access signature, a token, or not at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote

from csi_driver.objects.bearer_tokens import BearerTokens

API_VERSION = "2023-11-03"
_SIGNED_BY_PLACE = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)
"""Headers whose values a shared key signs, in this order and without their names."""


class AzureSigner(Protocol):
    """Authorises requests without a body. Safe for any number of threads."""

    @property
    def query(self) -> Mapping[str, str]:
        """To be added to the query of every request; decoded."""

    @property
    def any_range(self) -> bool:
        """Whether the same headers authorise a request for another part of the object."""

    @property
    def is_ready(self) -> bool:
        """Whether ``headers`` does not block."""

    def headers(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], method: str) -> dict[str, str]:
        """The headers of the request: those given, with names in lower case, and those that authorise it. ``path`` is
        percent-encoded, ``query`` is decoded. May block on an identity service; raises CredentialsRejected,
        TransientStoreError."""


class SharedAccessSignature:
    """The query of the signature; without any, requests are anonymous."""

    is_ready = True
    any_range = True

    def __init__(self, token: str = "") -> None:
        pairs = (pair.partition("=") for pair in token.removeprefix("?").split("&") if pair)
        self.query: Mapping[str, str] = {name: unquote(value) for name, _, value in pairs}

    def headers(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], method: str) -> dict[str, str]:
        return {"x-ms-version": API_VERSION, **headers}


class Bearer:
    """Tokens of an identity."""

    query: Mapping[str, str] = {}
    any_range = True

    def __init__(self, tokens: BearerTokens) -> None:
        self._tokens = tokens

    @property
    def is_ready(self) -> bool:
        return self._tokens.valid() is not None

    def headers(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], method: str) -> dict[str, str]:
        return {"x-ms-version": API_VERSION, **headers, "authorization": f"Bearer {self._tokens.get()}"}


class SharedKey:
    """The key of the account."""

    query: Mapping[str, str] = {}
    is_ready = True
    any_range = False

    def __init__(self, account: str, key: str) -> None:
        """``key``: base64. Raises ValueError."""
        self._account, self._key = account, base64.b64decode(key, validate=True)

    def headers(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], method: str) -> dict[str, str]:
        complete = {
            "x-ms-date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
            "x-ms-version": API_VERSION,
            **headers,
        }
        places = "".join([f"{complete.get(name, '')}\n" for name in _SIGNED_BY_PLACE])
        named = "".join([f"{name}:{complete[name]}\n" for name in sorted(complete) if name.startswith("x-ms-")])
        resource = f"/{self._account}{path}" + "".join([f"\n{name}:{query[name]}" for name in sorted(query)])
        text = f"{method}\n{places}{named}{resource}".encode()
        signature = base64.b64encode(hmac.digest(self._key, text, hashlib.sha256)).decode()
        return complete | {"authorization": f"SharedKey {self._account}:{signature}"}
