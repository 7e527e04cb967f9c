"""Listings without an end, by each client: continuation tokens that repeat themselves, at once or in a circle, end the
listing with an error, page after page and in ranges."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import StoreProtocolError
from csi_driver.objects.parallel_listing import KeysNotInOrder, range_lister
from csi_driver.objects.store_factory import open_store

PAGES = 9
"""More than are listed before a listing is divided."""


class EndlessServer(ThreadingHTTPServer):
    """Nine pages in the form that each store has, and then the ``target``-th again, for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = 0
        self.requests = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EndlessServer

    def do_GET(self) -> None:
        self.server.requests += 1
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        token = next((query[name] for name in ("continuation-token", "pageToken", "marker") if name in query), "0")
        number = int(token)
        following = number + 1 if number < PAGES - 1 else self.server.target
        keys = [f"data/{number:03d}-{row}" for row in range(3)]
        if "comp" in query:
            kind, body = "application/xml", _azure(keys, following)
        elif "/storage/v1/b/" in self.path:
            kind, body = "application/json", _google(keys, following)
        else:
            kind, body = "application/xml", _s3(keys, following)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted."""


def _s3(keys: list[str], following: int) -> str:
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;x&quot;</ETag>"
        "<Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><Prefix>data/</Prefix><KeyCount>3</KeyCount><IsTruncated>true</IsTruncated>"
        f"<NextContinuationToken>{following}</NextContinuationToken>{entries}</ListBucketResult>"
    )


def _google(keys: list[str], following: int) -> str:
    items = [{"name": key, "size": "1", "generation": "1", "updated": "2026-01-02T03:04:05.678Z"} for key in keys]
    return json.dumps({"kind": "storage#objects", "items": items, "nextPageToken": str(following)})


def _azure(keys: list[str], following: int) -> str:
    properties = (
        "<Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified><Etag>0x8D</Etag><Content-Length>1"
        "</Content-Length>"
    )
    blobs = "".join(f"<Blob><Name>{key}</Name><Properties>{properties}</Properties></Blob>" for key in keys)
    return (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x" ContainerName="b">'
        f"<Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
    )


@pytest.fixture(scope="module")
def server() -> Iterator[EndlessServer]:
    made = EndlessServer()
    yield made
    made.shutdown()
    made.server_close()


CLIENTS = {
    "s3": ("s3://b/data", {}, {"access_key_id": "A", "secret_access_key": "x"}),
    "s3fs": ("s3://b/data", {"backend": "s3fs"}, {"access_key_id": "A", "secret_access_key": "x"}),
    "google": ("gs://b/data", {"anonymous": True}, {}),
    "azure": ("az://b/data", {}, {"account_name": "a", "account_key": "eA=="}),
}


@pytest.mark.promise("S639")
@pytest.mark.parametrize("target", [PAGES - 1, 4, 0], ids=["itself", "a circle", "the first"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_listing_whose_tokens_repeat_themselves_ends_with_an_error(
    server: EndlessServer, client: str, target: int
) -> None:
    url, options, secrets = CLIENTS[client]
    server.target, server.requests = target, 0
    dataset = DatasetUrl.parse(url)
    made = StoreOptions(endpoint=server.endpoint, region="us-east-1", addressing_style="path", **options)  # type: ignore[arg-type]
    store = open_store(dataset, made, Credentials(dict(secrets)))
    try:
        with pytest.raises(StoreProtocolError, match="the listing has no end"):
            list(store.list(dataset.prefix))
        assert server.requests <= 2 * PAGES + 2
        ranges = range_lister(store)
        assert (ranges is not None) is (client in ("s3", "google"))
        if ranges is not None:
            # The manifest's builder then lists page after page, as above.
            with pytest.raises((StoreProtocolError, KeysNotInOrder)):
                list(ranges.list_in_ranges(dataset.prefix))
            assert server.requests <= 8 * PAGES
    finally:
        store.close()
