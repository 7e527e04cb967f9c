"""The fast clients of web servers: what they send, which answers they take, and what they leave to the other one."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.objects.http.socket_client import MAX_UNUSABLE
from csi_driver.objects.store import InFlightObject, UnusableResponse, WholeObject
from csi_driver.objects.web.web_factory import open_web
from csi_driver.objects.web.web_heads import Headers
from csi_driver.objects.web.web_socket_clients import MOST_UNTRIED
from csi_driver.objects.web.web_store import WebStore
from tests.support.forward_proxy import ForwardProxy
from tests.support.one_answer import OneAnswer
from tests.support.tls import trusted_tls
from tests.support.web_server import MODIFIED_S, WebServer, etag_of, slashless, web_server

pytestmark = pytest.mark.promise("S708")

CONTENT = bytes(range(256)) * 500
OBJECTS = {"d/x": CONTENT, "d/y": CONTENT[::-1]}


@pytest.fixture(scope="module")
def authority() -> Iterator[tuple[ssl.SSLContext, str]]:
    with trusted_tls() as found:
        yield found


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: tuple[ssl.SSLContext, str]) -> Iterator[WebServer]:
    """Every test with this server runs with both."""
    with web_server(dict(OBJECTS), tls=authority[0] if request.param == "https" else None) as server:
        yield server


@contextmanager
def opened(url: str, secrets: dict[str, str] | None = None, **options: Any) -> Iterator[WebStore]:
    """One attempt of each request, without retries."""
    given = StoreOptions(**({"request_timeout_s": 5.0, "deadline_s": 5.0} | options))
    store = open_web(DatasetUrl.parse(f"{url}/d"), given, Credentials(secrets or {}))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(server: WebServer, authority: tuple[ssl.SSLContext, str]) -> Iterator[WebStore]:
    with opened(server.url, ca_bundle_pem=authority[1] if server.tls else None) as store:
        yield store


def read(store: WebStore, key: str = "d/x", if_match: str | None = None) -> bytes:
    """As a fetch thread."""
    return b"".join(store.read_whole(key, len(CONTENT), if_match=if_match).parts)


def complete(response: InFlightObject | None) -> WholeObject:
    """Polls it as the event loop does."""
    assert response is not None
    poll = select.poll()
    try:
        while (whole := response.advance()) is None:
            poll.register(response.fileno(), response.events)
            assert poll.poll(30_000)
    except BaseException:
        response.abort()
        raise
    return whole


def ranges(server: WebServer) -> list[str | None]:
    """Of the GETs: None for those of a complete object."""
    return [headers.get("range") for method, _, headers in server.requests if method == "GET"]


# -- complete objects -------------------------------------------------------------------------------------------------


def test_complete_objects_are_requested_over_one_connection(store: WebStore, server: WebServer) -> None:
    etag = store.stat("d/x").etag
    server.requests.clear()
    assert store.begin_whole("d/x", len(CONTENT), if_match=etag) is None, "no address is cached yet"
    assert read(store, if_match=etag) == CONTENT
    connections = server.connections
    for key in ("d/x", "d/y") * 10:
        whole = complete(store.begin_whole(key, len(CONTENT), if_match=etag_of(OBJECTS[key])))
        assert b"".join(whole.parts) == OBJECTS[key]
        assert whole.checksum is None
    assert server.connections == connections
    assert ranges(server) == [None] * 21
    headers = server.requests[-1][2]
    assert headers["if-match"] == f'"{etag_of(CONTENT[::-1])}"'
    assert headers["host"] == server.url.partition("//")[2]
    assert headers["accept-encoding"] == "identity"


@pytest.mark.promise("S241")
@pytest.mark.parametrize(
    ("secrets", "sent"),
    [({"username": "u", "password": "p"}, "Basic dTpw"), ({"token": "t"}, "Bearer t"), ({}, None)],
)
def test_credentials_are_sent_with_each_request(secrets: dict[str, str], sent: str | None) -> None:
    with web_server(dict(OBJECTS)) as server, opened(server.url, secrets) as store:
        assert read(store) == CONTENT
        complete(store.begin_whole("d/x", len(CONTENT), if_match=None))
        assert b"".join(store.read_range("d/x", ByteRange(5, 10), if_match=None)) == CONTENT[5:10]
        list(store.list("d/"))
        assert {headers.get("authorization") for _, _, headers in server.requests} == {sent}
        assert {"GET", "HEAD"} <= {method for method, _, _ in server.requests}


@pytest.mark.promise("S199")
@pytest.mark.parametrize("habits", [{}, {"knows_conditions": False}, {"etag": ""}, {"etag": 'W/"{}"'}])
def test_another_version_is_not_taken(habits: dict[str, Any]) -> None:
    with web_server(dict(OBJECTS), **habits) as server, opened(server.url) as store:
        version = store.stat("d/x").etag
        assert read(store, if_match=version) == CONTENT
        server.objects["d/x"] = CONTENT[::-1]
        server.modified_s = MODIFIED_S + 1
        with pytest.raises(UnusableResponse):
            complete(store.begin_whole("d/x", len(CONTENT), if_match=version))
        with pytest.raises(ObjectChanged):
            read(store, if_match=version)
        with pytest.raises(ObjectChanged):
            list(store.read_range("d/x", ByteRange(5, 10), if_match=version))


@pytest.mark.promise("S199")
@pytest.mark.parametrize("listed", [None, f"md5 {etag_of(CONTENT)}"])
def test_the_first_answer_pins_what_the_snapshot_does_not(listed: str | None) -> None:
    with web_server(dict(OBJECTS), knows_conditions=False) as server, opened(server.url) as store:
        assert read(store, if_match=listed) == CONTENT
        whole = complete(store.begin_whole("d/x", len(CONTENT), if_match=listed))
        assert (whole.checksum is None) == (listed is None)
        server.objects["d/x"] = CONTENT[::-1]
        with pytest.raises(UnusableResponse):
            complete(store.begin_whole("d/x", len(CONTENT), if_match=listed))
        with pytest.raises(ObjectChanged):
            read(store, if_match=listed)


@pytest.mark.promise("S243")
def test_the_checksum_is_that_of_the_list() -> None:
    with web_server(dict(OBJECTS)) as server, opened(server.url) as store:
        assert read(store) == CONTENT
        listed = "sha256 " + "0" * 64
        whole = complete(store.begin_whole("d/y", len(CONTENT), if_match=listed))
        assert whole.checksum is not None
        assert (whole.checksum.algorithm, whole.checksum.value) == ("sha256", bytes(32))


@pytest.mark.parametrize(
    "habits",
    [
        {"compresses": True, "sends_length": False},
        {"sends_length": False},
        {"protocol": "HTTP/1.0"},
        {"knows_ranges": False},
        {"closes_connections": True},
        {"etag": 'W/"{}"', "knows_conditions": True},
    ],
    ids=lambda habits: next(iter(habits)),
)
def test_servers_with_habits_of_their_own_give_the_right_bytes(habits: dict[str, Any]) -> None:
    with web_server(dict(OBJECTS), **habits) as server, opened(server.url) as store:
        strong = etag_of(CONTENT)
        for _ in range(2 * MAX_UNUSABLE):
            assert read(store, if_match=strong) == CONTENT
            started = store.begin_whole("d/x", len(CONTENT), if_match=strong)
            if started is not None:
                try:
                    assert b"".join(complete(started).parts) == CONTENT
                except (UnusableResponse, ConnectionResetError):
                    continue  # a fetch thread requests it
        assert b"".join(store.read_range("d/x", ByteRange(50, 1000), if_match=strong)) == CONTENT[50:1000]


@pytest.mark.parametrize("habits", [{"sends_length": False}, {"protocol": "HTTP/1.0"}], ids=["chunked", "HTTP/1.0"])
def test_a_server_that_gives_no_usable_answer_is_asked_once_for_each_object(habits: dict[str, Any]) -> None:
    """After the first few."""
    with web_server(dict(OBJECTS), **habits) as server, opened(server.url) as store:
        for _ in range(MAX_UNUSABLE):
            assert read(store) == CONTENT
        sent = len(server.requests)
        for _ in range(5):
            assert read(store) == CONTENT
            assert store.begin_whole("d/x", len(CONTENT), if_match=None) is None
        assert len(server.requests) == sent + 5


def test_few_requests_are_sent_before_the_first_usable_answer() -> None:
    """Of a server that may give none."""
    server = OneAnswer(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
    with opened(server.address) as store:
        with pytest.raises(HayloftError):
            read(store)
        started = [store.begin_whole("d/x", len(CONTENT), if_match=None) for _ in range(MOST_UNTRIED + 20)]
        assert sum(response is not None for response in started) == MOST_UNTRIED
        for response in filter(None, started):
            response.abort()
    server.close()


@pytest.mark.promise("S709")
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_with_too_many_requests_gets_fewer(store: WebStore, server: WebServer, status: int) -> None:
    assert read(store) == CONTENT
    server.answers["/d/y"] = (status, {"Retry-After": "300"}, b"")
    started = [store.begin_whole("d/x", len(CONTENT), if_match=None) for _ in range(8)]
    for _ in range(MAX_UNUSABLE):
        with pytest.raises(UnusableResponse):
            complete(store.begin_whole("d/y", len(CONTENT), if_match=None))
    assert store.begin_whole("d/x", len(CONTENT), if_match=None) is None, "the fetch threads are fewer"
    sent = len(server.requests)
    with pytest.raises(TransientStoreError) as caught:
        read(store, "d/y")
    assert 290 < (caught.value.retry_after_s or 0) <= 300
    assert len(server.requests) == sent, "the pause is kept"
    for response in started:
        assert b"".join(complete(response).parts) == CONTENT
    assert store.begin_whole("d/x", len(CONTENT), if_match=None) is None, "answers to requests of before end no pause"
    assert read(store) == CONTENT
    small = store._fast.small if store._fast is not None else None
    assert small is not None
    small._cooldown_until = 0.0
    again = [store.begin_whole("d/x", len(CONTENT), if_match=None) for _ in range(MOST_UNTRIED + 5)]
    assert sum(response is not None for response in again) == MOST_UNTRIED
    for response in filter(None, again):
        response.abort()


@pytest.mark.promise("S709")
def test_one_object_that_is_refused_slows_no_other(store: WebStore, server: WebServer) -> None:
    server.answers["/d/y"] = (503, {}, b"")
    for _ in range(2 * MAX_UNUSABLE):
        assert read(store) == CONTENT
        with pytest.raises(UnusableResponse):
            complete(store.begin_whole("d/y", len(CONTENT), if_match=None))
        assert b"".join(complete(store.begin_whole("d/x", len(CONTENT), if_match=None)).parts) == CONTENT


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, CredentialsRejected), (403, AccessDenied), (404, ObjectNotFound), (503, TransientStoreError)],
)
def test_a_clear_refusal_is_not_asked_for_again(
    store: WebStore, server: WebServer, status: int, kind: type[HayloftError]
) -> None:
    server.answers["/d/y"] = (status, {}, b"no")
    with pytest.raises(kind) as caught:
        read(store, "d/y")
    assert len(server.of("GET")) == 1
    with pytest.raises(kind) as by_range:
        list(store.read_range("d/y", ByteRange(0, 5), if_match=None))
    assert str(by_range.value) == str(caught.value)


@pytest.mark.promise("S240")
def test_a_redirect_is_not_followed(store: WebStore, server: WebServer) -> None:
    assert read(store) == CONTENT
    server.answers["/d/y"] = (302, {"Location": "http://elsewhere.example/d/y"}, b"")
    with pytest.raises(UnusableResponse):
        complete(store.begin_whole("d/y", len(CONTENT), if_match=None))
    for attempt in (lambda: read(store, "d/y"), lambda: list(store.read_range("d/y", ByteRange(0, 5), if_match=None))):
        with pytest.raises(StoreProtocolError, match=r"redirects to http://elsewhere\.example "):
            attempt()


@pytest.mark.parametrize("ends", [True, False], ids=["closed", "silent"])
def test_half_a_body_is_an_error_that_a_retry_may_mend(ends: bool) -> None:
    head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\nETag: "e"\r\n\r\n'.encode()
    server = OneAnswer(head + CONTENT[:1000], ends=ends, falls_silent=not ends)
    with opened(server.address, request_timeout_s=0.3, deadline_s=0.3) as store:
        with pytest.raises(TransientStoreError):
            read(store, if_match="e")
        with pytest.raises(TransientStoreError):
            list(store.read_range("d/x", ByteRange(0, len(CONTENT)), if_match="e"))
    server.close()


def test_a_header_that_cannot_be_sent_is_not_sent() -> None:
    with web_server(dict(OBJECTS)) as server, opened(server.url, {"token": "t\r\nX-Other: y"}) as store:
        assert store.begin_whole("d/x", len(CONTENT), if_match=None) is None
        with pytest.raises((HayloftError, ValueError)):
            read(store)
        assert all("x-other" not in headers for _, _, headers in server.requests)


def test_a_version_that_no_header_can_hold_is_not_sent() -> None:
    with web_server(dict(OBJECTS)) as server, opened(server.url) as store:
        assert read(store) == CONTENT
        version = "a\r\nX-Other: y"
        assert store.begin_whole("d/x", len(CONTENT), if_match=version) is None
        with pytest.raises((HayloftError, ValueError)):
            read(store, if_match=version)
        assert all("x-other" not in headers for _, _, headers in server.requests)


def test_a_dot_at_the_end_of_a_host_is_for_the_resolver_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: resolve(host.rstrip("."), *more, **named))
    with web_server(dict(OBJECTS)) as server:
        port = server.url.rpartition(":")[2]
        with opened(f"http://localhost.:{port}") as store:
            assert read(store) == CONTENT
            assert b"".join(store.read_range("d/x", ByteRange(0, 5), if_match=None)) == CONTENT[:5]
            assert {headers["host"] for _, _, headers in server.requests} == {f"localhost:{port}"}


def test_through_a_proxy_every_request_goes_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(dict(OBJECTS)) as server, ForwardProxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with opened(server.url) as store:
            assert read(store) == CONTENT
            assert store.begin_whole("d/x", len(CONTENT), if_match=None) is None
            assert [len(page) for page in store.list("d/")] == [2]
            assert len(proxy.targets) == len(server.requests) >= 4


# -- listings ---------------------------------------------------------------------------------------------------------


def listed(store: WebStore) -> dict[str, tuple[int, str | None]]:
    found = {}
    for page in store.list("d/"):
        for key, size_bytes, etag in zip(page.keys, page.sizes_bytes, page.etags, strict=True):
            found[str(key)] = (int(size_bytes), etag)
    return found


MANY = {f"d/{number:04}": b"x" * (1 + number % 7) for number in range(300)}
EXPECTED = {key: (len(content), etag_of(content)) for key, content in MANY.items()}


def test_a_listing_asks_for_each_object_once_over_few_connections(store: WebStore, server: WebServer) -> None:
    server.objects = dict(MANY)
    assert listed(store) == EXPECTED
    assert sorted(server.of("HEAD")) == [f"/{key}" for key in sorted(MANY)]
    assert server.connections <= 20


@pytest.mark.parametrize(
    "habits",
    [
        {},
        {"refuses_head": 405},
        {"refuses_head": 403},
        {"refuses_head": 503, "expected": "nothing"},
        {"protocol": "HTTP/1.0"},
        {"closes_connections": True},
        {"sends_length": False},
        {"etag": 'W/"{}"'},
    ],
    ids=repr,
)
def test_any_server_is_listed_as_by_single_requests(habits: dict[str, Any]) -> None:
    habits = dict(habits)
    fails = habits.pop("expected", "") == "nothing"
    with web_server(dict(MANY), **habits) as server, opened(server.url, deadline_s=0.5) as store:
        if fails:
            with pytest.raises(HayloftError):
                listed(store)
            return
        weak = "W/" if "etag" in habits else ""
        assert listed(store) == {key: (size, f"{weak}{etag}") for key, (size, etag) in EXPECTED.items()}


def test_what_is_a_directory_after_all_is_walked() -> None:
    objects = {f"d/{name}": b"1" for name in ("a", "sub/b", "sub/deep/c")}
    with web_server(dict(objects), index=slashless) as server, opened(server.url) as store:
        assert set(listed(store)) == set(objects)


@contextmanager
def asking(*answer: bytes, **habits: Any) -> Iterator[tuple[Callable[[], list[Headers | None]], OneAnswer]]:
    """HEAD of 200 objects of a server that answers all requests alike."""
    server = OneAnswer(*answer, **habits)
    keys = [f"d/{number}" for number in range(200)]
    with opened(server.address, request_timeout_s=0.5, deadline_s=0.5) as store, ThreadPoolExecutor(4) as executor:
        fast = store._fast
        assert fast is not None
        yield lambda: fast.heads.ask(keys, executor, 4), server
    server.close()


def test_a_server_that_stops_answering_head_costs_one_time_out() -> None:
    """Not one for each request in flight, nor for each page of a listing."""
    with asking(b"HTTP/1.1 200 OK\r\n") as (ask, server):
        began_s = time.monotonic()
        assert ask() == ask() == ask() == [None] * 200
        assert time.monotonic() - began_s < 4 * 0.5
        assert server.requests <= 4


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        (LENGTH + b"hello",),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", LENGTH),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH,),
    ],
    ids=["a body", "early hints", "continue"],
)
def test_what_comes_after_a_head_is_no_answer_to_the_next_request(answer: tuple[bytes, ...]) -> None:
    with asking(*answer) as (ask, server):
        assert {headers["content-length"] for headers in ask() if headers is not None} <= {"5"}
        assert server.connections >= server.requests


def test_a_server_that_closes_each_connection_is_asked_by_more_threads() -> None:
    """Which make connections side by side."""
    with asking(LENGTH, ends=True) as (ask, server):
        assert ask()[-1] is None
        assert server.requests < 50


def test_few_objects_are_asked_for_one_by_one() -> None:
    with web_server(dict(OBJECTS)) as server, opened(server.url) as store:
        assert len(listed(store)) == 2
        assert len(server.of("HEAD")) == 2


def test_no_connection_stays_open_after_a_listing(store: WebStore, server: WebServer) -> None:
    server.objects = dict(MANY)
    assert listed(store) == EXPECTED
    assert store._fast is not None
    assert not store._fast.heads._idle
