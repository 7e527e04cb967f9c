"""The store by s3fs, where its libraries do not keep to what they promise."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import fsspec.asyn
import pytest

from csi_driver.model.errors import TransientStoreError
from csi_driver.objects.fsspec import s3fs_store
from csi_driver.objects.fsspec.s3fs_store import S3fsStore
from csi_driver.objects.store_location import StoreLocation


@pytest.mark.promise("S209")
def test_a_call_that_takes_no_notice_of_its_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3fs_store, "GRACE_S", 0.1)
    released = asyncio.Event()

    async def stuck(*_: Any, **__: Any) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    loop = fsspec.asyn.get_loop()
    store = S3fsStore(SimpleNamespace(_call_s3=stuck, loop=loop), StoreLocation("http://store", "bucket", False), 0.05)
    try:
        with pytest.raises(TransientStoreError):
            store.list_page("", None)
    finally:
        loop.call_soon_threadsafe(released.set)
