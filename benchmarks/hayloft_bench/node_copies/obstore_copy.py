"""Copies a prefix of a bucket into a directory by obstore: what a client can do that does nothing else. As
``python -m hayloft_bench.node_copies.obstore_copy``; a line of JSON on standard input says what."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.store import S3Store

THREADS = 16
"""Transfers at a time, as of the other programs."""
RANGE_BYTES = 8 << 20


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    store = S3Store(
        wanted["bucket"],
        prefix=wanted["prefix"],
        endpoint=wanted["endpoint"],
        access_key_id=wanted["access_key_id"],
        secret_access_key=wanted["secret_access_key"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    directory = Path(wanted["directory"])
    files = {entry["path"]: entry["size"] for page in obstore.list(store) for entry in page}
    pieces: list[tuple[str, int, int]] = []
    for path, size_bytes in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        pieces += [(path, at, min(at + RANGE_BYTES, size_bytes)) for at in range(0, size_bytes, RANGE_BYTES)]

    def fetch(piece: tuple[str, int, int]) -> None:
        path, start, stop = piece
        descriptor = os.open(directory / path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            data = obstore.get_range(store, path, start=start, end=stop)
            os.pwrite(descriptor, memoryview(data), start)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fetch, pieces):
            pass


if __name__ == "__main__":
    main()
