"""A store with mirrors: which place an object is taken from, by which rule, and what each failure costs."""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import select
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from csi_driver.model import conditions
from csi_driver.model.chunk import ByteRange
from csi_driver.model.conditions import Condition
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import AccessDenied, EndpointUnreachable, HayloftError, ObjectChanged
from csi_driver.objects.mirrors.mirror_factory import MirrorPlace, mirrored_store
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.mirrored_store import Mirrored
from csi_driver.objects.mirrors.object_verdicts import SourceStore
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore, WholeObject, read_whole, whole_reader
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.tier.tiered_hooks import distrust_tier
from tests.support.daemons import wait_until
from tests.support.hostile_clouds import HostileGoogle
from tests.support.hostile_s3 import FlipBits, Hang, HostileS3, IgnoreIfMatch, ResetAfter, Status
from tests.support.secrets_of_stores import google_secret

KEYS = Credentials({"access_key_id": "testing", "secret_access_key": "testing"})
DRAW = random.Random(38)
SMALL, LARGE = DRAW.randbytes(50_000), DRAW.randbytes(5 << 20)
OBJECTS = {"set/small": SMALL, "set/large": LARGE}
MOVED = {"copy/small": SMALL, "copy/large": LARGE}


@dataclass
class Places:
    """The bucket of a dataset and a mirror of it, below another prefix."""

    bucket: HostileS3
    mirror: HostileS3
    store: ObjectStore
    mirrors: Mirrored

    def read(self, key: str = "set/large") -> bytes:
        content = OBJECTS[key]
        pieces = self.store.read_range(key, ByteRange(0, len(content)), if_match=self.etag(key))
        return b"".join(map(bytes, pieces))

    def read_once(self, found: list[bytes], key: str = "set/large") -> None:
        """Without retries; ``found`` gets what was received."""
        part = ByteRange(0, len(OBJECTS[key]))
        found.extend(map(bytes, without_retries(self.store).read_range(key, part, if_match=self.etag(key))))

    def whole(self, key: str = "set/small") -> bytes:
        whole = read_whole(self.store, key, len(OBJECTS[key]), if_match=self.etag(key))
        return b"".join(map(bytes, whole.parts))

    def etag(self, key: str) -> str:
        """As it was listed."""
        return self.bucket.version(key, OBJECTS[key])

    @property
    def conditions(self) -> set[Condition]:
        return set(self.mirrors.conditions())

    def rules(self) -> dict[str, int]:
        return self.mirrors.rules(1)


def _opened(bucket: HostileS3, mirror: HostileS3, *, check: str = "content", timeout_s: float = 2.0) -> Places:
    options = StoreOptions(endpoint=bucket.endpoint, request_timeout_s=timeout_s, deadline_s=5)
    google = isinstance(mirror, HostileGoogle)
    of_mirror = StoreOptions(endpoint=mirror.endpoint, request_timeout_s=timeout_s, deadline_s=5)
    credentials = Credentials(google_secret()) if google else KEYS
    place = MirrorPlace(DatasetUrl.parse(f"{'gs' if google else 's3'}://data/copy"), of_mirror, lambda: credentials)
    url = DatasetUrl.parse("s3://data/set")
    first = open_store(url, options, KEYS)
    store, mirrors = mirrored_store(url, options, first, [place], size_is_enough=check == "size")
    sizes = {key: len(content) for key, content in OBJECTS.items()}
    mirrors.know_volume("volume-1", sizes.get)
    return Places(bucket, mirror, store, mirrors)


def _opened_with_clock(places: Places, clock: list[float]) -> tuple[ObjectStore, Mirrored]:
    """Another store of the same places, whose clock is that of the test."""
    url, mirror = DatasetUrl.parse("s3://data/set"), DatasetUrl.parse("s3://data/copy")
    first = open_store(url, StoreOptions(endpoint=places.bucket.endpoint), KEYS)
    second = open_store(mirror, StoreOptions(endpoint=places.mirror.endpoint), KEYS)
    sources = [SourceStore("bucket", first, url.prefix), SourceStore("mirror", second, mirror.prefix)]
    mirrors = Mirrored(sources, MirrorReports(["bucket", "mirror"]), clock=lambda: clock[0])
    mirrors.know_volume("volume-1", {key: len(content) for key, content in OBJECTS.items()}.get)
    return mirrors, mirrors


@pytest.fixture
def places() -> Iterator[Places]:
    with HostileS3(OBJECTS) as bucket, HostileS3(MOVED) as mirror:
        opened = _opened(bucket, mirror)
        yield opened
        opened.store.close()


def event_loop_read(store: ObjectStore, key: str, etag: str) -> WholeObject | None:
    """As the event loop reads; None: it takes the fallback path."""
    reader = whole_reader(store)
    assert reader is not None
    response = reader.begin_whole(key, len(OBJECTS[key]), if_match=etag)
    if response is None:
        return None
    poll = select.poll()
    while (whole := response.advance()) is None:
        poll.register(response.fileno(), response.events)
        assert poll.poll(20_000)
        poll.unregister(response.fileno())
    return whole


@pytest.mark.promise("S641")
def test_while_the_bucket_answers_the_mirror_is_not_asked(places: Places) -> None:
    assert (places.read(), places.whole()) == (LARGE, SMALL)
    assert event_loop_read(places.store, "set/small", places.etag("set/small")) is not None
    assert places.mirror.requests == []
    assert places.conditions == set()


@pytest.mark.promise("S641")
def test_a_bucket_that_is_gone_costs_no_read_and_is_read_again_when_it_is_back(places: Places) -> None:
    assert places.read() == LARGE
    places.bucket.go_away()
    for _ in range(3):
        assert (places.read(), places.whole()) == (LARGE, SMALL)
    assert places.rules() == {"etag": 2}
    assert places.conditions == {conditions.READING_FROM_MIRRORS}
    places.bucket.come_back()
    wait_until(lambda: places.whole() == SMALL and not places.conditions)
    before = len(places.mirror.requests)
    assert (places.read(), places.whole()) == (LARGE, SMALL)
    assert len(places.mirror.requests) == before


@pytest.mark.promise("S641")
@pytest.mark.parametrize("fault", [ResetAfter(100_000), Hang(20, body_bytes=100_000), Status(503, "SlowDown")])
def test_a_read_that_breaks_off_goes_on_in_the_mirror_from_the_first_missing_byte(
    places: Places, fault: ResetAfter | Hang | Status
) -> None:
    places.bucket.fail_all(fault)
    assert places.read() == LARGE
    (rest,) = places.mirror.seen("GET")
    begin = int(rest.headers["range"].removeprefix("bytes=").partition("-")[0])
    assert begin == (0 if isinstance(fault, Status) else 100_000)


@pytest.mark.promise("S641")
def test_the_event_loop_reads_small_objects_of_the_mirror_while_the_bucket_is_away(places: Places) -> None:
    etag = places.etag("set/small")
    places.bucket.go_away()
    assert places.whole() == SMALL  # which opens the mirror
    before = len(places.mirror.requests)
    whole = event_loop_read(places.store, "set/small", etag)
    assert whole is not None
    assert b"".join(whole.parts) == SMALL
    assert [request.kind for request in places.mirror.requests[before:]] == ["GET"]
    places.bucket.come_back()


@pytest.mark.promise("S641")
def test_a_small_object_that_the_bucket_does_not_send_in_time_is_a_failure_of_it(places: Places) -> None:
    assert places.whole() == SMALL
    places.bucket.fail_all(Hang(20))
    reader = whole_reader(places.store)
    assert reader is not None
    response = reader.begin_whole("set/small", len(SMALL), if_match=places.etag("set/small"))
    assert response is not None
    select.select([], [], [], response.timeout_s)
    response.abort()
    assert places.conditions == {conditions.READING_FROM_MIRRORS}
    assert places.whole() == SMALL


@pytest.mark.promise("S642")
def test_an_object_that_was_overwritten_in_the_mirror_is_never_read_from_it(places: Places) -> None:
    other = DRAW.randbytes(len(LARGE))
    places.mirror.put("copy/large", other)
    places.bucket.fail_next(ResetAfter(100_000))
    assert places.read() == LARGE
    assert places.conditions >= {conditions.MIRROR_DIFFERS}
    places.bucket.go_away()
    with pytest.raises(HayloftError):
        places.read_once([])
    assert places.whole() == SMALL, "other objects of the mirror are read"
    places.bucket.come_back()


@pytest.mark.promise("S642")
def test_an_object_that_is_overwritten_in_the_mirror_between_two_reads_is_no_mixture(places: Places) -> None:
    places.bucket.go_away()
    assert places.read() == LARGE
    places.mirror.put("copy/large", DRAW.randbytes(len(LARGE)))
    found: list[bytes] = []
    with pytest.raises(HayloftError):
        places.read_once(found)
    assert found == []
    assert conditions.MIRROR_DIFFERS in places.conditions
    places.bucket.come_back()
    assert places.read() == LARGE


@pytest.mark.promise("S642")
def test_a_mirror_that_differs_is_told_until_it_has_the_objects(places: Places) -> None:
    clock = [1000.0]
    places.mirror.put("copy/small", SMALL + b"more")
    store, mirrors = _opened_with_clock(places, clock)
    samples = [("set/small", places.etag("set/small"))]
    mirrors.examine(samples)
    clock[0] += 7200
    assert set(mirrors.conditions()) == {conditions.MIRROR_DIFFERS}
    places.mirror.put("copy/small", SMALL)
    mirrors.examine(samples)
    assert set(mirrors.conditions()) == set()
    store.close()


@pytest.mark.promise("S642")
def test_a_version_that_the_bucket_has_lost_is_read_from_the_mirror(places: Places) -> None:
    etag = places.etag("set/small")
    for lose in (
        lambda: places.bucket.put("set/small", b"another version"),
        lambda: places.bucket.delete("set/small"),
    ):
        lose()
        assert b"".join(read_whole(places.store, "set/small", len(SMALL), if_match=etag).parts) == SMALL
    assert conditions.MIRROR_DIFFERS in places.conditions


@pytest.mark.promise("S642")
def test_an_object_that_neither_has_is_an_error_of_the_bucket(places: Places) -> None:
    places.bucket.put("set/small", b"another version")
    places.mirror.delete("copy/small")
    with pytest.raises(ObjectChanged):
        places.whole()


@pytest.mark.promise("S640")
def test_etags_of_multipart_uploads_differ_and_checksums_decide(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with HostileS3(OBJECTS) as bucket, HostileS3(MOVED) as mirror:
        bucket.odd_etags["set/large"], mirror.odd_etags["copy/large"] = f"{'a' * 32}-3", f"{'b' * 32}-5"
        checksum = {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA=", "x-amz-checksum-type": "FULL_OBJECT"}
        bucket.object_headers["set/large"] = mirror.object_headers["copy/large"] = checksum
        places = _opened(bucket, mirror)
        bucket.fail_next(ResetAfter(100_000))
        assert places.read() == LARGE
        assert places.rules() == {"checksum": 1}
        places.store.close()
    said = [record for record in caplog.records if "are the same" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.promise("S640")
@pytest.mark.parametrize("check", ["content", "size"])
def test_without_a_common_checksum_only_the_users_word_makes_a_mirror_usable(check: str) -> None:
    with HostileS3(OBJECTS) as bucket, HostileS3(MOVED) as mirror:
        bucket.odd_etags["set/large"], mirror.odd_etags["copy/large"] = f"{'a' * 32}-3", f"{'b' * 32}-5"
        places = _opened(bucket, mirror, check=check)
        bucket.fail_next(ResetAfter(100_000))
        assert places.read() == LARGE
        assert places.rules() == ({"size": 1} if check == "size" else {})
        of_mirror = [request for request in mirror.seen("GET") if request.headers["if-match"] == f'"{"b" * 32}-5"']
        assert bool(of_mirror) == (check == "size"), "under the listed ETag it has nothing"
        assert (conditions.MIRROR_DIFFERS in places.conditions) == (check == "content")
        bucket.go_away()
        if check == "size":  # a shorter one is another version in any case
            mirror.put("copy/small", SMALL[:-1])
            with pytest.raises(EndpointUnreachable):
                places.whole()
        places.store.close()
        bucket.come_back()


@pytest.mark.promise("S640")
def test_a_mirror_in_another_cloud_is_the_same_by_the_md5_of_both() -> None:
    with HostileS3(OBJECTS) as bucket, HostileGoogle(MOVED) as mirror:
        for key, content in MOVED.items():
            digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
            mirror.object_headers[key] = {"x-goog-hash": f"md5={digest}"}
        places = _opened(bucket, mirror)
        bucket.go_away()
        assert (places.read(), places.whole()) == (LARGE, SMALL)
        assert places.rules() == {"checksum": 2}
        places.store.close()
        bucket.come_back()


@pytest.mark.promise("S643")
def test_what_the_bucket_refuses_is_not_read_from_a_mirror(places: Places) -> None:
    places.bucket.fail_all(Status(403, "AccessDenied"))
    with pytest.raises(AccessDenied):
        places.read()
    assert places.mirror.requests == []


@pytest.mark.promise("S643")
def test_a_mirror_that_refuses_is_named_and_the_volume_reads_from_the_bucket(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    places.mirror.fail_all(Status(403, "AccessDenied", kinds=("GET", "HEAD", "LIST")))
    places.mirrors.examine([("set/small", places.etag("set/small"))])
    assert places.conditions == {conditions.MIRROR_FAILING}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"s3://data/copy/ at {places.mirror.endpoint}" in str(warning.__dict__)
    assert (places.read(), places.whole()) == (LARGE, SMALL)


@pytest.mark.promise("S643")
def test_a_mirror_of_another_dataset_is_reported_before_it_is_needed(places: Places) -> None:
    for key in MOVED:
        places.mirror.delete(key)
    places.mirrors.examine([(key, places.etag(key)) for key in OBJECTS])
    assert places.conditions == {conditions.MIRROR_DIFFERS}
    assert (places.read(), places.whole()) == (LARGE, SMALL)


@pytest.mark.promise("S642")
@pytest.mark.parametrize("damaged", ["bucket", "mirror"])
def test_after_damaged_bytes_another_place_is_asked(places: Places, damaged: str) -> None:
    (places.bucket if damaged == "bucket" else places.mirror).fail_all(FlipBits(10))
    if damaged == "mirror":
        distrust_tier(places.store, "set/small", places.etag("set/small"))
    assert places.whole() != SMALL
    distrust_tier(places.store, "set/small", places.etag("set/small"))
    assert places.whole() == SMALL


@pytest.mark.promise("S642")
def test_a_mirror_that_ignores_conditions_is_found_out(places: Places) -> None:
    places.bucket.go_away()
    assert places.whole() == SMALL
    places.mirror.put("copy/small", DRAW.randbytes(len(SMALL)))
    places.mirror.fail_all(IgnoreIfMatch())
    with pytest.raises(EndpointUnreachable):
        places.whole()
    places.bucket.come_back()
