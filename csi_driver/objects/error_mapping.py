"""Foreign exceptions become ours: one table of HTTP statuses and S3 codes, and one function per library.

No message repeats what a library said word for word: obstore's texts hold request URLs, and those of Azure carry a
signature. A message is put together from parts that are known to be harmless: endpoint, bucket, key, status, code.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request went: what a message needs to name the thing."""

    endpoint: str
    bucket: str

    def name(self, key: str | None) -> str:
        """The object, or the bucket where no key is given, for a message."""
        if key is None:
            return f"bucket {self.bucket!r} at {self.endpoint}"
        return f"object {key!r} in bucket {self.bucket!r} at {self.endpoint}"


def from_status(
    place: Place, key: str | None, status: int, code: str | None = None, retry_after_s: float | None = None
) -> HayloftError:
    """The error for an HTTP status and, where the store gives one, its error code."""
    name, said = place.name(key), f"HTTP {status}{f' {code}' if code else ''}"
    if code in _CREDENTIAL_CODES or status == 401:
        return _rejected(place, said)
    if code in _REGION_CODES or status in (301, 307, 308):
        return wrong_region(place, said)
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES:
        return TransientStoreError(f"{name}: the store answered {said}", retry_after_s)
    if code in _BUCKET_CODES or (status == 404 and key is None):
        return BucketNotFound(f"{place.name(None)} does not exist ({said}); check its name and the endpoint")
    if status in (404, 410):
        return ObjectNotFound(f"{name} does not exist ({said})")
    if status == 403:
        return AccessDenied(
            f"{name}: access is denied ({said}); grant these credentials list and read permission on the bucket"
        )
    if status in (412, 416):
        return ObjectChanged(f"{name} is not the version that was listed ({said}); make a new snapshot")
    if status in (405, 501) and key is None:
        return StoreProtocolError(f"{place.endpoint} offers no listing ({said}); name one object in the URL")
    return StoreProtocolError(f"{name}: the store answered {said}, which was not expected")


def _rejected(place: Place, said: str) -> CredentialsRejected:
    return CredentialsRejected(
        f"{place.name(None)}: the credentials are wrong, incomplete or expired ({said}); renew the secret or the "
        "identity of the node, and check its clock"
    )


def wrong_region(place: Place, said: str) -> InvalidParameter:
    """The store says that the bucket is to be asked for in another region."""
    return InvalidParameter(
        "region", "as configured", "the region of the bucket", f"{place.name(None)}: the store answered {said}"
    )


def unreachable(place: Place, why: str) -> TransientStoreError:
    """No connection: worth trying again for a while, and EndpointUnreachable when that was in vain."""
    return TransientStoreError(
        f"nothing answers at {place.endpoint}: {why}; check the endpoint, its port and the network policy",
        given_up=EndpointUnreachable,
    )


def untrusted(place: Place, why: str) -> EndpointUnreachable:
    """TLS that cannot be verified: no try will mend it."""
    return EndpointUnreachable(
        f"{place.endpoint} cannot be trusted: {why}; if it uses a private authority, give its certificate as the CA "
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


def from_obstore(error: Exception, place: Place, key: str | None) -> HayloftError:
    """For exceptions of obstore. It keeps status and body in its text only, in a regular form."""
    text, name = str(error), place.name(key)
    found = _STATUS.search(text)
    if found:
        code = _CODE.search(text) or _JSON_REASON.search(text)
        return from_status(place, key, int(found[1]), code[1] if code else None)
    if "credential provider" in text:
        return _rejected(place, "no credentials could be had")
    if "BareRedirect" in text:
        return wrong_region(place, "a redirect without a location")
    if "UnexpectedRange" in text:
        return _unexpected_range(text, name)
    if "NotPartial" in text:
        return StoreProtocolError(f"{name}: the store ignores ranges and sent the whole object")
    if "HttpError" in text or "hyper::Error" in text:
        return _broken(text, place, key)
    status = next((status for kind, status in _OBSTORE_STATUSES if isinstance(error, kind)), None)
    if status is not None:
        return from_status(place, key, status)
    return StoreProtocolError(f"{name}: the answer of the store cannot be used ({type(error).__name__})")


_OBSTORE_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (FileNotFoundError, 404),
    (obstore.exceptions.PreconditionError, 412),
    (obstore.exceptions.PermissionDeniedError, 403),
    (obstore.exceptions.UnauthenticatedError, 401),
)
"""Where obstore decides without an HTTP status."""


def _broken(text: str, place: Place, key: str | None) -> StoreError:
    if "InvalidCertificate" in text:
        return untrusted(place, "its certificate is not valid or not known")
    if _CONNECT in text:
        return unreachable(place, next((why for mark, why in _CONNECT_REASONS if mark in text), "no connection"))
    why = "no answer in time" if "kind: Timeout" in text else "the connection broke"
    return TransientStoreError(f"{place.name(key)}: {why}")


_RANGES = re.compile(r"expected: (\d+)\.\.(\d+),\s+actual: (\d+)\.\.(\d+)")


def _unexpected_range(text: str, name: str) -> StoreError:
    found = _RANGES.search(text)
    if found:
        expected_start, expected_stop, start, stop = map(int, found.groups())
        if start == expected_start and stop < expected_stop:
            return TransientStoreError(f"{name}: the store sent {expected_stop - stop} bytes too few")
    return StoreProtocolError(f"{name}: the store sent another range than the one asked for")


# -- urllib3 and botocore ---------------------------------------------------------------------------------------------


def from_urllib3(error: Exception, place: Place, key: str | None) -> HayloftError:
    """For exceptions of urllib3, which carries the requests that are signed here."""
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, urllib3.exceptions.SSLError):
        return untrusted(place, "its certificate is not valid or not known")
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return unreachable(place, "the host name cannot be resolved")
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return unreachable(place, "no connection")
    if isinstance(error, urllib3.exceptions.LocationParseError | urllib3.exceptions.URLSchemeUnknown):
        return InvalidParameter("endpoint", place.endpoint, "a URL such as https://host:port")
    why = "no answer in time" if isinstance(error, urllib3.exceptions.TimeoutError) else "the connection broke"
    return TransientStoreError(f"{place.name(key)}: {why}")


def from_socket(error: OSError, place: Place, key: str | None) -> TransientStoreError:
    """For what sockets of our own raise."""
    if isinstance(error, socket.gaierror):
        return unreachable(place, "the host name cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return unreachable(place, "connection refused")
    why = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return TransientStoreError(f"{place.name(key)}: {why}")


def from_botocore(error: Exception, place: Place, key: str | None) -> HayloftError:
    """For exceptions of botocore: of its credential chain, and of s3fs, which stands on it."""
    if isinstance(error, botocore.exceptions.ClientError):
        answer = error.response
        meta = answer.get("ResponseMetadata", {})
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(meta.get("HTTPStatusCode") or (code if code.isdigit() else 0))
        retry_after = retry_after_s(meta.get("HTTPHeaders", {}).get("retry-after"))
        return from_status(place, key, status, None if code.isdigit() else code or None, retry_after)
    if isinstance(
        error,
        botocore.exceptions.NoCredentialsError
        | botocore.exceptions.PartialCredentialsError
        | botocore.exceptions.CredentialRetrievalError
        | botocore.exceptions.TokenRetrievalError
        | botocore.exceptions.ProfileNotFound,
    ):
        return _rejected(place, "no credentials could be had from the environment")
    if isinstance(error, botocore.exceptions.SSLError):
        return untrusted(place, "its certificate is not valid or not known")
    if isinstance(error, botocore.exceptions.EndpointConnectionError | botocore.exceptions.ConnectTimeoutError):
        return unreachable(place, "no connection")
    if isinstance(error, botocore.exceptions.HTTPClientError):
        return TransientStoreError(f"{place.name(key)}: the connection broke or timed out")
    return StoreProtocolError(f"{place.name(key)}: the answer cannot be used ({type(error).__name__})")


# -- fsspec -----------------------------------------------------------------------------------------------------------


def from_fsspec(error: Exception, place: Place, key: str | None) -> HayloftError:
    """For whatever a file system of fsspec raises: our own, botocore's beneath, a built-in, or one with a status."""
    if isinstance(error, HayloftError):
        return error
    beneath = error.__cause__
    for found in (error, beneath):
        if isinstance(found, botocore.exceptions.BotoCoreError | botocore.exceptions.ClientError):
            return from_botocore(found, place, key)
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return from_status(place, key, status)
    if isinstance(error, FileNotFoundError):
        return from_status(place, key, 404)
    if isinstance(error, PermissionError):
        return from_status(place, key, 403)
    if isinstance(error, ssl.SSLError | ssl.CertificateError | aiohttp.ClientSSLError):
        return untrusted(place, "its certificate is not valid or not known")
    if isinstance(error, ConnectionRefusedError | socket.gaierror | aiohttp.ClientConnectorError):
        return unreachable(place, "no connection")
    if isinstance(error, OSError | EOFError | aiohttp.ClientError):
        return TransientStoreError(f"{place.name(key)}: the connection broke or timed out ({type(error).__name__})")
    return StoreProtocolError(f"{place.name(key)}: the answer cannot be used ({type(error).__name__})")


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None if there is none or if it names a date, which no object store
    is known to send."""
    return float(header) if header is not None and header.strip().isdigit() else None
