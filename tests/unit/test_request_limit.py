"""The bound of a store's requests in flight: every kind of request counts, and they get their turn in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.checksums import StoredChecksum
from csi_driver.objects.concurrency_limit import Limited, LimitedWithChecksums, RequestLimit
from csi_driver.objects.retrying import Retrying
from csi_driver.objects.store import ObjectStore, StoreAtLimit, UnusableResponse, WholeObject
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import SmallFetch
from tests.support.daemons import wait_until
from tests.support.own_event_loop import OwnLoopFetcher
from tests.unit.test_small_object_fetcher import Panic, ScriptedResponse, raises


class SlowStore:
    """Responses stay in flight until they are sent."""

    endpoint, bucket, reads_whole = "test://store", "bucket", True

    def __init__(self) -> None:
        self.begun: list[ScriptedResponse] = []
        self.next: Callable[[], ScriptedResponse | None] = self._response
        self.advance: Callable[[], WholeObject | None] = lambda: WholeObject([memoryview(b"x")])

    def _response(self) -> ScriptedResponse:
        self.begun.append(ScriptedResponse(self.advance, ready=False))
        self.begun[-1].timeout_s = 60.0
        return self.begun[-1]

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> ScriptedResponse | None:
        return self.next()

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        yield memoryview(b"x")

    def close(self) -> None:
        for response in self.begun:
            response.abort()


class LimitBench:
    """Small objects of one store, through the small-object fetcher."""

    def __init__(self, in_flight: int) -> None:
        self.origin = SlowStore()
        self.limited = Limited(self.origin, in_flight)  # type: ignore[arg-type]
        self.store: ObjectStore = Retrying(self.limited, 30)
        self.fetcher = OwnLoopFetcher(64)
        self.received: list[str] = []
        self.fallbacks: list[str] = []

    def submit(self, key: str, share: Share = Share("team", "store", "volume")) -> None:  # noqa: B008  # immutable
        source = ObjectSource(ObjectVersion("d", "e", "b", key, "etag", 1), self.store, share=share)
        fetch = SmallFetch(source, lambda whole: self.received.append(key), lambda: self.fallbacks.append(key))
        self.fetcher.submit(fetch)

    def close(self) -> None:
        self.fetcher.close()
        self.origin.close()


@pytest.fixture
def bench() -> Iterator[LimitBench]:
    bench = LimitBench(4)
    yield bench
    bench.close()


@pytest.mark.promise("S430")
def test_complete_small_objects_count_for_the_limit_and_wait_in_their_order(bench: LimitBench) -> None:
    keys = [str(number) for number in range(20)]
    for key in keys:
        bench.submit(key)
    for done in range(20):
        wait_until(lambda done=done: len(bench.origin.begun) >= min(20, done + 4))
        assert len(bench.origin.begun) == min(20, done + 4)
        bench.origin.begun[done].send()
        wait_until(lambda done=done: len(bench.received) == done + 1)
    assert bench.received == keys
    assert bench.fallbacks == []


@pytest.mark.promise("S430")
def test_a_range_and_a_small_object_have_one_limit(bench: LimitBench) -> None:
    ranges = [bench.store.read_range("key", ByteRange(0, 1), if_match=None) for _ in range(4)]
    for pieces in ranges:
        next(pieces)
    bench.submit("small")
    waiting = threading.Thread(target=lambda: list(bench.store.read_range("key", ByteRange(0, 1), if_match=None)))
    wait_until(lambda: bool(bench.fetcher._at_limit))
    waiting.start()
    assert bench.origin.begun == []
    ranges[0].close()  # type: ignore[attr-defined]
    wait_until(lambda: len(bench.origin.begun) == 1)
    assert waiting.is_alive(), "it came later"
    bench.origin.begun[0].send()
    waiting.join(20)
    assert bench.received == ["small"]
    for pieces in ranges[1:]:
        pieces.close()  # type: ignore[attr-defined]


def test_a_store_at_its_limit_holds_up_no_other(bench: LimitBench) -> None:
    for number in range(10):
        bench.submit(str(number))
    other = LimitBench(4)
    source = ObjectSource(ObjectVersion("d", "e", "b", "other", "etag", 1), other.store, share=Share("b", "s", "v"))
    bench.fetcher.submit(SmallFetch(source, lambda whole: bench.received.append("other"), lambda: None))
    wait_until(lambda: len(other.origin.begun) == 1)
    other.origin.begun[0].send()
    wait_until(lambda: bench.received == ["other"])
    assert len(bench.origin.begun) == 4
    other.close()


@pytest.mark.parametrize(
    "begin", [lambda: None, raises(ValueError("a defect")), raises(Panic())], ids=["no", "raises", "panics"]
)
def test_a_request_that_cannot_start_gives_its_slot_back(bench: LimitBench, begin: Callable[[], None]) -> None:
    bench.origin.next = begin
    for number in range(20):
        bench.submit(str(number))
    wait_until(lambda: len(bench.fallbacks) == 20)
    assert bench.limited.limit.free == 4


@pytest.mark.parametrize("error", [UnusableResponse(), ConnectionResetError(), Panic()], ids=repr)
def test_a_request_that_fails_gives_its_slot_back_once(bench: LimitBench, error: BaseException) -> None:
    bench.origin.advance = raises(error)
    for number in range(20):
        bench.submit(str(number))
    for done in range(20):
        wait_until(lambda done=done: len(bench.origin.begun) > done)
        bench.origin.begun[done].send()
    wait_until(lambda: len(bench.fallbacks) == 20)
    assert bench.limited.limit.free == 4


def test_a_request_without_an_event_loop_is_told_to_wait() -> None:
    store = Limited(SlowStore(), 1)  # type: ignore[arg-type]
    first = store.begin_whole("key", 1, if_match=None)
    assert first is not None
    with pytest.raises(StoreAtLimit):
        store.begin_whole("key", 1, if_match=None)
    first.abort()
    first.abort()
    assert store.limit.free == 1, "aborted twice, given back once"


@pytest.mark.promise("S430")
def test_requests_for_checksums_count_too() -> None:
    class Provider(SlowStore):
        md5_up_to_bytes = 5

        def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
            free.append(store.limit.free)
            return StoredChecksum(None, etag_may_be_md5=False)

    free, provider = list[int](), Provider()
    store = LimitedWithChecksums(provider, provider, 3)  # type: ignore[arg-type]
    store.checksum("key", if_match=None)
    assert free == [2]
    assert (store.limit.free, store.md5_up_to_bytes) == (3, 5)


@given(st.integers(1, 4), st.lists(st.booleans(), max_size=60))
def test_the_slots_are_handed_out_in_the_order_of_the_requests(slots: int, steps: list[bool]) -> None:
    """True: a request; False: the oldest one in flight ends. The model: a queue in front of ``slots`` places."""
    limit, asked, granted, held = RequestLimit(slots), 0, list[int](), 0
    for ask in steps:
        if ask:
            number = asked
            asked += 1
            if limit.take(lambda number=number: granted.append(number)):  # type: ignore[misc]
                granted.append(number)
        elif held < len(granted):
            held += 1
            limit.give_back()
        assert granted == list(range(min(asked, held + slots)))
        assert limit.free == slots - (len(granted) - held)
