"""Puts the files of a dataset into a bucket."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from obstore.store import S3Store

from csi_driver.demo.dataset import DatasetFile

UPLOADS_AT_ONCE = 8


def upload(
    root: Path,
    files: tuple[DatasetFile, ...],
    *,
    endpoint: str,
    access_key_id: str,
    secret_access_key: str,
    bucket: str,
    prefix: str,
    advance: Callable[[int], None],
) -> None:
    """``advance`` is told the bytes of each finished file, from any thread."""
    store = S3Store(
        bucket,
        prefix=prefix.rstrip("/") or None,
        endpoint=endpoint,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def put(file: DatasetFile) -> None:
        store.put(file.path, root / file.path)
        advance(file.size_bytes)

    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        futures = [pool.submit(put, file) for file in files]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
