"""A listing by several requests at a time: complete, each key once, whatever the keys are, or refused."""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.builder import build_from_store
from csi_driver.model.dataset import Dataset, DatasetUrl
from csi_driver.model.errors import AccessDenied, StoreProtocolError
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects import parallel_listing
from csi_driver.objects.key_ranges import midpoint, width
from csi_driver.objects.listing_pages import After, ListedPage, all_pages
from csi_driver.objects.parallel_listing import PAGES_BEFORE, KeysNotInOrder, pages_in_ranges, part_of

PREFIX = "train/"
NAMES = st.text(st.sampled_from("/-.09aZz~é\U0001f600"), min_size=1, max_size=6)


def page_of(keys: list[str]) -> ObjectPage:
    return ObjectPage(keys, [1] * len(keys), [f"etag-{key}" for key in keys], [0] * len(keys))


class Store:
    """Lists keys in an order, page after page; a token is a position. With ``by_directory`` as some servers do: in the
    order of names in each directory, and after ``p/a`` without all that lies below ``p/a/``."""

    def __init__(self, keys: list[str], page_keys: int = 3, *, by_directory: bool = False) -> None:
        self._by_directory = by_directory
        self._keys = sorted(keys, key=self._order)
        self._page_keys = page_keys
        self.requests: list[str | None] = []
        self.most_in_flight = self._in_flight = 0
        self._lock = threading.Lock()
        self.fails_on: Callable[[str | None], bool] = lambda token: False
        self.refusal: Exception = AccessDenied("no")
        self.together = threading.Barrier(1)

    def _order(self, key: str) -> list[str]:
        return key.split("/") if self._by_directory else [key]

    def fetch(self, token: str | None) -> ListedPage:
        with self._lock:
            self.requests.append(token)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            if self.fails_on(token):
                raise self.refusal
            start = 0 if token is None else self._after(token) if isinstance(token, After) else int(token)
            stop = start + self._page_keys
            return ListedPage(page_of(self._keys[start:stop]), str(stop) if stop < len(self._keys) else None)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _after(self, key: str) -> int:
        if not self._by_directory:
            return bisect_right(self._keys, key)
        wanted = key.split("/")
        found = (row for row, each in enumerate(self._keys) if each.split("/")[: len(wanted)] > wanted)
        return next(found, len(self._keys))


def listed(store: Store, requests: int = 4) -> list[str]:
    pages = pages_in_ranges(lambda: store.fetch, PREFIX, "bucket", requests)
    return [key for page in pages for key in page.keys]


@pytest.mark.promise("S622")
@given(st.sets(NAMES, max_size=120), st.integers(1, 5), st.integers(1, 6))
def test_every_key_is_listed_once(names: set[str], page_keys: int, requests: int) -> None:
    keys = [PREFIX + name for name in names]
    assert Counter(listed(Store(keys, page_keys), requests)) == Counter(keys)


DEEP = "a/" * 60 + "z" * 700
ADVERSARIAL = (
    [f"/{number}" for number in range(40)],
    [f"{DEEP}{number:04d}" for number in range(60)],
    [f"{DEEP}{chr(number)}" for number in range(0x20, 0x80)],
    [chr(number) for number in (*range(1, 0x100), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0xFFFD, 0x10FFFF)],
    [f"{chr(0x10000 + number)}/x" for number in range(40)] + [f"{chr(0xE000 + number)}/x" for number in range(40)],
    ["9" * length for length in range(1, 60)],
    ["~" * length for length in range(1, 60)],
    [f"{letter}{'0' * 30}{number}" for letter in "09:AZ[az{~" for number in range(12)],
    [f"{number * 2654435761 % (1 << 32):08x}" for number in range(200)],
)
"""Names: of one deep directory near the end of the longest key, at the edges of what characters can be, in places where
there is nothing between two keys, and such as begin with a slash."""


@pytest.mark.promise("S622")
@pytest.mark.parametrize("names", ADVERSARIAL, ids=range(len(ADVERSARIAL)))
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_every_key_of_an_odd_distribution_is_listed_once(names: list[str], prefix: str) -> None:
    store = Store([prefix + name for name in names], 2)
    pages = pages_in_ranges(lambda: store.fetch, prefix, "bucket", 6)
    assert sorted(key for page in pages for key in page.keys) == sorted(prefix + name for name in names)


@pytest.mark.promise("S622")
@given(st.lists(NAMES, max_size=60), st.integers(1, 5), st.randoms(use_true_random=False))
def test_an_unsorted_store_or_one_with_duplicates_is_listed_completely_or_refused(
    names: list[str], page_keys: int, chance: random.Random
) -> None:
    keys = [PREFIX + name for name in names]
    store = Store([], page_keys)
    chance.shuffle(keys)
    store._keys = keys
    try:
        found = listed(store)
    except (KeysNotInOrder, StoreProtocolError):
        return
    assert Counter(found) == Counter(keys)


@pytest.mark.promise("S622")
@given(st.sets(NAMES, max_size=120), st.integers(1, 5))
def test_a_store_that_lists_by_directory_is_listed_completely_or_refused(names: set[str], page_keys: int) -> None:
    keys = [PREFIX + name for name in names]
    try:
        found = listed(Store(keys, page_keys, by_directory=True))
    except KeysNotInOrder:
        return
    assert Counter(found) == Counter(keys)


@pytest.mark.parametrize(
    "keys",
    [
        [f"{PREFIX}{number:08d}.jpg" for number in range(3000)],
        [f"{PREFIX}class-{number % 7}/{number:06d}.jpg" for number in range(3000)],
        [f"{PREFIX}shard-{number:05d}-of-03000.tar" for number in range(3000)],
    ],
)
def test_flat_nested_and_numbered_keys_are_divided(keys: list[str]) -> None:
    store = Store(keys, 10)
    assert Counter(listed(store, 8)) == Counter(keys)
    ranges = sum(isinstance(token, After) for token in store.requests)
    assert ranges >= 8
    assert len(store.requests) < 2 * 300, "most requests bring keys that no other one brings"


def test_a_short_listing_takes_no_request_more_than_page_after_page() -> None:
    store = Store([f"{PREFIX}{number}" for number in range(12)], 3)
    assert len(listed(store)) == 12
    assert store.requests == [None, "3", "6", "9"]


def test_requests_are_in_flight_together() -> None:
    keys = [f"{PREFIX}{number:08d}" for number in range(600)]
    store = Store(keys, 2)
    met = threading.Barrier(2)

    def waits(token: str | None) -> bool:
        if len(store.requests) > PAGES_BEFORE and not met.broken:
            with suppress(threading.BrokenBarrierError):
                met.wait(10)
                met.abort()
        return False

    store.fails_on = waits
    assert Counter(listed(store, 4)) == Counter(keys)
    assert store.most_in_flight >= 2


def test_a_refused_probe_leaves_the_listing_to_one_thread() -> None:
    keys = [f"{PREFIX}{number:04d}" for number in range(90)]
    store = Store(keys)
    store.fails_on = lambda token: isinstance(token, After)
    assert listed(store) == keys


def test_an_error_of_a_page_ends_the_listing_and_its_threads() -> None:
    store = Store([f"{PREFIX}{number:04d}" for number in range(900)])
    store.fails_on = lambda token: token is not None and not isinstance(token, After) and int(token) > 500
    before = set(threading.enumerate())
    with pytest.raises(AccessDenied):
        listed(store)
    assert set(threading.enumerate()) <= before


def test_a_listing_that_is_closed_early_ends_its_threads() -> None:
    store = Store([f"{PREFIX}{number:04d}" for number in range(9000)])
    before = set(threading.enumerate())
    pages = pages_in_ranges(lambda: store.fetch, PREFIX, "bucket")
    assert len(next(pages)) == 3
    pages.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


def test_a_range_that_repeats_itself_is_an_error() -> None:
    class Endless(Store):
        def fetch(self, token: str | None) -> ListedPage:
            page, following = super().fetch(token)
            return ListedPage(page, following or "0")

    with pytest.raises((StoreProtocolError, KeysNotInOrder)):
        listed(Endless([f"{PREFIX}{number:04d}" for number in range(90)]))


@given(NAMES, NAMES)
def test_a_midpoint_lies_between_and_divides_the_width(one: str, other: str) -> None:
    low, high = sorted((PREFIX + one, PREFIX + other))
    found = midpoint(low, high, PREFIX)
    assert found is None or (low < found < high and found.isprintable())
    if found is not None and (low + high).isascii():
        assert width(low, high, PREFIX) >= width(low, found, PREFIX)


@given(NAMES)
def test_a_midpoint_before_the_end_lies_after_the_key(name: str) -> None:
    found = midpoint(PREFIX + name, None, PREFIX)
    assert found is None or (found > PREFIX + name and found.startswith(PREFIX))


def test_a_part_of_a_page_keeps_its_archived_keys() -> None:
    page = ObjectPage(["a", "b"], [1, 2], ["x", "y"], [0, 1], archived=["a", "b"])
    assert part_of(page, 1) == ObjectPage(["a"], [1], ["x"], [0], archived=["a"])


class _Ranges:
    """A store for the builder."""

    endpoint, bucket, lists_ranges = "http://store", "bucket", True

    def __init__(self, store: Store) -> None:
        self._store = store

    def list_in_ranges(self, prefix: str) -> Iterator[ObjectPage]:
        return pages_in_ranges(lambda: self._store.fetch, prefix, "bucket")

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return all_pages(partial(Store.fetch, self._store), "bucket")


@pytest.mark.promise("S622")
def test_a_manifest_of_a_store_without_order_is_built_page_after_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_listing, "PAGES_BEFORE", 1)
    keys = [f"{PREFIX}{name}" for name in ("a", "a/1", "a/2", "a-b", "b/1", "b/2", "c")]
    store = Store(keys, 1, by_directory=True)
    dataset = Dataset(DatasetUrl.parse(f"s3://bucket/{PREFIX}"))
    manifest = build_from_store(_Ranges(store), dataset, tmp_path / "manifest.arrow")  # type: ignore[arg-type]
    assert manifest.file_count == len(keys)
    assert store.requests.count(None) == 2, "from the beginning again"
