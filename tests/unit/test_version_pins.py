"""Pins of versions beside object files."""

from __future__ import annotations

from typing import Any, cast

import pytest

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import ObjectChanged, StoreUnavailable
from csi_driver.model.snapshot import ObjectInfo, ObjectVersion
from csi_driver.objects.store import ObjectStore
from csi_driver.reading import version_pins
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.version_pins import VersionPins

VERSION = ObjectVersion("domain", "http://store", "bucket", "key", None, CHUNK_BYTES, 10**9)


class Store:
    """Answers HEAD with a strong ETag, until it is down."""

    def __init__(self) -> None:
        self.requests = 0
        self.etag, self.down = "first", False

    def stat(self, key: str) -> ObjectInfo:
        self.requests += 1
        if self.down:
            raise StoreUnavailable("down")
        return ObjectInfo(key, VERSION.size_bytes, self.etag, VERSION.mtime_ns)


class File:
    """The attribute of an object file."""

    def __init__(self) -> None:
        self.etag: str | None = None

    def pinned_etag(self) -> str | None:
        return self.etag

    def pin_etag(self, etag: str) -> None:
        self.etag = etag


def pinned(pins: VersionPins, store: Store, file: File | None) -> str:
    typed = cast(ObjectStore, store)
    return pins.pin(ObjectSource(VERSION, typed), typed, cast(Any, file))


def test_the_first_answer_is_the_pin_of_all_that_follow() -> None:
    pins, store, file = VersionPins(lambda: None), Store(), File()
    assert pinned(pins, store, None) == "first"
    store.etag = "second"
    assert pinned(pins, store, file) == file.etag == "first"
    assert store.requests == 1


def test_a_pin_of_a_file_of_an_earlier_daemon_is_compared_with_that_of_this_one() -> None:
    pins, store, file = VersionPins(lambda: None), Store(), File()
    file.etag = "earlier"
    pinned(pins, store, None)
    with pytest.raises(ObjectChanged):
        pinned(pins, store, file)


@pytest.mark.parametrize("remembered", [True, False])
def test_recording_a_pin_with_a_fetched_file_asks_no_store(remembered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done while the object is added to the cache: an error would leave the file open."""
    monkeypatch.setattr(version_pins, "MOST_PINS", 1 if remembered else 0)
    pins, store, file = VersionPins(lambda: None), Store(), File()
    pinned(pins, store, None)
    store.down = True
    pins.record(VERSION, cast(ObjectFile, file))
    assert file.etag == ("first" if remembered else None)
    assert store.requests == 1
