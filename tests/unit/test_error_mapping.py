"""Which error an answer of a store becomes: by class of status and code, and what its message says."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    HayloftError,
    InvalidParameter,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.objects.error_mapping import from_status, retry_after_s
from csi_driver.objects.s3.listing import error_code, lacking_permission
from csi_driver.objects.store_location import StoreLocation

LOCATION = StoreLocation("https://s3.example.com", "data")
ANONYMOUS = StoreLocation("https://s3.example.com", "data", anonymous=True)


@pytest.mark.promise("S202")
@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("status", [*range(500, 600), 600, 777, 999, 408, 421, 425, 429])
def test_statuses_of_servers_and_proxies_are_transient(status: int, key: str | None) -> None:
    assert isinstance(from_status(LOCATION, key, status), TransientStoreError)


@pytest.mark.promise("S202")
@pytest.mark.parametrize("status", [400, 403, 409])
@pytest.mark.parametrize(
    "code",
    [
        *("SlowDown", "slow_down", "Throttling", "ThrottlingException", "Throttling.User", "KMS.ThrottlingException"),
        *("RequestTimeout", "KMS.DependencyTimeoutException", "OperationTimedOut", "TooManyRequests", "ServerBusy"),
        *("ServiceUnavailable", "KMS.KeyUnavailableException", "InternalError", "KMS.KMSInternalException"),
        *("RequestLimitExceeded", "userRateLimitExceeded", "BandwidthLimitExceeded", "OperationAborted"),
        *("backendError", "TryAgainLater"),
    ],
)
def test_codes_of_what_passes_are_transient_whatever_the_status(status: int, code: str) -> None:
    assert isinstance(from_status(LOCATION, "key", status, code), TransientStoreError)


@pytest.mark.promise("S202")
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "InvalidRequest", StoreProtocolError),
        (402, None, StoreProtocolError),
        (404, "NoSuchKey", ObjectNotFound),
        (403, "AccessDenied", AccessDenied),
        (403, "RequestTimeTooSkewed", CredentialsRejected),
        (503, "ExpiredToken", CredentialsRejected),
        (400, "KMS.DisabledException", AccessDenied),
        (409, "KMS.InvalidStateException", AccessDenied),
        (412, None, ObjectChanged),
        (400, "AuthorizationHeaderMalformed", InvalidParameter),
        (400, "EntityTooLarge", StoreProtocolError),
        (400, "KeyTooLongError", StoreProtocolError),
        (304, None, StoreProtocolError),
        (101, None, StoreProtocolError),
    ],
)
def test_others_do_not_pass(status: int, code: str | None, error: type[HayloftError]) -> None:
    assert type(from_status(LOCATION, "key", status, code)) is error


@pytest.mark.promise("S205")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("code", [None, "PermanentRedirect", "TemporaryRedirect", "AccessDenied", "SlowDown"])
@pytest.mark.parametrize("key", [None, "key"])
def test_a_redirect_is_one_error_whatever_is_asked_and_names_the_server(
    status: int, code: str | None, key: str | None
) -> None:
    for target, shown in (
        ("https://node-2.example.com:9000/data/key?X-Amz-Signature=abc", "https://node-2.example.com:9000"),
        ("HTTP://u:p@[::1]:80/x", "http://[::1]:80"),
    ):
        error = from_status(LOCATION, key, status, code, redirect_to=target)
        assert type(error) is StoreProtocolError
        assert f"redirects to {shown} (" in str(error)
        assert "Signature" not in str(error)
    for nowhere in (None, "", "/elsewhere", "//host/x", "ftp://host/", "http://[::1", "http://h:x/", "http://a b/"):
        error = from_status(LOCATION, key, status, code, redirect_to=nowhere)
        assert "the store redirects (" in str(error)


@pytest.mark.promise("S203")
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("User: arn:aws:iam::1:user/x is not authorized to perform: kms:Decrypt on resource: y", "lack kms:Decrypt"),
        ("is not authorized to perform: s3:GetObjectVersion", "lack s3:GetObjectVersion"),
        ("The ciphertext refers to a customer master key that does not exist", "lack kms:Decrypt on the key"),
        ("Access Denied", "grant these credentials list and read permission"),
        ("<b>", "grant these credentials"),
    ],
)
def test_a_denial_names_the_permission_that_the_store_names(message: str, shown: str) -> None:
    body = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>".encode()
    error = from_status(LOCATION, "key", 403, error_code(body), lacking=lacking_permission(body))
    assert shown in str(error)
    assert "arn:" not in str(error)


@pytest.mark.promise("S203")
def test_a_refusal_of_requests_without_credentials_says_so() -> None:
    assert "carry no credentials" in str(from_status(ANONYMOUS, None, 403, "AccessDenied"))
    assert "the volume has none" in str(from_status(ANONYMOUS, None, 401))


@pytest.mark.promise("S204")
def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s("120") == 120
    assert retry_after_s(" 0 ") == 0
    assert 50 < (retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert retry_after_s("Fri, 02 Jan 2015 03:04:05 GMT") == 0
    for odd in (None, "", "-1", "1.5", "\xb2", "soon", "Fri, 02 Jan 99999999999 03:04:05 GMT", "1e3"):
        assert retry_after_s(odd) is None
    assert retry_after_s("9" * 400) == float("inf")


@pytest.mark.promise("S207")
def test_a_bad_request_over_plain_http_may_be_one_on_a_port_of_tls() -> None:
    assert "write https://" in str(from_status(StoreLocation("http://127.0.0.1:1", "data"), None, 400))
    assert "write https://" not in str(from_status(LOCATION, None, 400))
