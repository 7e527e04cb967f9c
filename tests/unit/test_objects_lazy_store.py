"""A store that is opened when it is first used."""

from __future__ import annotations

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import CredentialsRejected
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.store import ObjectStore
from hayloft_lab.memory_store import MemoryStore


class Opening:
    """Fails while ``error`` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.opened = 0

    def __call__(self) -> ObjectStore:
        if self.error is not None:
            raise self.error
        self.opened += 1
        return MemoryStore({"a": b"bytes"})


def read(store: ObjectStore) -> bytes:
    return b"".join(store.read_range("a", ByteRange(0, 5), if_match=None))


def test_a_lazy_store_is_opened_at_its_first_use_and_once() -> None:
    opening = Opening()
    store = LazyStore("https://there", "bucket", opening)
    assert (store.endpoint, store.bucket, opening.opened) == ("https://there", "bucket", 0)
    store.close()
    assert read(store) == read(store) == b"bytes"
    assert store.stat("a").size_bytes == 5
    assert [list(page.keys) for page in store.list("")] == [["a"]]
    assert opening.opened == 1


def test_opening_is_retried_at_the_next_use() -> None:
    opening = Opening()
    store = LazyStore("https://there", "bucket", opening)
    opening.error = CredentialsRejected("no identity")
    for _ in range(2):
        with pytest.raises(CredentialsRejected):
            read(store)
    opening.error = None
    assert read(store) == b"bytes"
