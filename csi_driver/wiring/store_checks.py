"""What ``hayloft doctor URL`` asks a store: name, connection, clock, listing, and one object."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    ObjectArchived,
)
from csi_driver.model.tracebacks import summary
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.wiring.node_checks import CheckResult, Level

CONNECT_S = 5.0

SKEW_S, TOO_MUCH_SKEW_S = 60.0, 900.0
"""S3 refuses requests whose time differs by 15 minutes from its own (RequestTimeTooSkewed)."""

_SLOW_S = 1.0
"""A first byte that takes longer: stores that work send it within some tens of milliseconds."""

_PORTS = {"http": 80, "https": 443}


def store_checks(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> Iterator[CheckResult]:
    """Results as they come. Sends some requests, and reads one byte of one object; blocks up to ``deadline_s`` of the
    options for each. Raises RequestError for a URL or an option that is not allowed."""
    try:
        store = open_store(url, options, credentials)
    except CredentialsRejected as error:
        yield _failed("credentials", error)
        return
    try:
        if urlsplit(store.endpoint).scheme in _PORTS:
            found = list(_connection_checks(store.endpoint))
            yield from found
            if any(result.level is Level.PROBLEM and result.check == "name" for result in found):
                return
        yield from _listing_checks(store, url)
    finally:
        store.close()


def _connection_checks(endpoint: str) -> Iterator[CheckResult]:
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        addresses = list(
            dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        )
    except OSError as error:
        yield CheckResult(
            "name", Level.PROBLEM, f"{host} has no address: {error.strerror}", "Correct the endpoint, or the node's DNS"
        )
        return
    yield CheckResult("name", Level.OK, f"{host} is {', '.join(addresses[:3])}{', …' if len(addresses) > 3 else ''}")
    yield from _clock_checks(endpoint, host, port)


def _clock_checks(endpoint: str, host: str, port: int) -> Iterator[CheckResult]:
    """By the Date of an answer; which status it has does not matter."""
    secure = endpoint.startswith("https")
    connection = (
        HTTPSConnection(host, port, timeout=CONNECT_S) if secure else HTTPConnection(host, port, timeout=CONNECT_S)
    )
    begun_s = time.monotonic()
    try:
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        date = answer.getheader("Date")
        took_s = time.monotonic() - begun_s
    except (OSError, HTTPException, ssl.SSLError) as error:
        # Not the last word: the driver's own client may have a proxy, or trust another certificate.
        yield CheckResult("connection", Level.WARNING, f"{endpoint}: {summary(error)}", "See the result of the listing")
        return
    finally:
        connection.close()
    slow = took_s > _SLOW_S
    yield CheckResult(
        "connection",
        Level.WARNING if slow else Level.OK,
        f"{endpoint} answers within {1000 * took_s:.0f} ms",
        "Look at the network to the store, and at its load" if slow else "",
    )
    if date is None:
        return
    try:
        skew_s = parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return
    text = f"the store's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the node's"
    if abs(skew_s) > SKEW_S:
        level = Level.PROBLEM if abs(skew_s) > TOO_MUCH_SKEW_S else Level.WARNING
        remedy = "Set the node's clock (chrony, systemd-timesyncd); S3 refuses requests from 15 minutes on"
        yield CheckResult("clock", level, text, remedy)
    else:
        yield CheckResult("clock", Level.OK, text)


def _listing_checks(store: ObjectStore, url: DatasetUrl) -> Iterator[CheckResult]:
    begun_s = time.monotonic()
    try:
        page = next(iter(store.list(url.prefix)), None)
    except HayloftError as error:
        yield _failed("listing", error)
        return
    took_s = time.monotonic() - begun_s
    if page is None or not len(page):
        yield CheckResult("listing", Level.PROBLEM, f"{url} has no object", "Correct the prefix of the URL")
        return
    yield CheckResult("listing", Level.OK, f"{url} lists its first {len(page):,} objects in {1000 * took_s:.0f} ms")
    if page.archived:
        yield CheckResult(
            "archive",
            Level.WARNING,
            f"{len(page.archived):,} of its first {len(page):,} objects lie in an archive, and cannot be read",
            "Restore them in the store, or exclude them",
        )
    readable = next(
        (
            (key, size)
            for key, size in zip(page.keys, page.sizes_bytes, strict=True)
            if size and key not in page.archived
        ),
        None,
    )
    if readable is not None:
        yield _read_check(store, readable[0])


def _read_check(store: ObjectStore, key: str) -> CheckResult:
    begun_s = time.monotonic()
    try:
        for _ in store.read_range(key, ByteRange(0, 1), if_match=None):
            pass
    except HayloftError as error:
        return _failed("read", error)
    took_s = time.monotonic() - begun_s
    slow = took_s > _SLOW_S
    remedy = "Look at the network to the store, and at its load" if slow else ""
    level = Level.WARNING if slow else Level.OK
    return CheckResult("read", level, f"the first byte of an object came within {1000 * took_s:.0f} ms", remedy)


_REMEDIES: dict[type[HayloftError], str] = {
    AccessDenied: "Grant the credentials s3:ListBucket and s3:GetObject, or what the store calls them",
    BucketNotFound: "Correct the bucket, or the endpoint and region",
    CredentialsRejected: "Renew the credentials; here they come from the environment, in a volume from its Secret",
    EndpointUnreachable: "Check endpoint, network, proxy and certificates",
    ObjectArchived: "Restore the object in the store",
}


def _failed(check: str, error: HayloftError) -> CheckResult:
    remedy = next((_REMEDIES[base] for base in type(error).__mro__ if base in _REMEDIES), "Check the store")
    return CheckResult(check, Level.PROBLEM, str(error), remedy)
