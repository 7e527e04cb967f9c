"""Uploads a dataset into a bucket: small files as the AWS SDKs have done it since 2025, with a CRC that the store
keeps; large ones in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from obstore.store import S3Store

from hayloft_bench.results.model import DatasetFile
from hayloft_lab.buckets import client_of

UPLOADS_AT_ONCE = 8
IN_ONE_PIECE_BYTES = 4 << 20


def upload(
    root: Path,
    files: Sequence[DatasetFile],
    *,
    endpoint: str,
    access_key_id: str,
    secret_access_key: str,
    bucket: str,
    prefix: str,
    advance: Callable[[int], None],
) -> None:
    """``advance`` is called with the size of each finished file, from any thread."""
    store = S3Store(
        bucket,
        prefix=prefix.rstrip("/") or None,
        endpoint=endpoint,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )

    sdk = client_of(endpoint, access_key_id, secret_access_key)

    def put(file: DatasetFile) -> None:
        if file.size_bytes <= IN_ONE_PIECE_BYTES:
            key = f"{prefix.rstrip('/')}/{file.path}".lstrip("/")
            sdk.put_object(Bucket=bucket, Key=key, Body=(root / file.path).read_bytes())
        else:
            store.put(file.path, root / file.path)
        advance(file.size_bytes)

    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        futures = [pool.submit(put, file) for file in files]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            sdk.close()
