"""Bodies of web servers: as they are received, and where they are continued."""

from __future__ import annotations

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import ObjectChanged, StoreUnavailable, TransientStoreError
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.web import web_open_bodies
from tests.support.one_answer import OneAnswer
from tests.support.web_server import web_server

CONTENT = bytes(range(256)) * 1000


def store_at(url: str, **options: object) -> ObjectStore:
    return open_store(DatasetUrl.parse(f"{url}/d"), StoreOptions(deadline_s=1, **options), Credentials())  # type: ignore[arg-type]


def read(store: ObjectStore, start: int, stop: int, if_match: str | None = None) -> bytes:
    return b"".join(store.read_range("d/x", ByteRange(start, stop), if_match=if_match))


@pytest.mark.promise("S199")
def test_a_whole_body_is_continued_where_it_was_left() -> None:
    with web_server({"d/x": CONTENT}, knows_ranges=False) as server:
        store = store_at(server.url)
        for start in range(0, len(CONTENT), 50_000):
            stop = min(start + 50_000, len(CONTENT))
            assert read(store, start, stop) == CONTENT[start:stop]
        assert len(server.of("GET")) == 2, "the first answer has no range, the second one is continued"
        assert read(store, 10, 20) == CONTENT[10:20]
        assert read(store, 5, 10) == CONTENT[5:10], "a body is not read backwards"
        assert len(server.of("GET")) == 6
        store.close()


@pytest.mark.promise("S199")
def test_a_body_that_was_left_long_ago_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_open_bodies, "KEPT_S", -1.0)
    with web_server({"d/x": CONTENT}, knows_ranges=False) as server:
        store = store_at(server.url)
        assert read(store, 0, 10) + read(store, 10, 20) == CONTENT[:20]
        assert len(server.of("GET")) == 4, "each is asked for twice until the server is known to have no ranges"
        store.close()


@pytest.mark.promise("S199")
def test_a_continued_body_is_that_of_its_version() -> None:
    with web_server({"d/x": CONTENT}, knows_ranges=False) as server:
        store = store_at(server.url)
        old = store.stat("d/x").etag
        assert read(store, 0, 10, old) == CONTENT[:10]
        server.objects["d/x"] = CONTENT[::-1]
        new = store.stat("d/x").etag
        assert read(store, 10, 20, new) == CONTENT[::-1][10:20]
        assert read(store, 10, 20, old) == CONTENT[10:20]
        with pytest.raises(ObjectChanged):
            read(store, 0, 20, old)
        store.close()


@pytest.mark.promise("S199")
def test_a_shorter_object_is_another_version() -> None:
    for habits in ({}, {"knows_ranges": False}, {"knows_ranges": False, "sends_length": False}):
        with web_server({"d/x": CONTENT[:100]}, etag="", sends_modified=False, **habits) as server:
            store = store_at(server.url)
            with pytest.raises(ObjectChanged):
                read(store, 50, 150)
            store.close()


def test_what_was_received_before_a_failure_is_not_received_again() -> None:
    head = b"HTTP/1.1 206 X\r\nContent-Length: 100\r\nContent-Range: bytes 0-99/100\r\n\r\n"
    server = OneAnswer(head + b"x" * 40, ends=True)
    store = without_retries(store_at(server.address))
    pieces = store.read_range("d/x", ByteRange(0, 100), if_match=None)
    assert bytes(next(pieces)) == b"x" * 40
    with pytest.raises(TransientStoreError, match="the connection broke"):
        next(pieces)
    server.close()


def test_a_server_that_trickles_what_is_to_be_skipped_is_left_at_the_deadline() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Length: 100000000\r\n\r\n"
    server = OneAnswer(head, *[b"x"] * 5000)
    store = store_at(server.address, request_timeout_s=0.3)
    with pytest.raises(StoreUnavailable, match="too slowly"):
        read(store, 99_000_000, 99_000_001)
    store.close()
    server.close()
