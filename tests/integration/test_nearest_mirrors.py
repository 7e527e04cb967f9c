"""A store with mirrors, the nearest of which is read; and one that cannot be opened when its mount is adopted."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from csi_driver.daemon.mount_records import MountRecord
from csi_driver.daemon.volume_stores import VolumeStore, open_volume_store, reopen_volume_store
from csi_driver.model import conditions
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    AddressNotAllowed,
    CredentialsRejected,
    HayloftError,
    InvalidParameter,
    StoreError,
    TransientStoreError,
)
from csi_driver.objects.mirrors import mirror_factory
from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
from csi_driver.objects.mirrors.origin_speeds import READS_PER_REQUEST, REQUESTS, ROUND_S
from csi_driver.objects.store import read_whole, whole_reader
from csi_driver.objects.store_factory import open_store
from csi_driver.volumes.parameters import VolumeParameters
from tests.support.daemons import wait_until
from tests.support.hostile_s3 import HostileS3, Slow, Status

DRAW = random.Random(45)
SMALL, LARGE = DRAW.randbytes(50_000), DRAW.randbytes(2 << 20)
KEYS = {"access_key_id": "testing", "secret_access_key": "testing"}
FAR = Slow(0.7, piece_bytes=4 << 20)
"""Longer than what a busy machine takes for an answer."""

NO_IDENTITY = TransientStoreError("the identity service does not answer", when_exhausted=CredentialsRejected)


class Places:
    """A bucket and its mirror, opened as a daemon opens them."""

    def __init__(self, bucket: HostileS3, mirror: HostileS3) -> None:
        self.bucket, self.mirror, self.counts = bucket, mirror, MirrorCounts()

    def parameters(self, **more: str) -> VolumeParameters:
        given = {
            "url": "s3://data/set",
            "endpoint": self.bucket.endpoint,
            "mirrors": f"s3://data/copy?endpoint={self.mirror.endpoint}",
            "requestTimeout": "5s",
            "deadline": "10s",
        }
        return VolumeParameters.parse(given | more)

    def opened(self, **more: str) -> VolumeStore:
        return self.known(open_volume_store(self.parameters(**more), KEYS, mirror_counts=self.counts))

    def known(self, opened: VolumeStore) -> VolumeStore:
        assert opened.mirrors is not None
        opened.mirrors.know_volume("volume-1", {"set/small": len(SMALL), "set/large": len(LARGE)}.get)
        return opened

    def examine(self, opened: VolumeStore) -> None:
        assert opened.mirrors is not None
        opened.mirrors.examine([("set/small", self.bucket.version("set/small", SMALL))])

    def read(self, opened: VolumeStore) -> bool:
        """Both objects; whether they have the listed bytes."""
        store, etag = opened.store, self.bucket.version("set/small", SMALL)
        whole = read_whole(store, "set/small", len(SMALL), if_match=etag)
        part, etag = ByteRange(0, len(LARGE)), self.bucket.version("set/large", LARGE)
        large = b"".join(map(bytes, store.read_range("set/large", part, if_match=etag)))
        return (b"".join(map(bytes, whole.parts)), large) == (SMALL, LARGE)

    def read_from(self, opened: VolumeStore) -> str:
        """Which place has sent both."""
        before = self.counts.numbers()
        assert self.read(opened)
        return "+".join(name for name, numbers in self.counts.numbers().items() if numbers != before.get(name))


@pytest.fixture
def places() -> Iterator[Places]:
    objects = {"set/small": SMALL, "set/large": LARGE}
    moved = {"copy/small": SMALL, "copy/large": LARGE}
    with HostileS3(objects) as bucket, HostileS3(moved) as mirror:
        yield Places(bucket, mirror)


@pytest.mark.promise("S685")
def test_the_nearest_place_is_read_and_each_object_is_proven_by_the_read_itself(places: Places) -> None:
    places.bucket.fail_all(FAR)
    opened = places.opened()
    places.examine(opened)
    before = len(places.mirror.requests)
    assert places.read_from(opened) == "mirror1"
    assert [request.kind for request in places.mirror.requests[before:]] == ["GET", "GET"]
    assert places.counts.numbers()["mirror1"].received_bytes == len(SMALL) + len(LARGE)
    opened.store.close()


@pytest.mark.promise("S685")
def test_the_listed_order_holds_where_it_was_asked_for(places: Places) -> None:
    places.bucket.fail_all(FAR)
    opened = places.opened(mirrorOrder="listed")
    places.examine(opened)
    assert places.read_from(opened) == "url"
    assert places.mirror.seen("GET") == []
    opened.store.close()


@pytest.mark.promise("S685")
def test_what_the_nearest_place_lacks_is_read_from_the_bucket(places: Places) -> None:
    places.bucket.fail_all(FAR)
    places.mirror.put("copy/large", DRAW.randbytes(len(LARGE)))
    opened = places.opened()
    places.examine(opened)
    assert places.read_from(opened) == "url+mirror1"
    assert opened.mirrors is not None
    assert conditions.MIRROR_DIFFERS in set(opened.mirrors.conditions())
    assert places.counts.numbers()["mirror1"].refused >= 1
    opened.store.close()


@pytest.mark.promise("S685")
def test_small_objects_of_the_nearest_mirror_take_the_event_loops_path(places: Places) -> None:
    places.bucket.fail_all(FAR)
    opened = places.opened()
    places.examine(opened)
    assert places.read_from(opened) == "mirror1"
    reader = whole_reader(opened.store)
    assert reader is not None
    before = len(places.mirror.requests)
    response = reader.begin_whole("set/small", len(SMALL), if_match=places.bucket.version("set/small", SMALL))
    assert response is not None
    response.abort()
    wait_until(lambda: len(places.mirror.requests) > before)
    opened.store.close()


@pytest.mark.promise("S685")
def test_a_nearest_place_that_dies_costs_no_read_and_is_read_again(places: Places) -> None:
    places.bucket.fail_all(FAR)
    opened = places.opened()
    places.examine(opened)
    assert places.read_from(opened) == "mirror1"
    places.mirror.go_away()
    assert places.read_from(opened) == "url+mirror1", "the mirror is counted as failed"
    assert places.counts.numbers()["mirror1"].failovers == 1
    places.mirror.come_back()
    wait_until(lambda: places.read_from(opened) == "mirror1", 60)
    opened.store.close()


@pytest.mark.promise("S643")
@pytest.mark.parametrize("status", [Status(401, "InvalidAccessKeyId"), Status(403, "AccessDenied")])
def test_what_the_bucket_refuses_twice_is_not_read_from_a_mirror(places: Places, status: Status) -> None:
    opened = places.opened(mirrorOrder="listed")
    places.bucket.fail_all(status)
    for _ in range(3):
        with pytest.raises((AccessDenied, CredentialsRejected)):
            places.read(opened)
    assert places.mirror.seen("GET") == []
    opened.store.close()


@pytest.mark.promise("S686")
def test_a_bucket_that_refuses_ends_the_reads_of_a_nearer_mirror(places: Places) -> None:
    now_s = [1000.0]
    opened = places.opened()
    assert opened.mirrors is not None
    speeds = opened.mirrors._choice._speeds
    assert speeds is not None
    speeds._clock = lambda: now_s[0]
    places.bucket.fail_all(FAR)
    places.examine(opened)
    assert places.read_from(opened) == "mirror1"
    places.bucket.fail_all(Status(403, "AccessDenied"))
    now_s[0] += ROUND_S
    for _ in range(READS_PER_REQUEST * REQUESTS * 2):
        speeds.read()
    places.examine(opened)
    with pytest.raises(AccessDenied):
        places.read(opened)
    opened.store.close()


@pytest.mark.promise("S688")
@pytest.mark.parametrize("order", ["nearest", "listed"])
def test_a_volume_whose_bucket_cannot_be_opened_at_its_adoption_reads_from_its_mirrors(
    places: Places, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    parameters = places.parameters(mirrorOrder=order)
    record = MountRecord("m-1", "volume-1", "/mnt", parameters.to_context(), "snapshot")
    is_away = threading.Event()
    is_away.set()

    def opening(url: Any, *given: Any, **more: Any) -> Any:
        if url == parameters.url and is_away.is_set():
            raise NO_IDENTITY
        return open_store(url, *given, **more)

    def failing(parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
        raise NO_IDENTITY

    monkeypatch.setattr(mirror_factory, "open_store", opening)
    reopened = places.known(reopen_volume_store(record, parameters, KEYS, failing, None, places.counts))
    assert reopened.access_domain == open_volume_store(parameters, KEYS).access_domain
    for _ in range(2):
        assert "mirror1" in places.read_from(reopened)
    assert reopened.mirrors is not None
    assert conditions.READING_FROM_MIRRORS in set(reopened.mirrors.conditions())
    assert places.bucket.requests == []
    is_away.clear()
    found = reopened.mirrors.conditions
    wait_until(lambda: places.read(reopened) and conditions.READING_FROM_MIRRORS not in set(found()))
    source = places.read_from(reopened)
    assert source == "url" or (source == "mirror1" and order == "nearest")
    reader = whole_reader(reopened.store)
    assert reader is not None, "small objects take the event loop's path again"
    response = reader.begin_whole("set/small", len(SMALL), if_match=places.bucket.version("set/small", SMALL))
    assert response is not None
    response.abort()
    fresh = open_volume_store(parameters, KEYS)
    assert getattr(reopened.store, "md5_up_to_bytes", 0) == getattr(fresh.store, "md5_up_to_bytes", 1)
    fresh.store.close()
    reopened.store.close()


@pytest.mark.promise("S688")
def test_a_volume_that_neither_can_read_fails_with_what_opening_its_bucket_raises(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = places.parameters(requestTimeout="1s", deadline="1s")
    record = MountRecord("m-1", "volume-1", "/mnt", parameters.to_context(), "snapshot")

    def opening(*_: Any, **__: Any) -> Any:
        raise NO_IDENTITY

    monkeypatch.setattr(mirror_factory, "open_store", opening)
    reopened = reopen_volume_store(record, parameters, KEYS, opening)
    with pytest.raises(StoreError, match="the identity service does not answer"):
        places.read(reopened)
    reopened.store.close()


@pytest.mark.promise("S643")
@pytest.mark.parametrize(
    "refusal",
    [
        CredentialsRejected("the role may not be assumed any more"),
        AddressNotAllowed("the operator does not allow this endpoint any more"),
        InvalidParameter("secret key token", "(hidden)", "printable ASCII"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_refused_when_the_bucket_of_an_adopted_volume_is_opened_is_not_read_from_a_mirror(
    places: Places, monkeypatch: pytest.MonkeyPatch, refusal: HayloftError
) -> None:
    """A mirror is no way around it, nor is the cluster's cache."""
    parameters = places.parameters()
    record = MountRecord("m-1", "volume-1", "/mnt", parameters.to_context(), "snapshot")

    def opening(url: Any, *given: Any, **more: Any) -> Any:
        if url == parameters.url:
            raise refusal
        return open_store(url, *given, **more)

    def refusing(parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
        raise refusal

    monkeypatch.setattr(mirror_factory, "open_store", opening)
    reopened = places.known(reopen_volume_store(record, parameters, KEYS, refusing, None, places.counts))
    for _ in range(3):
        with pytest.raises(type(refusal)):
            places.read(reopened)
        assert reopened.mirrors is not None
        etag = places.bucket.version("set/small", SMALL)
        assert reopened.mirrors.origin_request("set/small", etag, whole=True, may_block=True) is None
    assert "mirror1" not in places.counts.numbers()
    reopened.store.close()


@pytest.mark.promise("S688")
def test_a_mirror_whose_secret_is_refused_by_now_does_not_keep_a_mount_from_being_adopted(places: Places) -> None:
    parameters = VolumeParameters.parse(
        {"url": "s3://data/set", "endpoint": places.bucket.endpoint, "mirrors": "az://copies/set"}
    )
    record = MountRecord("m-1", "volume-1", "/mnt", parameters.to_context(), "snapshot")
    secrets = {**KEYS, "mirror1.account_key": "no account"}
    reopened = places.known(reopen_volume_store(record, parameters, secrets, open_volume_store))
    assert places.read(reopened)
    reopened.store.close()
