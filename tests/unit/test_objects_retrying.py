"""Retries: which errors, until when, and what is resumed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.concurrency_limit import Limited
from csi_driver.objects.listing_pages import ListedPage
from csi_driver.objects.retrying import Backoff, Retrying, RetryPolicy
from hayloft_lab.memory_store import MemoryStore

CONTENT = bytes(range(250)) * 40


class FakeTime:
    """A clock that advances in ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def policy(self, deadline_s: float = 30.0, fraction: float = 1.0) -> RetryPolicy:
        return RetryPolicy(deadline_s, Backoff(0.1, 10.0), lambda: self.now, self.sleep, lambda: fraction)


class BreakingStore(MemoryStore):
    """Breaks one read after each number of bytes in ``break_after``; further reads are complete."""

    def __init__(self, content: bytes, break_after: list[int]) -> None:
        super().__init__({"key": content}, piece_bytes=1000)
        self.break_after = break_after
        self.conditions: list[str | None] = []

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        self.conditions.append(if_match)
        left = self.break_after.pop(0) if self.break_after else len(byte_range)
        for piece in super().read_range(key, byte_range, if_match=if_match):
            if len(piece) > left:
                raise TransientStoreError("the connection broke")
            left -= len(piece)
            yield piece


class ScriptedListing(MemoryStore):
    """Answers each request for a page with the next of these, and raises those that are errors."""

    lists_pages = True

    def __init__(self, *answers: ListedPage | HayloftError) -> None:
        super().__init__()
        self.answers: Iterator[ListedPage | HayloftError] = iter(answers)
        self.tokens: list[str | None] = []

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        self.tokens.append(token)
        answer = next(self.answers)
        if isinstance(answer, HayloftError):
            raise answer
        return answer


def listed(next_token: str | None, *keys: str) -> ListedPage:
    return ListedPage(ObjectPage(keys, [1] * len(keys), [None] * len(keys), [0] * len(keys)), next_token)


@pytest.mark.promise("S28")
def test_a_transient_failure_is_tried_again_until_it_succeeds() -> None:
    time, store = FakeTime(), MemoryStore({"key": b"x"})
    store.fail_next(*(TransientStoreError("503") for _ in range(5)))
    assert Retrying(store, 30, time.policy()).stat("key").size_bytes == 1
    assert time.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_backoff_is_exponential_bounded_and_random() -> None:
    backoff = Backoff(first_s=0.1, longest_s=10.0)
    assert backoff.pause_s(3, 0.5) == pytest.approx(0.2)
    assert backoff.pause_s(1000, 1.0) == 10.0
    assert backoff.pause_s(5, 0.0) == 0.0


def test_retry_after_extends_the_pause() -> None:
    time, store = FakeTime(), MemoryStore({"key": b"x"})
    store.fail_next(TransientStoreError("429", retry_after_s=7))
    Retrying(store, 30, time.policy()).stat("key")
    assert time.pauses == [7]


def test_a_retry_after_beyond_the_deadline_fails_immediately() -> None:
    time, store = FakeTime(), MemoryStore({"key": b"x"})
    store.fail_next(TransientStoreError("429", retry_after_s=31))
    with pytest.raises(StoreUnavailable, match="429"):
        Retrying(store, 30, time.policy()).stat("key")
    assert time.pauses == []


def test_after_the_deadline_the_error_holds_the_last_failure() -> None:
    time, store = FakeTime(), MemoryStore()
    store.fail_next(*(TransientStoreError(f"failure {number}") for number in range(100)))
    with pytest.raises(StoreUnavailable, match=r"30 s: failure \d+") as caught:
        Retrying(store, 30, time.policy()).stat("key")
    assert isinstance(caught.value.__cause__, TransientStoreError)
    assert sum(time.pauses) < 30


def test_an_endpoint_that_never_answered_is_unreachable_after_the_deadline() -> None:
    time, store = FakeTime(), MemoryStore()
    store.fail_next(*(TransientStoreError("refused", when_exhausted=EndpointUnreachable) for _ in range(100)))
    with pytest.raises(EndpointUnreachable, match="refused"):
        Retrying(store, 5, time.policy(deadline_s=5)).stat("key")


@pytest.mark.promise("S28")
@pytest.mark.parametrize(
    "error",
    [
        AccessDenied("403"),
        BucketNotFound("404"),
        CredentialsRejected("401"),
        EndpointUnreachable("TLS"),
        ObjectChanged("412"),
        ObjectNotFound("404"),
        StoreProtocolError("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_try_will_mend_is_not_tried_again(error: HayloftError) -> None:
    time, store = FakeTime(), MemoryStore({"key": b"x"})
    store.fail_next(error)
    with pytest.raises(type(error)):
        Retrying(store, 30, time.policy()).stat("key")
    store.fail_next(error)
    with pytest.raises(type(error)):
        list(Retrying(store, 30, time.policy()).read_range("key", ByteRange(0, 1), if_match=None))
    store.fail_next(error)
    with pytest.raises(type(error)):
        list(Retrying(store, 30, time.policy()).list(""))
    assert time.pauses == []


def test_a_broken_read_resumes_after_the_last_byte_with_the_same_etag() -> None:
    time, store = FakeTime(), BreakingStore(CONTENT, break_after=[0, 3000, 1000])
    etag = store.stat("key").etag
    pieces = Retrying(store, 30, time.policy()).read_range("key", ByteRange(500, 9500), if_match=etag)
    assert b"".join(pieces) == CONTENT[500:9500]
    assert [read for _, read in store.reads] == [
        ByteRange(500, 9500),
        ByteRange(500, 9500),
        ByteRange(3500, 9500),
        ByteRange(4500, 9500),
    ]
    assert store.conditions == [etag] * 4


def test_progress_starts_the_deadline_anew() -> None:
    time, store = FakeTime(), BreakingStore(CONTENT, break_after=[1000] * 9)
    pieces = Retrying(store, 0.15, time.policy(deadline_s=0.15)).read_range("key", ByteRange(0, 10000), if_match=None)
    assert b"".join(pieces) == CONTENT
    assert time.pauses == pytest.approx([0.1] * 9)


def test_an_object_that_changes_between_two_tries_raises_object_changed() -> None:
    time, store = FakeTime(), BreakingStore(CONTENT, break_after=[3000])
    etag = store.stat("key").etag
    pieces = Retrying(store, 30, time.policy()).read_range("key", ByteRange(0, 10000), if_match=etag)
    first = bytes(next(pieces))
    store.put("key", bytes(10000))
    with pytest.raises(ObjectChanged):
        list(pieces)
    assert first == CONTENT[:1000]


@pytest.mark.promise("S201")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_broken_listing_requests_the_page_again_by_its_token(wrapped: bool) -> None:
    broken = TransientStoreError("the connection broke")
    store = ScriptedListing(broken, listed("one", "a", "b"), broken, broken, listed("two", "b/c"), broken, listed(None))
    retrying = Retrying(Limited(store, 1) if wrapped else store, 30, FakeTime().policy())
    assert [list(page.keys) for page in retrying.list("")] == [["a", "b"], ["b/c"]]
    assert store.tokens == [None, None, "one", "one", "one", "two", "two"]


@pytest.mark.promise("S200")
def test_pages_without_an_object_are_no_progress() -> None:
    """The store answers in time, and each page has a new token."""
    time = FakeTime()

    def slow_pages() -> Iterator[ListedPage]:
        for number in itertools.count():
            time.now += 1
            yield listed(str(number))

    store = ScriptedListing()
    store.answers = slow_pages()
    with pytest.raises(StoreUnavailable, match="without an object"):
        list(Retrying(store, 30, time.policy()).list(""))
    assert len(store.tokens) == 30


@pytest.mark.promise("S200")
def test_the_deadline_of_a_listing_starts_anew_with_each_page_of_objects() -> None:
    time, broken = FakeTime(), TransientStoreError("503")
    answers: list[ListedPage | HayloftError] = []
    for number in range(20):
        answers += [*[broken] * 5, listed(f"{number}", f"{number}")]
    store = ScriptedListing(*answers, listed(None))
    assert len(list(Retrying(store, 5, time.policy(deadline_s=5)).list(""))) == 20
    assert sum(time.pauses) > 20


@pytest.mark.promise("S200")
def test_an_answer_without_bytes_is_no_progress() -> None:
    """As from a store that answers 206 with the right headers and no body."""

    class Empty(MemoryStore):
        def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
            yield memoryview(b"")
            raise TransientStoreError("bytes are missing at the end")

    time = FakeTime()
    pieces = Retrying(Empty({"key": CONTENT}), 30, time.policy()).read_range("key", ByteRange(0, 10), if_match=None)
    with pytest.raises(StoreUnavailable, match="bytes are missing"):
        list(pieces)
    assert time.pauses[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_a_listing_that_cannot_be_resumed_fails() -> None:
    class Unsorted(MemoryStore):
        def list(self, prefix: str) -> Iterator[ObjectPage]:
            yield next(super().list(prefix))
            raise TransientStoreError("the connection broke")

    pages = Retrying(Unsorted({"a": b""}), 30, FakeTime().policy()).list("")
    assert next(pages).keys == ["a"]
    with pytest.raises(StoreUnavailable, match="cannot be resumed"):
        next(pages)


def test_requests_in_flight_are_bounded() -> None:
    store = Limited(MemoryStore({"key": CONTENT}, piece_bytes=10), in_flight=2)
    first = store.read_range("key", ByteRange(0, 100), if_match=None)
    second = store.read_range("key", ByteRange(0, 100), if_match=None)
    next(first), next(second)
    third = threading.Thread(target=store.stat, args=("key",))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    list(first)
    third.join(10)
    assert not third.is_alive()
    second.close()  # type: ignore[attr-defined]


def test_a_read_that_is_closed_early_releases_its_slot() -> None:
    store = Limited(MemoryStore({"key": CONTENT}, piece_bytes=10), in_flight=1)
    for _ in range(3):
        pieces = store.read_range("key", ByteRange(0, 100), if_match=None)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert store.stat("key").size_bytes == len(CONTENT)
