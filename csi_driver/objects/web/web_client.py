"""Requests to one web server. No redirect is followed, the addresses that are dialled are judged in
``http/dialling.py``, and the credentials of a Secret go to this server alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import HayloftError, MissingParameter, StoreProtocolError
from csi_driver.objects.endpoints import check_ca_bundle
from csi_driver.objects.error_mapping import from_status, from_urllib3, retry_after_s
from csi_driver.objects.http.bounded_body import read_body
from csi_driver.objects.http.connection_pool import connection_pool
from csi_driver.objects.web.web_urls import WebLocation

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_REDIRECTS = (301, 302, 303, 307, 308)


class Page(NamedTuple):
    """A complete answer."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """In lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class WebClient:
    """Safe for any number of threads."""

    def __init__(self, location: WebLocation, options: StoreOptions, credentials: Credentials) -> None:
        """Raises AddressNotAllowed, InvalidParameter, MissingParameter."""
        self.location = location
        self.timeout_s = options.request_timeout_s
        """Bounds each wait for bytes."""
        # The stored bytes, and not a form of them that is compressed for the way.
        self.headers = {"Accept-Encoding": "identity", "User-Agent": "hayloft"}
        """Of every request; not changed."""
        if not options.anonymous:
            self.headers |= _authorization(credentials)
        self._http = connection_pool(
            location.endpoint,
            options.request_timeout_s,
            check_ca_bundle(options.ca_bundle_pem),
            options.max_connections,
            options.address_rules,
        )

    def send(
        self, method: str, key: str, headers: Mapping[str, str], body: bytes | None = None, query: str = ""
    ) -> BaseHTTPResponse:
        """The response of any status, its body unread; the caller closes or releases it. Blocks. Raises
        AddressNotAllowed, EndpointUnreachable, TransientStoreError."""
        target = self.location.target(key)
        if isinstance(self._http, urllib3.ProxyManager) and self.location.endpoint.startswith("http:"):
            target = self.location.name(key)
        if query:
            target += f"?{query}"
        try:
            # Not through the pool manager, which would resolve dots in a key as if they were directories.
            return self._http.connection_from_url(self.location.endpoint).urlopen(
                method,
                target,
                body=body,
                headers={**self.headers, **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                assert_same_host=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self.location, key) from None

    def fetch(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        most_bytes: int,
        body: bytes | None = None,
        query: str = "",
    ) -> Page:
        """A complete answer with a status 2xx. Raises as ``send``, the error that the status stands for,
        BudgetExceeded for a body of more than ``most_bytes``, StoreProtocolError."""
        response = self.send(method, key, headers, body, query)
        try:
            if response.status // 100 != 2:
                raise self.error(key, response)
            return Page(response.headers, read_body(response, most_bytes, self.location.name(key)))
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self.location, key) from None
        finally:
            response.close()

    def error(self, key: str, response: BaseHTTPResponse) -> HayloftError:
        """The error that a status other than 2xx stands for. Leaves the body unread."""
        name, status = self.location.name(key), response.status
        if status in _REDIRECTS:
            return StoreProtocolError(
                f"{name}: the server redirects to {_shown(_receiver(name, response))} (HTTP {status}), which is not "
                "followed; name that server in the URL"
            )
        return from_status(self.location, key, status, None, retry_after_s(response.headers.get("Retry-After")))

    def is_directory(self, key: str, response: BaseHTTPResponse) -> bool:
        """Whether the server redirects to the same path with a slash behind it, as web servers do for directories."""
        name = self.location.name(key)
        return response.status in _REDIRECTS and _receiver(name, response) == f"{name}/"

    def close(self) -> None:
        """Closes idle connections."""
        self._http.clear()


def _authorization(credentials: Credentials) -> dict[str, str]:
    """``token`` alone is a bearer token; ``username`` goes with ``password``, or with ``token`` in its place."""
    values = credentials.values
    username, token = values.get("username"), values.get("token")
    secret = values.get("password", token)
    if username is not None and secret is not None:
        pair = base64.b64encode(f"{username}:{secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    if token is not None and "password" not in values:
        return {"Authorization": f"Bearer {token}"}
    if values:
        missing = "username" if "password" in values else "password" if username is not None else "token"
        why = "the Secret of an http(s):// dataset holds username and password, or token"
        raise MissingParameter(f"secret key {missing}", why)
    return {}


def _receiver(name: str, response: BaseHTTPResponse) -> str:
    """The URL that a redirect names; empty for a text that is none."""
    try:
        return urljoin(name, response.headers.get("Location", ""))
    except ValueError:
        return ""


def _shown(url: str) -> str:
    """Scheme and host of a text that a server sent, if it is plain."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "another place"
    plain = host.isascii() and all(character.isalnum() or character in ".-:" for character in host)
    return f"{parts.scheme}://{host[:255]}{port}" if plain and parts.scheme in ("http", "https") else "another place"
