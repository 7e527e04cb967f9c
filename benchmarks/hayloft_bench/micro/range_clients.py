"""Ranges of 8 MiB of S3, Google, Azure and a web server: the driver's own client beside obstore alone.

Run it as ``python -m hayloft_bench.micro.range_clients``; it needs loopback alone. Server and clients are processes of
their own; the pairs alternate. It prints GB/s and seconds of processor time for each GB, of the client's process.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RANGE_BYTES = 8 << 20
OBJECT_BYTES = 256 << 20
OBSTORE_PIECE_BYTES = 512 << 10
"""256 KiB to 1 MiB make no difference; 2 MiB costs it a quarter."""
GENERATION = "17"
_KINDS = ("own", "obstore")
_KEYS = {
    "s3": {"access_key_id": "a", "secret_access_key": "b"},
    "az": {"account_name": "acct", "account_key": "eA=="},
}
"""Secrets by scheme; Google is read anonymously, as obstore would ask Google itself for a token."""


def serve(tls: ssl.SSLContext | None) -> None:
    """Answers every GET with the requested range of one object, until the process is killed. Prints its port."""
    data = memoryview(os.urandom(1 << 20) * (OBJECT_BYTES >> 20))

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        received = b""
        while piece := connection.recv(65536):
            received += piece
            head, end, rest = received.partition(b"\r\n\r\n")
            if not end:
                continue
            received = rest
            found = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            assert found is not None
            start, stop = int(found[1]), int(found[2]) + 1
            connection.sendall(
                f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{OBJECT_BYTES}\r\n"
                f'Content-Length: {stop - start}\r\nETag: "tag"\r\nx-goog-generation: {GENERATION}\r\n'
                "Last-Modified: Sat, 28 Nov 2026 20:00:00 GMT\r\n\r\n".encode()
            )
            connection.sendall(data[start:stop])

    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


class _ObstoreAlone:
    """obstore's store in the form of the driver's."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def read_range(self, key: str, part: Any, *, if_match: str) -> Iterator[Any]:
        options = {"range": (part.start, part.stop), "if_match": f'"{if_match}"'}
        return iter(self._store.get(key, options=options).stream(min_chunk_size=OBSTORE_PIECE_BYTES))


def open_client(kind: str, url: str, endpoint: str, authority: str | None) -> Any:
    """``own``: as a volume of that URL is opened; ``obstore``: obstore alone, with the same options."""
    from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
    from csi_driver.objects.obstore import obstore_factory
    from csi_driver.objects.store_factory import open_store

    parsed = DatasetUrl.parse(url)
    is_bucket = parsed.scheme in ("s3", "gs", "az")
    options = StoreOptions(
        endpoint=endpoint if is_bucket else None, ca_bundle_pem=authority, anonymous=parsed.scheme == "gs"
    )
    keys = Credentials(_KEYS.get(parsed.scheme, {}))
    if kind == "own":
        return open_store(parsed, options, keys)
    if is_bucket:
        return _ObstoreAlone(obstore_factory.obstore_of(parsed, options, keys)[0])
    from obstore.store import HTTPStore

    client = obstore_factory.client_options(options, endpoint)
    return _ObstoreAlone(HTTPStore(endpoint, client_options=client))


def read(store: Any, version: str, threads: int, ranges: int) -> tuple[float, float]:
    """GB/s and processor seconds for each GB."""
    from csi_driver.model.chunk import ByteRange

    def get(number: int) -> None:
        start = number * RANGE_BYTES % OBJECT_BYTES
        pieces = store.read_range("key", ByteRange(start, start + RANGE_BYTES), if_match=version)
        assert sum(map(len, pieces)) == RANGE_BYTES

    def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            get(number)

    work(iter(range(8)))  # connections are made
    numbers = iter(range(ranges))  # next() of it is one step
    readers = [threading.Thread(target=work, args=(numbers,)) for _ in range(threads)]
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    gigabytes = ranges * RANGE_BYTES / 1e9
    return gigabytes / seconds, processor_s / gigabytes


def main() -> None:
    """One line for each kind of store and number of threads: medians of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--ranges", type=int, default=100)
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--certificate", type=Path, help="PEM file with a certificate for 127.0.0.1 and its key")
    parser.add_argument("--authority", type=Path, help="PEM file that it is trusted by")
    arguments = parser.parse_args()
    if arguments.server:
        tls = None
        if arguments.certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(arguments.certificate)
        serve(tls)
    elif arguments.client:
        sys.setswitchinterval(0.0005)  # as in wiring/cache_process.py
        kind, url, endpoint, threads = arguments.client
        authority = arguments.authority.read_text() if arguments.authority else None
        version = GENERATION if kind == "own" and url.startswith("gs:") else "tag"
        print(*read(open_client(kind, url, endpoint, authority), version, int(threads), arguments.ranges))
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    this = [sys.executable, "-m", "hayloft_bench.micro.range_clients"]
    secure = [f"--certificate={arguments.certificate}"] if arguments.certificate else []
    trust = [f"--authority={arguments.authority}"] if arguments.authority else []
    with subprocess.Popen([*this, "--server", *secure], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        endpoint = f"{'https' if secure else 'http'}://127.0.0.1:{int(server.stdout.readline())}"
        for url in ("s3://data", "gs://data", "az://data", f"{endpoint}/x"):
            for threads in (1, 4):
                found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
                for pair in range(arguments.pairs):
                    for kind in _KINDS if pair % 2 else reversed(_KINDS):
                        client = ["--client", kind, url, endpoint, str(threads), f"--ranges={arguments.ranges}", *trust]
                        output = subprocess.run([*this, *client], check=True, capture_output=True, text=True).stdout
                        rate, cost = map(float, output.split())
                        found[kind].append((rate, cost))
                shown = (
                    f"{kind} {statistics.median(rate for rate, _ in values):.2f} GB/s "
                    f"{statistics.median(cost for _, cost in values):.2f} s/GB"
                    for kind, values in found.items()
                )
                print(f"{url.split(':')[0]}, {threads} threads: {', '.join(shown)}")
        server.kill()


if __name__ == "__main__":
    main()
