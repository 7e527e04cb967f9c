"""A long listing that was killed goes on where it ended: complete, each key once, no page twice but those in flight."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.builder import build_from_store
from csi_driver.catalog.listing_journal import RESUMED_WITHIN_S, ListingJournal
from csi_driver.model.errors import AccessDenied, BudgetExceeded, StoreUnavailable
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.listing_pages import After, ListingLog, LoggedPage, all_pages
from csi_driver.objects.parallel_listing import KeysNotInOrder, pages_in_ranges
from tests.support.datasets import dataset
from tests.unit.test_parallel_listing import NAMES, PREFIX, Store

Pages = Callable[[Store, ListingLog | None], Iterator[ObjectPage]]


def in_ranges(store: Store, log: ListingLog | None = None, requests: int = 4) -> Iterator[ObjectPage]:
    return pages_in_ranges(lambda: store.fetch, PREFIX, "bucket", requests, log)


def page_after_page(store: Store, log: ListingLog | None = None) -> Iterator[ObjectPage]:
    return all_pages(store.fetch, "bucket", log)


class Killed(Exception):
    """In place of the end of a process."""


def listed_until(pages: Iterator[ObjectPage], most_pages: int) -> list[str] | None:
    """The keys; None if the listing was killed after so many pages."""
    keys: list[str] = []
    try:
        for number, page in enumerate(pages):
            if number == most_pages:
                return None
            keys += page.keys
    finally:
        pages.close()  # type: ignore[attr-defined]
    return keys


def journal_at(directory: str | Path, pages_in_memory: int = 1) -> ListingJournal:
    return ListingJournal(Path(directory) / "listings" / "name", pages_in_memory=pages_in_memory)


@pytest.mark.promise("S636")
@given(
    st.sets(NAMES, max_size=100),
    st.integers(1, 5),
    st.lists(st.integers(0, 12), max_size=6),
    st.sampled_from([in_ranges, page_after_page]),
    st.integers(1, 3),
)
def test_any_kills_leave_a_complete_listing(
    names: set[str], page_keys: int, kills: list[int], pages: Pages, in_memory: int
) -> None:
    keys = [PREFIX + name for name in names]
    with tempfile.TemporaryDirectory() as directory:
        for after in kills:
            journal = journal_at(directory, in_memory)
            listed_until(pages(Store(keys, page_keys), journal), after)
            journal.close()
        journal = journal_at(directory, in_memory)
        found = listed_until(pages(Store(keys, page_keys), journal), 10_000)
        assert found is not None
        assert Counter(found) == Counter(keys)
        journal.finished()
        assert not (Path(directory) / "listings" / "name").exists()


@pytest.mark.promise("S636")
@pytest.mark.parametrize("pages", [in_ranges, page_after_page])
def test_no_page_is_requested_twice_but_those_in_flight(pages: Pages, tmp_path: Path) -> None:
    keys = [f"{PREFIX}{number:06d}" for number in range(3000)]
    store, kills = Store(keys, 10), 8
    for number in range(kills):
        journal = journal_at(tmp_path)
        assert listed_until(pages(store, journal), 30 * (number + 1)) is None
        journal.close()
    journal = journal_at(tmp_path)
    assert listed_until(pages(store, journal), 10_000) is not None
    probes = sum(isinstance(token, After) for token in store.requests)
    # In flight at a kill: a page for each of 4 threads, and those that wait to be handed over.
    assert len(store.requests) - probes <= 300 + kills * (4 + 2 * 4)
    journal.close()


class _Resumable:
    """A store for the builder."""

    endpoint, bucket, lists_pages = "http://store", "bucket", True

    def __init__(self, store: Store, *, lists_ranges: bool = True) -> None:
        self._store, self.lists_ranges = store, lists_ranges

    def list_logged(self, prefix: str, log: ListingLog, *, in_ranges: bool) -> Iterator[ObjectPage]:
        if in_ranges:
            return pages_in_ranges(lambda: self._store.fetch, prefix, "bucket", log=log)
        return all_pages(partial(Store.fetch, self._store), "bucket", log)

    def list_in_ranges(self, prefix: str) -> Iterator[ObjectPage]:
        raise AssertionError("not for a listing with a journal")

    list = list_in_ranges


def built(store: Store, directory: Path, **more: object) -> int:
    of = dataset(url=f"s3://bucket/{PREFIX}")
    path = directory / "listings" / "name"
    made = _Resumable(store)
    return build_from_store(made, of, directory / "m.arrow", journal_path=path, **more).file_count  # type: ignore[arg-type]


def _is_late(store: Store, requests: int, token: str | None) -> bool:
    return len(store.requests) > requests


@pytest.mark.promise("S636")
def test_a_listing_that_breaks_off_is_continued_and_one_that_was_wrong_is_not(tmp_path: Path) -> None:
    keys = [f"{PREFIX}{number:06d}" for number in range(600)]
    path = tmp_path / "listings" / "name"
    store = Store(keys)
    for refusal, stays in ((StoreUnavailable("down"), True), (BudgetExceeded("too many"), False)):
        store.refusal, store.fails_on = refusal, partial(_is_late, store, len(store.requests) + 120)
        with pytest.raises(type(refusal)):
            built(store, tmp_path)
        assert path.exists() is stays
        store.fails_on, before = lambda token: False, len(store.requests)
        assert built(store, tmp_path) == 600
        begun_anew = None in store.requests[before:]  # the first page has no token
        assert begun_anew is not stays
        assert not path.exists()


def test_a_store_without_order_is_continued_page_after_page(tmp_path: Path) -> None:
    # The third page shows that, before a second thread lists.
    keys = [f"{PREFIX}{name}" for name in ("a/0", "a/1", "a-b", *(f"b{number:03d}" for number in range(177)))]
    store = Store(keys, 1, by_directory=True)
    store.refusal, store.fails_on = StoreUnavailable("down"), lambda token: str(token) == "150"
    with pytest.raises(StoreUnavailable):
        built(store, tmp_path)
    store.fails_on, before = lambda token: False, len(store.requests)
    assert built(store, tmp_path) == len(keys)
    assert store.requests[before] == "150"
    assert len(store.requests) - before == 30


def test_a_short_listing_leaves_no_file(tmp_path: Path) -> None:
    store = Store([f"{PREFIX}{number}" for number in range(40)])
    store.refusal, store.fails_on = StoreUnavailable("down"), lambda token: token == "36"
    with pytest.raises(StoreUnavailable):
        built(store, tmp_path)
    assert not (tmp_path / "listings").exists()


def a_page(number: int) -> LoggedPage:
    keys = [f'{PREFIX}{number}-\udcff"\n', f"{PREFIX}{number}-b"]
    page = ObjectPage(keys, [1, 2], [None, "x"], [-1, 2], unreadable=["u"], archived=[keys[0]])
    return LoggedPage(page, "", str(number + 1))


def pages_in(path: Path) -> list[LoggedPage]:
    journal = ListingJournal(path)
    try:
        return list(journal.earlier())
    finally:
        journal.close()


@given(st.integers(0, 2000), st.sampled_from(["cut", "flipped", "zeroed"]))
def test_of_a_torn_file_the_sound_pages_are_used(place: int, damage: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "name"
        journal, written = ListingJournal(path, pages_in_memory=1), [a_page(number) for number in range(9)]
        for logged in written:
            journal.add(logged)
        journal.close()
        whole = bytearray(path.read_bytes())
        place %= len(whole)
        if damage == "cut":
            del whole[place:]
        else:
            whole[place] = 0 if damage == "zeroed" else whole[place] ^ 1
        path.write_bytes(whole)
        found = pages_in(path)
        assert found == written[: len(found)]
        journal = ListingJournal(path, pages_in_memory=1)
        assert list(journal.earlier()) == found
        journal.add(written[-1])
        journal.close()
        assert pages_in(path) == [*found, written[-1]]


def test_a_file_is_used_by_one_listing_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi_driver.catalog.listing_journal._LOCK_WAIT_S", 0.0)
    path = tmp_path / "name"
    first = ListingJournal(path, pages_in_memory=1)
    first.add(a_page(0))
    second = ListingJournal(path, pages_in_memory=1)
    assert not second.has_earlier
    second.add(a_page(1))
    second.finished()
    first.add(a_page(2))
    first.close()
    assert pages_in(path) == [a_page(0), a_page(2)]


def test_a_file_that_is_too_old_or_too_large_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "name"
    journal = ListingJournal(path, pages_in_memory=1)
    journal.add(a_page(0))
    journal.close()
    long_ago = time.time() - RESUMED_WITHIN_S - 1
    os.utime(path, (long_ago, long_ago))
    assert not ListingJournal(path).has_earlier
    assert not path.exists()
    small = ListingJournal(path, 400, pages_in_memory=1)
    for number in range(9):
        small.add(a_page(number))
    assert not path.exists()
    small.finished()


def test_a_directory_that_cannot_be_written_costs_the_journal_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = set(threading.enumerate())
    journal = ListingJournal(tmp_path / "file" / "name", pages_in_memory=1)
    journal.add(a_page(0))
    journal.closed_after(AccessDenied("no"))
    assert set(threading.enumerate()) <= before, "no thread is left"


def test_keys_out_of_order_after_a_resumption_are_noticed(tmp_path: Path) -> None:
    keys = [f"{PREFIX}{number:06d}" for number in range(300)]
    journal = journal_at(tmp_path)
    assert listed_until(in_ranges(Store(keys), journal), 20) is None
    journal.close()
    with pytest.raises(KeysNotInOrder):
        list(in_ranges(Store([f"{PREFIX}{'abc'[number % 3]}{number}" for number in range(300)]), journal_at(tmp_path)))
