"""An S3 server on loopback that lists a bucket of any size without objects: it makes each page when it is requested.

``catalog_scale`` and ``listing_rate`` start it. ``python -m hayloft_bench.micro.listing_server --objects N --layout
classes --delay-ms 50`` prints its port and serves until its standard input is closed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from bisect import bisect_right
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

from hayloft_bench.micro.synthetic_listing import LAYOUTS, PAGE_OBJECTS, PREFIX, etag_of, key_of, size_of

_HEAD = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


@lru_cache(maxsize=20_000)  # what the server costs is not to be measured; both runs of a pair find most of it
def page_xml(start: int, objects: int, layout: str, *, encoded: bool) -> bytes:
    """The answer to ListObjectsV2 for the objects from ``start`` on; the token is the number of the next one."""
    stop = min(start + PAGE_OBJECTS, objects)
    entries = []
    for number in range(start, stop):
        key = quote(key_of(number, layout)) if encoded else key_of(number, layout)
        entries.append(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{etag_of(number)}&quot;</ETag><Size>{size_of(number)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    more = stop < objects
    tail = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
    kind = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        f"{_HEAD}<Name>scale</Name><Prefix>{PREFIX}</Prefix><MaxKeys>{PAGE_OBJECTS}</MaxKeys>{kind}"
        f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>{'true' if more else 'false'}</IsTruncated>{tail}"
        f"{''.join(entries)}</ListBucketResult>"
    ).encode()


def _first_after(key: str, objects: int, layout: str) -> int:
    return bisect_right(range(objects), key, key=lambda number: key_of(number, layout))


def _handler(objects: int, layout: str, delay_s: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start = int(query.get("continuation-token", ["0"])[0])
            if "start-after" in query:
                start = _first_after(query["start-after"][0], objects, layout)
            time.sleep(delay_s)
            body = page_xml(start, objects, layout, encoded=query.get("encoding-type") == ["url"])
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, required=True)
    parser.add_argument("--layout", choices=LAYOUTS, default="classes")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before each answer")
    arguments = parser.parse_args()
    handler = _handler(arguments.objects, arguments.layout, arguments.delay_ms / 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
