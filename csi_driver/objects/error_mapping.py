"""Maps errors of stores and libraries to ``model/errors.py``: one table of HTTP statuses and S3 error codes, and one
function for each library.

No message quotes a library: obstore's texts hold request URLs, and those of Azure contain a signature. A message is
composed of parts that hold no secret: endpoint, bucket, key, status, error code.
"""

from __future__ import annotations

import re
import socket
import ssl

import aiohttp
import botocore.exceptions
import obstore.exceptions
import urllib3.exceptions

from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    InvalidParameter,
    ObjectChanged,
    ObjectNotFound,
    StoreError,
    StoreProtocolError,
    TransientStoreError,
)
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
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_JSON_REASON = re.compile(r'"reason": ?\\?"([A-Za-z0-9]{1,64})')


def from_status(
    location: StoreLocation, key: str | None, status: int, code: str | None = None, retry_after_s: float | None = None
) -> HayloftError:
    """The error for an HTTP status and the store's error code, if there is one."""
    name, answer = location.name(key), f"HTTP {status}{f' {code}' if code else ''}"
    if code in _CREDENTIAL_CODES or status == 401:
        return _rejected(location, answer)
    if code in _REGION_CODES or status in (301, 307, 308):
        return wrong_region(location, answer)
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES:
        return TransientStoreError(f"{name}: the store answered {answer}", retry_after_s)
    if code in _BUCKET_CODES or (status == 404 and key is None):
        return BucketNotFound(f"{location.name(None)} does not exist ({answer}); check its name and the endpoint")
    if status in (404, 410):
        return ObjectNotFound(f"{name} does not exist ({answer})")
    if status == 403:
        return AccessDenied(
            f"{name}: access is denied ({answer}); grant these credentials list and read permission on the bucket"
        )
    if status in (412, 416):
        return ObjectChanged(f"{name} is not the version that was listed ({answer}); make a new snapshot")
    if status in (405, 501) and key is None:
        return StoreProtocolError(f"{location.endpoint} offers no listing ({answer}); name one object in the URL")
    return StoreProtocolError(f"{name}: the store answered {answer}, which is unexpected")


def _rejected(location: StoreLocation, answer: str) -> CredentialsRejected:
    return CredentialsRejected(
        f"{location.name(None)}: the credentials are wrong, incomplete or expired ({answer}); renew the secret or the "
        "identity of the node, and check its clock"
    )


def wrong_region(location: StoreLocation, answer: str) -> InvalidParameter:
    """The store answered that the bucket is in another region."""
    return InvalidParameter(
        "region", "as configured", "the region of the bucket", f"{location.name(None)}: the store answered {answer}"
    )


def unreachable(location: StoreLocation, why: str) -> TransientStoreError:
    """No connection: retried until the deadline, and EndpointUnreachable then."""
    return TransientStoreError(
        f"nothing answers at {location.endpoint}: {why}; check the endpoint, its port and the network policy",
        when_exhausted=EndpointUnreachable,
    )


def untrusted(location: StoreLocation, why: str) -> EndpointUnreachable:
    """TLS that cannot be verified, which a retry does not change."""
    return EndpointUnreachable(
        f"{location.endpoint} cannot be trusted: {why}; if it uses a private authority, give its certificate as the CA "
        "bundle"
    )


# -- obstore ----------------------------------------------------------------------------------------------------------

_CONNECT = "kind: Connect,"
_CONNECT_REASONS = (
    ("dns error", "the host name cannot be resolved"),
    ("ConnectionRefused", "connection refused"),
    ("NetworkUnreachable", "no route to the host"),
    ("HostUnreachable", "no route to the host"),
)


def from_obstore(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of obstore, which hold status and body in their text only, in a regular form."""
    text, name = str(error), location.name(key)
    found = _STATUS.search(text)
    if found:
        code = _CODE.search(text) or _JSON_REASON.search(text)
        return from_status(location, key, int(found[1]), code[1] if code else None)
    if "credential provider" in text:
        return _rejected(location, "no credentials were found")
    if "BareRedirect" in text:
        return wrong_region(location, "a redirect without a location")
    if "UnexpectedRange" in text:
        return _unexpected_range(text, name)
    if "NotPartial" in text:
        return StoreProtocolError(f"{name}: the store ignores ranges and sent the complete object")
    if "HttpError" in text or "hyper::Error" in text:
        return _connection_error(text, location, key)
    status = next((status for kind, status in _OBSTORE_STATUSES if isinstance(error, kind)), None)
    if status is not None:
        return from_status(location, key, status)
    return StoreProtocolError(f"{name}: the answer of the store cannot be used ({type(error).__name__})")


_OBSTORE_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (FileNotFoundError, 404),
    (obstore.exceptions.PreconditionError, 412),
    (obstore.exceptions.PermissionDeniedError, 403),
    (obstore.exceptions.UnauthenticatedError, 401),
)
"""Exceptions that obstore raises without an HTTP status."""


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
            return TransientStoreError(f"{name}: the store sent {expected_stop - stop} bytes too few")
    return StoreProtocolError(f"{name}: the store sent another range than the requested one")


# -- urllib3 and botocore ---------------------------------------------------------------------------------------------


def from_urllib3(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of urllib3."""
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, urllib3.exceptions.SSLError):
        return untrusted(location, "its certificate is not valid or not known")
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return unreachable(location, "the host name cannot be resolved")
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return unreachable(location, "no connection")
    if isinstance(error, urllib3.exceptions.LocationParseError | urllib3.exceptions.URLSchemeUnknown):
        return InvalidParameter("endpoint", location.endpoint, "a URL such as https://host:port")
    why = "no answer in time" if isinstance(error, urllib3.exceptions.TimeoutError) else "the connection broke"
    return TransientStoreError(f"{location.name(key)}: {why}")


def from_socket(error: OSError, location: StoreLocation, key: str | None) -> TransientStoreError:
    """For errors of ``http/connections.py``."""
    if isinstance(error, socket.gaierror):
        return unreachable(location, "the host name cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return unreachable(location, "connection refused")
    why = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return TransientStoreError(f"{location.name(key)}: {why}")


def from_botocore(error: Exception, location: StoreLocation, key: str | None) -> HayloftError:
    """For exceptions of botocore's credential chain, and of s3fs, which is built on botocore."""
    if isinstance(error, botocore.exceptions.ClientError):
        response = error.response
        meta = response.get("ResponseMetadata", {})
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(meta.get("HTTPStatusCode") or (code if code.isdigit() else 0))
        retry_after = retry_after_s(meta.get("HTTPHeaders", {}).get("retry-after"))
        return from_status(location, key, status, None if code.isdigit() else code or None, retry_after)
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
        return untrusted(location, "its certificate is not valid or not known")
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
        return untrusted(location, "its certificate is not valid or not known")
    if isinstance(error, ConnectionRefusedError | socket.gaierror | aiohttp.ClientConnectorError):
        return unreachable(location, "no connection")
    if isinstance(error, OSError | EOFError | aiohttp.ClientError):
        return TransientStoreError(f"{location.name(key)}: the connection broke or timed out ({type(error).__name__})")
    return StoreProtocolError(f"{location.name(key)}: the answer cannot be used ({type(error).__name__})")


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header. None if there is none, or if it holds a date, which no object store is known to
    send."""
    return float(header) if header is not None and header.strip().isdigit() else None
