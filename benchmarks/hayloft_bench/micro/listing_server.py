"""An S3 server on loopback that lists a bucket of any size without objects: it makes each page when it is requested.

``catalog_scale`` and ``listing_rate`` start it. ``python -m hayloft_bench.micro.listing_server --objects N --layout
classes --delay-ms 50`` prints its port and serves until its standard input is closed; then it prints the number of
requests and its processor time in seconds. One thread; each answer is sent so long after its request, by a timer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from urllib.parse import parse_qs, urlsplit

from hayloft_bench.micro.listing_pages_of_bytes import PagesOfBytes
from hayloft_bench.micro.synthetic_listing import LAYOUTS

_END_OF_HEAD = b"\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"


class _Connection(asyncio.Protocol):
    """Answers one request after the other, whatever it asks for, with a page of the listing."""

    answers = 0
    """Of all connections."""

    def __init__(self, pages: PagesOfBytes, delay_s: float) -> None:
        self._pages, self._delay_s = pages, delay_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while _END_OF_HEAD in self._received:
            head, _, self._received = self._received.partition(_END_OF_HEAD)
            target = head.split(b" ", 2)[1].decode()
            asyncio.get_running_loop().call_later(self._delay_s, self._answer, target)

    def _answer(self, target: str) -> None:
        query = parse_qs(urlsplit(target).query)
        start = int(query.get("continuation-token", ["0"])[0])
        if "start-after" in query:
            start = self._pages.first_after(query["start-after"][0])
        body = self._pages.page(start)
        _Connection.answers += 1
        self._transport.writelines([_HEAD % len(body), body])


async def _serve(pages: PagesOfBytes, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(pages, delay_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, required=True)
    parser.add_argument("--layout", choices=LAYOUTS[:2], default="classes")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before each answer")
    arguments = parser.parse_args()
    asyncio.run(_serve(PagesOfBytes(arguments.objects, arguments.layout), arguments.delay_ms / 1000))
    print(f"{_Connection.answers} {time.process_time():.1f}", flush=True)


if __name__ == "__main__":
    main()
