"""The thread that has many small objects under way, by itself: its store is a script."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from csi_driver.event_loop import event_loop as loop
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import NotPlain, Whole
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import (
    MOST_BYTES,
    MOST_BYTES_COMING,
    MOST_BYTES_LEFT,
    Rest,
    SmallFetch,
    SmallObjectFetcher,
)
from tests.support.daemons import wait_until


class Scripted:
    """A store whose objects come as they are told to."""

    endpoint, bucket, reads_whole = "test://store", "bucket", True

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> object:
        return self._begin()


class Told:
    """Something that is on its way, and that can be read at once."""

    timeout_s = 0.05
    events = select.POLLIN

    def __init__(self, advance: Callable[[], Whole | None], ready: bool = True) -> None:
        self._ends = socket.socketpair()
        self.advance = advance
        self.given_up = False
        if ready:
            self.send()

    def send(self) -> None:
        """There is something to be read."""
        self._ends[1].send(b"x")

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def give_up(self) -> None:
        self.given_up = True
        for end in self._ends:
            end.close()


@pytest.fixture
def fetches() -> Iterator[SmallObjectFetcher]:
    fetches = SmallObjectFetcher(4)
    yield fetches
    fetches.close()


def fetch_of(begin: Callable[[], object], elsewhere: list[int]) -> SmallFetch:
    def arrived(whole: Whole) -> None:
        raise AssertionError("nothing arrives")

    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), Scripted(begin))  # type: ignore[arg-type]
    assert SmallObjectFetcher.takes(source)
    return SmallFetch(source, arrived, lambda: elsewhere.append(1))


def raises(error: Exception) -> Callable[..., NoReturn]:
    def fails(*_: object) -> NoReturn:
        raise error

    return fails


@pytest.mark.parametrize("begin", [lambda: None, raises(ValueError("nobody foresaw this"))], ids=["no", "raises"])
def test_what_cannot_begin_is_done_elsewhere(fetches: SmallObjectFetcher, begin: Callable[[], object]) -> None:
    elsewhere: list[int] = []
    for _ in range(3):
        fetches.submit(fetch_of(begin, elsewhere))
    wait_until(lambda: len(elsewhere) == 3)


@pytest.mark.parametrize(
    "error", [NotPlain(), ConnectionResetError(), ValueError("nobody foresaw this"), MemoryError()], ids=repr
)
def test_what_breaks_on_its_way_is_given_up_and_done_elsewhere(fetches: SmallObjectFetcher, error: Exception) -> None:
    elsewhere: list[int] = []
    coming = [Told(raises(error)) for _ in range(6)]
    left = list(coming)
    for _ in coming:
        fetches.submit(fetch_of(left.pop, elsewhere))
    wait_until(lambda: len(elsewhere) == 6)
    assert all(told.given_up for told in coming)
    assert fetches.busy == 0


def test_what_does_not_come_in_time_is_given_up_and_done_elsewhere(fetches: SmallObjectFetcher) -> None:
    elsewhere: list[int] = []
    told = Told(lambda: None, ready=False)
    fetches.submit(fetch_of(lambda: told, elsewhere))
    wait_until(lambda: len(elsewhere) == 1)
    assert told.given_up


def test_what_keeps_coming_is_waited_for_however_long_it_takes() -> None:
    """Each wait is bounded, and not the whole. The clock goes twenty times as fast as time."""
    fetches, elsewhere = SmallObjectFetcher(4, clock=lambda: time.monotonic() * 20), list[int]()

    def a_little() -> None:
        time.sleep(0.002)

    told = Told(a_little)
    told.timeout_s = 10.0
    fetches.submit(fetch_of(lambda: told, elsewhere))
    time.sleep(1.2)
    assert not told.given_up
    assert elsewhere == []
    fetches.close()


def test_requests_of_all_volumes_together_are_bounded() -> None:
    fetches = SmallObjectFetcher(16)
    silent = [Told(lambda: None, ready=False) for _ in range(30)]
    left = list(silent)
    for told in silent:
        told.timeout_s = 60.0
    for _ in silent:
        version = ObjectVersion("d", "e", "b", "key", "etag", 1)
        source = ObjectSource(version, Scripted(left.pop))  # type: ignore[arg-type]
        fetches.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(left) == 30 - 16)
    time.sleep(0.05)
    assert len(left) == 30 - 16
    fetches.close()
    for told in left:
        told.give_up()


def test_the_bytes_of_all_that_is_under_way_are_bounded() -> None:
    fetches = SmallObjectFetcher(1024)
    silent = [Told(lambda: None, ready=False) for _ in range(60)]
    left = list(silent)
    for told in silent:
        told.timeout_s = 60.0
    for _ in silent:
        version = ObjectVersion("d", "e", "b", "key", "etag", MOST_BYTES)
        source = ObjectSource(version, Scripted(left.pop))  # type: ignore[arg-type]
        fetches.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(left) == 60 - MOST_BYTES_COMING // MOST_BYTES)
    time.sleep(0.05)
    assert len(left) == 60 - MOST_BYTES_COMING // MOST_BYTES
    silent[-1].advance = raises(ConnectionResetError())
    silent[-1].send()
    wait_until(lambda: len(left) == 60 - MOST_BYTES_COMING // MOST_BYTES - 1)
    fetches.close()
    for told in left:
        told.give_up()


def test_what_has_to_be_sent_first_is_waited_for_until_it_can_be(fetches: SmallObjectFetcher) -> None:
    """A link that is being made is waited for to be written to, and then to be read from."""
    steps: list[int] = []

    def advance() -> Whole | None:
        steps.append(told.events)
        told.events = select.POLLIN
        return None if len(steps) < 2 else Whole([memoryview(b"x")])

    told = Told(advance, ready=False)
    told.events, told.timeout_s = select.POLLOUT, 60.0
    came: list[Whole] = []
    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), Scripted(lambda: told))  # type: ignore[arg-type]
    fetches.submit(SmallFetch(source, came.append, lambda: None))
    wait_until(lambda: steps == [select.POLLOUT])
    time.sleep(0.05)
    assert steps == [select.POLLOUT], "nothing has come yet"
    told.send()
    wait_until(lambda: len(came) == 1)
    assert steps == [select.POLLOUT, select.POLLIN]
    told.give_up()


def test_a_volume_whose_store_is_silent_leaves_the_others_a_way(fetches: SmallObjectFetcher) -> None:
    """More requests than may be under way, of one volume; then one of another."""
    elsewhere: list[int] = []
    silent = [Told(lambda: None, ready=False) for _ in range(20)]
    for told in silent:
        told.timeout_s = 60.0
    left = list(silent)
    store = Scripted(left.pop)
    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), store)  # type: ignore[arg-type]
    many = SmallObjectFetcher(16)
    for _ in silent:
        many.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(left) == 20 - 14)
    many.submit(fetch_of(lambda: None, elsewhere))
    wait_until(lambda: len(elsewhere) == 1)
    assert len(left) == 20 - 14, "two of the 16 are kept for others"
    many.close()
    for told in left:
        told.give_up()


def test_what_is_submitted_while_it_sleeps_or_works_is_not_forgotten(fetches: SmallObjectFetcher) -> None:
    elsewhere: list[int] = []
    for number in range(2000):
        fetches.submit(fetch_of(lambda: None, elsewhere))
        if number % 7 == 0:
            time.sleep(0.0002)
    wait_until(lambda: len(elsewhere) == 2000)
    assert fetches.busy == 0


def test_what_is_submitted_after_the_end_does_no_harm() -> None:
    fetches = SmallObjectFetcher(4)
    fetches.close()
    fetches.loop._sleeping = True
    fetches.submit(fetch_of(lambda: None, []))


@pytest.mark.parametrize("reads_whole", [False, None], ids=["a wrapper around another kind", "a store without it"])
def test_stores_of_other_kinds_are_asked_by_the_threads_alone(reads_whole: bool | None) -> None:
    store = Scripted(lambda: None)
    store.reads_whole = reads_whole  # type: ignore[assignment]
    assert not SmallObjectFetcher.takes(ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), store))  # type: ignore[arg-type]


class Schedule:
    """What happens to objects that have all come by the time when the first of them is taken."""

    def __init__(self, fetches: SmallObjectFetcher) -> None:
        self.happened: list[str] = []
        self._fetches = fetches
        self._told: list[Told] = []
        self._go_on = threading.Event()
        self.submit("first", lambda: self._go_on.wait(20))
        wait_until(lambda: "first answered" in self.happened)

    def submit(
        self,
        name: str,
        on_arrival: Callable[[], object] = lambda: None,
        *,
        size_bytes: int = 1,
        awaited: bool = False,
        ready: bool = True,
        on_write: Callable[[], object] = lambda: None,
    ) -> None:
        def begin() -> Told:
            self.happened.append(f"{name} asked for")
            self._told.append(Told(lambda: Whole([memoryview(b"x")]), ready))
            self._told[-1].timeout_s = 60.0
            return self._told[-1]

        def arrived(_whole: Whole) -> Rest:
            self.happened.append(f"{name} answered")
            on_arrival()
            return Rest(write, awaited)

        def write() -> None:
            on_write()
            self.happened.append(f"{name} written")

        source = ObjectSource(ObjectVersion("d", "e", "b", name, "etag", size_bytes), Scripted(begin))  # type: ignore[arg-type]
        self._fetches.submit(SmallFetch(source, arrived, lambda: None))

    def go_on(self, until: str) -> list[str]:
        """What happens after all were asked for, up to and with that."""
        start = len(self.happened)
        self.end_of_arrival()
        wait_until(lambda: until in self.happened)
        return [step for step in self.happened[start:] if not step.startswith("first")]

    def end_of_arrival(self) -> None:
        """Of the first."""
        self._go_on.set()

    def give_up(self) -> None:
        for told in self._told:
            told.give_up()


@pytest.fixture
def course() -> Iterator[Schedule]:
    fetches = SmallObjectFetcher(64)
    course = Schedule(fetches)
    yield course
    course.end_of_arrival()
    fetches.close()
    course.give_up()


def test_requests_go_first_then_answers_and_writes_when_nothing_has_come(course: Schedule) -> None:
    course.submit("A", lambda: course.submit("C", ready=False))
    course.submit("B")
    assert course.go_on("B written") == [
        "A asked for",
        "B asked for",
        "A answered",
        "C asked for",
        "B answered",
        "A written",
        "B written",
    ]


def test_what_somebody_waits_for_is_written_at_once(course: Schedule) -> None:
    course.submit("A")
    course.submit("B", awaited=True)
    course.submit("C")
    steps = course.go_on("C written")
    assert steps[3:] == ["A answered", "B answered", "B written", "C answered", "A written", "C written"]


def test_of_what_is_answered_so_much_waits_to_be_written_and_no_more() -> None:
    fetches = SmallObjectFetcher(64)
    course, left = Schedule(fetches), list[int]()
    fit = MOST_BYTES_LEFT // MOST_BYTES
    for number in range(2 * fit):
        course.submit(str(number), lambda: left.append(fetches._left_bytes), size_bytes=MOST_BYTES)
    steps = course.go_on(f"{2 * fit - 1} written")
    fetches.close()
    course.give_up()
    assert max(left) == MOST_BYTES_LEFT
    before_the_last = steps[: steps.index(f"{2 * fit - 1} answered")]
    assert sum(step.endswith("written") for step in before_the_last) == fit - 1
    assert fetches._left_bytes == 0


def test_what_is_answered_is_written_before_the_end() -> None:
    fetches, go_on = SmallObjectFetcher(64), threading.Event()
    course = Schedule(fetches)
    course.submit("A")
    course.submit("B", lambda: go_on.wait(20))
    course.end_of_arrival()
    wait_until(lambda: "B answered" in course.happened)
    ending = threading.Thread(target=fetches.close)
    ending.start()
    wait_until(lambda: fetches.loop.closing)
    go_on.set()
    ending.join(20)
    assert course.happened[-4:] == ["A answered", "B answered", "A written", "B written"]
    course.give_up()


def test_the_end_waits_for_whoever_went_on_in_the_place_of_one_that_was_stuck() -> None:
    fetches, b_begun = SmallObjectFetcher(64), threading.Event()
    course = Schedule(fetches)
    course.submit("A", on_write=lambda: b_begun.wait(20))
    course.submit("B", on_write=lambda: (b_begun.set(), time.sleep(0.2)))
    course.end_of_arrival()
    wait_until(lambda: "B answered" in course.happened)
    fetches.close()
    assert set(course.happened[-2:]) == {"A written", "B written"}
    course.give_up()


def test_what_is_not_written_in_time_at_the_end_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is closed next: nothing must be written to it any more."""
    monkeypatch.setattr(loop, "_STOP_S", 0.1)
    fetches, stuck, go_on = SmallObjectFetcher(64), threading.Event(), threading.Event()
    course = Schedule(fetches)
    course.submit("A", on_write=lambda: (stuck.set(), go_on.wait(20)))
    course.submit("B")
    course.end_of_arrival()
    wait_until(stuck.is_set)
    thread = fetches.loop._thread
    fetches.close()
    go_on.set()
    thread.join(20)
    assert course.happened[-2:] == ["B answered", "A written"]
    course.give_up()


def test_what_cannot_be_answered_is_done_elsewhere(fetches: SmallObjectFetcher) -> None:
    elsewhere: list[int] = []
    told = Told(lambda: Whole([memoryview(b"x")]))
    fetch = fetch_of(lambda: told, elsewhere)
    fetch.arrived = raises(ValueError("nobody foresaw this"))  # type: ignore[assignment]
    fetches.submit(fetch)
    wait_until(lambda: len(elsewhere) == 1)
    assert fetches.busy == 0
    told.give_up()
