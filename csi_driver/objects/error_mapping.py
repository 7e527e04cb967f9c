"""Maps errors of stores and libraries to ``model/errors.py``: one table of HTTP statuses and S3 error codes, and one
function for each library.

No message quotes a library: obstore's texts hold request URLs, and those of Azure contain a signature. A message is
composed of parts that hold no secret: endpoint, bucket, key, status, error code.

A library is imported where an exception of it is mapped, so that a process has only those that it uses.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    InvalidParameter,
    ObjectArchived,
    ObjectChanged,
    ObjectNotFound,
    StoreError,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.model.snapshot import version_id_of
from csi_driver.objects.http.connections import HandshakeFailed
from csi_driver.objects.store_location import StoreLocation

_CREDENTIAL_CODES = frozenset(
    {
        "AuthFailure",
        "AuthenticationFailed",
        "AuthorizationQueryParametersError",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_BUCKET_CODES = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ContainerBeingDeleted"})
_TRANSIENT_CODE = re.compile(
    r"throttl|slow_?down|too_?many|limit_?exceeded|time_?d?_?out|busy|unavailable|internal|try_?again|aborted|"
    r"backend_?error",
    re.IGNORECASE,
)
"""Words of codes for a failure that passes, whatever the status: SlowDown, KMS.ThrottlingException (400),
rateLimitExceeded (403), KMS.DependencyTimeoutException ..."""
_TRANSIENT_STATUSES = frozenset({408, 421, 425, 429})
"""Besides those of servers and proxies, from 500 on. A status beyond 599 is taken as one of them (RFC 9110, 15)."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ARCHIVE_CODES = frozenset({"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"})
"""Of S3, and of Azure."""
_TLS_HINT = "; if the port speaks TLS, write https:// in the endpoint"
"""Servers answer plain HTTP on a port of TLS with 400, or with something that is not HTTP."""
_KMS = "KMS."
"""Begins the codes of S3 for a key that the object is encrypted with."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9._:-]{1,64})</Code>")
_PLAIN_CODE = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_SERVER = re.compile(r"https?://(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_JSON_REASON = re.compile(r'"reason": ?\\?"([A-Za-z0-9]{1,64})')


def from_status(
    location: StoreLocation,
    key: str | None,
    status: int,
    code: str | None = None,
    retry_after_s: float | None = None,
    *,
    redirect_to: str | None = None,
    lacking: str | None = None,
    region: str | None = None,
) -> HayloftError:
    """The error for an HTTP status and the store's error code, if there is one. ``redirect_to``: the Location header;
    ``lacking``: the permission that the store says is missing; ``region``: that of the bucket, as the store says."""
    code = code or ""
    name, answer = location.name(key), f"HTTP {status} {code}".rstrip()
    if status in _REDIRECTS:
        return redirected(location, answer, redirect_to, region)
    found = _by_code(location, name, code, answer, region) or _of_proxy(location, status)
    if found is not None:
        return found
    if status == 401:
        return _rejected(location, answer)
    if _TRANSIENT_CODE.search(code) or status in _TRANSIENT_STATUSES or status >= 500:
        through = f", or the proxy {location.proxy}," if location.proxy else ""
        return TransientStoreError(f"{name}: the store{through} answered {answer}", retry_after_s)
    if status == 403 or code.startswith(_KMS):
        return _denied(location, key, answer, code, lacking)
    if code in _BUCKET_CODES or (status == 404 and key is None):
        return BucketNotFound(f"{location.name(None)} does not exist ({answer}); check its name and the endpoint")
    if status in (404, 410):
        return _missing(name, key, answer)
    if status in (412, 416):
        return ObjectChanged(f"{name} is not the version that was listed ({answer}); make a new snapshot")
    if status == 405 and key is None:
        return _no_listing(location, answer)
    hint = _TLS_HINT if status == 400 and not code and location.endpoint.startswith("http:") else ""
    return StoreProtocolError(f"{name}: the store answered {answer}, which is unexpected{hint}")


def _by_code(location: StoreLocation, name: str, code: str, answer: str, region: str | None) -> HayloftError | None:
    """For codes that say more than any status."""
    if code in _CREDENTIAL_CODES:
        return _rejected(location, answer)
    if code in _REGION_CODES:
        return wrong_region(location, answer, region)
    if code == "NotImplemented":  # never passes, although its status is one of a server
        return StoreProtocolError(f"{name}: the store does not know this request ({answer})")
    if code in _ARCHIVE_CODES:
        return ObjectArchived(f"{name} is archived ({answer}); restore it in the store, or exclude it from the volume")
    return None


def _missing(name: str, key: str | None, answer: str) -> ObjectNotFound:
    version_id = version_id_of(key)
    if version_id is None:
        return ObjectNotFound(f"{name} does not exist ({answer})")
    return ObjectNotFound(f"{name}: the store no longer has its version {version_id}, which a snapshot pins ({answer})")


def _no_listing(location: StoreLocation, answer: str) -> StoreProtocolError:
    return StoreProtocolError(f"{location.endpoint} offers no listing ({answer}); name one object in the URL")


def _denied(location: StoreLocation, key: str | None, answer: str, code: str, lacking: str | None) -> AccessDenied:
    what = "access is denied"
    if code.startswith(_KMS):
        what = "its key of KMS cannot be used"
        remedy = f"enable the key, and grant these credentials {lacking or 'kms:Decrypt'} on it"
    elif location.anonymous:
        remedy = "the requests carry no credentials: give the volume a Secret, or permit anonymous reads of the bucket"
    elif lacking:
        remedy = f"the store says that these credentials lack {lacking}: grant it"
    else:
        reads = "list and read permission" if version_id_of(key) is None else "s3:GetObjectVersion"
        remedy = f"grant these credentials {reads} on the bucket"
    return AccessDenied(f"{location.name(key)}: {what} ({answer}); {remedy}")


def is_transient(status: int, code: str | None) -> bool:
    """Whether an answer of a service is worth a retry."""
    return isinstance(from_status(StoreLocation("", ""), None, status, code or None), TransientStoreError)


def _rejected(location: StoreLocation, answer: str) -> CredentialsRejected:
    if location.anonymous:
        return CredentialsRejected(
            f"{location.name(None)}: the store asks for credentials, and the volume has none ({answer}); give it a "
            "Secret, or permit anonymous reads of the bucket"
        )
    return CredentialsRejected(
        f"{location.name(None)}: the credentials are wrong, incomplete or expired ({answer}); renew the secret or the "
        "identity of the node, and check its clock"
    )


def wrong_region(location: StoreLocation, answer: str, region: str | None = None) -> InvalidParameter:
    """The store answered that the bucket is in another region, and perhaps in which."""
    allowed = f"{region!r}, the region of the bucket" if region else "the region of the bucket"
    return InvalidParameter("region", "as configured", allowed, f"{location.name(None)}: the store answered {answer}")


def redirected(
    location: StoreLocation, answer: str, target: str | None = None, region: str | None = None
) -> HayloftError:
    """AWS redirects to the bucket's region; other servers redirect to wherever they want: a request that followed would
    be sent without its signature, to a server that the volume does not name. ``target`` is the Location header."""
    if "amazonaws.com" in urlsplit(location.endpoint).netloc:
        return wrong_region(location, answer, region)
    server = _server_of(target)
    where = f"to {server} ({answer})" if server else f"({answer})"
    return StoreProtocolError(
        f"{location.name(None)}: the store redirects {where}, which is not followed; name the server that it redirects "
        "to in the endpoint, or have the store answer by itself"
    )


def _server_of(target: str | None) -> str | None:
    """Scheme, host and port of a URL, and nothing else of it. None: it names no server."""
    try:
        parts = urlsplit(target or "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"
    return shown if _SERVER.fullmatch(shown) else None


def unreachable(location: StoreLocation, why: str) -> TransientStoreError:
    """No connection: retried until the deadline, and EndpointUnreachable then."""
    return TransientStoreError(
        f"nothing answers at {location.place}: {why}; check the endpoint, its port and the network policy",
        when_exhausted=EndpointUnreachable,
    )


def untrusted(location: StoreLocation, why: str) -> EndpointUnreachable:
    """TLS that cannot be verified, which a retry does not change."""
    return EndpointUnreachable(
        f"{location.place} cannot be trusted: {why}; if it uses a private authority, give its certificate as the CA "
        "bundle"
    )


# -- proxies ----------------------------------------------------------------------------------------------------------

_TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")
_PROXY_VARIABLES = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"


def _proxy_failure(location: StoreLocation, why: str) -> TransientStoreError:
    """No connection to the proxy, or none by it: retried until the deadline, and EndpointUnreachable then."""
    return TransientStoreError(
        f"the proxy {location.proxy} gives no connection to {location.endpoint}: {why}; check the proxy and "
        f"{_PROXY_VARIABLES} of the driver, or list the store in NO_PROXY",
        when_exhausted=EndpointUnreachable,
    )


def _proxy_refuses(location: StoreLocation, status: int) -> EndpointUnreachable:
    """The proxy's own answer, which a retry does not change."""
    if status == 407:
        why = (
            f"asks for a user and a password, or does not accept those that it is given (HTTP 407); {_PROXY_VARIABLES}"
        )
        return EndpointUnreachable(f"{location.endpoint}: the proxy {location.proxy} {why} of the driver may hold them")
    why = f"refuses a connection to {location.endpoint} (HTTP {status})"
    return EndpointUnreachable(f"the proxy {location.proxy} {why}; permit it there, or list the store in NO_PROXY")


def _of_proxy(location: StoreLocation, status: int) -> EndpointUnreachable | None:
    """For a status that only a proxy answers."""
    return _proxy_refuses(location, status) if status == 407 and location.proxy else None


def _from_proxy(error: BaseException, location: StoreLocation) -> StoreError:
    """For what went wrong before the proxy had connected. Nothing of the texts but a status is used."""
    import urllib3.exceptions

    found = _TUNNEL_STATUS.search(str(error))
    status = int(found[1]) if found else getattr(error, "status", None)
    if isinstance(status, int):
        return _proxy_refuses(location, status) if status < 500 else _proxy_failure(location, f"HTTP {status}")
    if isinstance(error, ssl.SSLError | urllib3.exceptions.SSLError):
        return _proxy_failure(location, "TLS with the proxy fails")
    if isinstance(error, urllib3.exceptions.NameResolutionError | socket.gaierror):
        return _proxy_failure(location, "the proxy's host name cannot be resolved")
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return _proxy_failure(location, "no answer in time")
    return _proxy_failure(location, "no connection to it")


# -- obstore ----------------------------------------------------------------------------------------------------------

_CONNECT = "kind: Connect,"
_CONNECT_REASONS = (
    ("dns error", "the host name cannot be resolved"),
    ("ConnectionRefused", "connection refused"),
    ("NetworkUnreachable", "no route to the host"),
    ("HostUnreachable", "no route to the host"),
)


def obstore_status(error: Exception) -> int:
    """The HTTP status in the text of an exception; 0: there is none."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def from_obstore(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of obstore, which hold status and body in their text only, in a regular form."""
    text, name = str(error), location.name(key)
    found = _STATUS.search(text)
    if found:
        code = _CODE.search(text) or _JSON_REASON.search(text)
        if found[1] == "501" and key is None and code is None:
            return _no_listing(location, "HTTP 501")  # of a web server that does not know the method
        return from_status(location, key, int(found[1]), code[1] if code else None)
    if "credential provider" in text:
        return _rejected(location, "no credentials were found")
    if "BareRedirect" in text:
        return redirected(location, "an HTTP redirect")
    if "UnexpectedRange" in text:
        return _unexpected_range(text, name)
    if "NotPartial" in text:
        return StoreProtocolError(f"{name}: the store ignores ranges and sent the complete object")
    if "HttpError" in text or "hyper::Error" in text:
        return _connection_error(text, location, key)
    status = _status_without_answer(error)
    if status is not None:
        return from_status(location, key, status)
    return StoreProtocolError(f"{name}: the answer of the store cannot be used ({type(error).__name__})")


def _status_without_answer(error: Exception) -> int | None:
    """For exceptions that obstore raises without an HTTP status."""
    import obstore.exceptions

    statuses: tuple[tuple[type[Exception], int], ...] = (
        (FileNotFoundError, 404),
        (obstore.exceptions.PreconditionError, 412),
        (obstore.exceptions.PermissionDeniedError, 403),
        (obstore.exceptions.UnauthenticatedError, 401),
    )
    return next((status for kind, status in statuses if isinstance(error, kind)), None)


def _connection_error(text: str, location: StoreLocation, key: str | None) -> StoreError:
    if "InvalidCertificate" in text:
        return untrusted(location, "its certificate is not valid or not known")
    if _CONNECT in text:
        return unreachable(location, next((why for mark, why in _CONNECT_REASONS if mark in text), "no connection"))
    why = "no answer in time" if "kind: Timeout" in text else "the connection broke"
    return TransientStoreError(f"{location.name(key)}: {why}")


_RANGES = re.compile(r"expected: (\d+)\.\.(\d+),\s+actual: (\d+)\.\.(\d+)")


def _unexpected_range(text: str, name: str) -> StoreError:
    found = _RANGES.search(text)
    if found:
        expected_start, expected_stop, start, stop = map(int, found.groups())
        if start == expected_start and stop < expected_stop:
            return TransientStoreError(f"{name}: the store sent too few bytes")
    return StoreProtocolError(f"{name}: the store sent another range than the requested one")


# -- urllib3 and botocore ---------------------------------------------------------------------------------------------


def from_urllib3(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of urllib3."""
    import urllib3.exceptions

    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, urllib3.exceptions.ProxyError):
        return _from_proxy(error.original_error, location)
    if isinstance(error, urllib3.exceptions.SSLError):
        return _tls_failure(error, location, key)
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return unreachable(location, "the host name cannot be resolved")
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return unreachable(location, "no connection")
    if isinstance(error, urllib3.exceptions.LocationParseError | urllib3.exceptions.URLSchemeUnknown):
        return InvalidParameter("endpoint", location.endpoint, "a URL such as https://host:port")
    why = "no answer in time" if isinstance(error, urllib3.exceptions.TimeoutError) else "the connection broke"
    if any(isinstance(cause, http.client.BadStatusLine) for cause in error.args):
        why = "the answer is not HTTP"
        if location.endpoint.startswith("http:"):
            why += _TLS_HINT
    return TransientStoreError(f"{location.name(key)}: {why}")


def _tls_failure(error: BaseException, location: StoreLocation, key: str | None) -> StoreError:
    """For an exception that a library made of one of ``ssl``. A certificate, or no TLS at all, is an error at once. TLS
    that breaks later in a connection passes, as a reset does."""
    causes = [error, *error.args, error.__cause__]
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return untrusted(location, "its certificate is not valid or not known")
    failed = next((cause for cause in causes if isinstance(cause, HandshakeFailed)), None)
    if failed is None:
        return TransientStoreError(f"{location.name(key)}: TLS broke")
    why = f"{failed.why}; if the port speaks plain HTTP, write http:// in the endpoint"
    return unreachable(location, why) if failed.passes else EndpointUnreachable(f"{location.endpoint}: {why}")


def _tls_failure_of_aiohttp(error: BaseException, location: StoreLocation, key: str | None) -> StoreError:
    """As ``_tls_failure``, for what s3fs raises, whose requests are sent by aiohttp."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _tls_failure(ssl.SSLCertVerificationError(), location, key)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        failed = HandshakeFailed.of(error.os_error)
        failed.__cause__ = error.__cause__
        return _tls_failure(failed, location, key)
    return _tls_failure(error, location, key)


def from_socket(error: OSError, location: StoreLocation, key: str | None) -> TransientStoreError:
    """For errors of ``http/connections.py``."""
    if isinstance(error, socket.gaierror):
        return unreachable(location, "the host name cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return unreachable(location, "connection refused")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TransientStoreError(
            f"{location.name(key)}: no descriptor is left for a connection; raise the limit of open files "
            "(RLIMIT_NOFILE) of this process"
        )
    why = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return TransientStoreError(f"{location.name(key)}: {why}")


def from_botocore(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of botocore's credential chain, and of s3fs, which is built on botocore."""
    import botocore.exceptions

    if isinstance(error, botocore.exceptions.ClientError):
        response = error.response
        meta = response.get("ResponseMetadata", {})
        code = str(response.get("Error", {}).get("Code", ""))
        code = code if _PLAIN_CODE.fullmatch(code) else ""  # the server's text, which may be anything
        status = int(meta.get("HTTPStatusCode") or (code if code.isdigit() else 0))
        headers, shown_code = meta.get("HTTPHeaders", {}), None if code.isdigit() else code
        wait_s, redirect_to = retry_after_s(headers.get("retry-after")), headers.get("location")
        return from_status(location, key, status, shown_code, wait_s, redirect_to=redirect_to)
    if isinstance(
        error,
        botocore.exceptions.NoCredentialsError
        | botocore.exceptions.PartialCredentialsError
        | botocore.exceptions.CredentialRetrievalError
        | botocore.exceptions.TokenRetrievalError
        | botocore.exceptions.ProfileNotFound,
    ):
        return _rejected(location, "no credentials were found in the environment")
    if isinstance(error, botocore.exceptions.SSLError):
        return _tls_failure_of_aiohttp(error.kwargs.get("error") or error, location, key)
    if isinstance(error, botocore.exceptions.ProxyConnectionError):
        return _from_proxy(error.kwargs.get("error") or error, location)
    if isinstance(error, botocore.exceptions.EndpointConnectionError | botocore.exceptions.ConnectTimeoutError):
        return unreachable(location, "no connection")
    if isinstance(error, botocore.exceptions.HTTPClientError):
        return TransientStoreError(f"{location.name(key)}: the connection broke or timed out")
    return StoreProtocolError(f"{location.name(key)}: the answer cannot be used ({type(error).__name__})")


# -- fsspec -----------------------------------------------------------------------------------------------------------


def from_fsspec(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of fsspec's file systems: those of Hayloft, of botocore as their cause, built-in ones, and others
    with an HTTP status."""
    if isinstance(error, HayloftError):
        return error
    import aiohttp
    import botocore.exceptions

    for found in (error, error.__cause__):
        if isinstance(found, botocore.exceptions.BotoCoreError | botocore.exceptions.ClientError):
            return from_botocore(found, location, key)
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return from_status(location, key, status)
    if isinstance(error, FileNotFoundError):
        return from_status(location, key, 404)
    if isinstance(error, PermissionError):
        return from_status(location, key, 403)
    if isinstance(error, ssl.SSLError | ssl.CertificateError | aiohttp.ClientSSLError):
        return _tls_failure_of_aiohttp(error, location, key)
    if isinstance(error, ConnectionRefusedError | socket.gaierror | aiohttp.ClientConnectorError):
        return unreachable(location, "no connection")
    if isinstance(error, OSError | EOFError | aiohttp.ClientError):
        return TransientStoreError(f"{location.name(key)}: the connection broke or timed out ({type(error).__name__})")
    return StoreProtocolError(f"{location.name(key)}: the answer cannot be used ({type(error).__name__})")


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date. None if there is none, or neither."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
