"""The small-object fetcher, with a scripted store."""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from csi_driver.event_loop import event_loop
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import UnusableResponse, WholeObject
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import MAX_IN_FLIGHT_BYTES, Job
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import (
    MAX_DEFERRED_BYTES,
    MAX_OBJECT_BYTES,
    ObjectWrite,
    SmallFetch,
    SmallObjectFetcher,
)
from tests.support.daemons import wait_until
from tests.support.own_event_loop import OwnLoopFetcher


class ResponseStore:
    """A store with a scripted response for every object."""

    endpoint, bucket, reads_whole = "test://store", "bucket", True

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> object:
        return self._begin()


class ScriptedResponse:
    """A response in flight, of which bytes can be read at once if it is ``ready``. ``grows``: each time some of the
    object are among them."""

    timeout_s = 0.05
    events = select.POLLIN

    def __init__(self, advance: Callable[[], WholeObject | None], ready: bool = True, grows: bool = True) -> None:
        self._ends = socket.socketpair()
        self.advance = advance
        self._progress = itertools.count() if grows else itertools.repeat(0)
        self.aborted = False
        if ready:
            self.send()

    def send(self) -> None:
        """Makes the descriptor readable."""
        self._ends[1].send(b"x")

    @property
    def progress(self) -> int:
        return next(self._progress)

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def abort(self) -> None:
        self.aborted = True
        for end in self._ends:
            end.close()


@pytest.fixture
def fetcher() -> Iterator[OwnLoopFetcher]:
    fetcher = OwnLoopFetcher(4)
    yield fetcher
    fetcher.close()


def fetch_of(begin: Callable[[], object], fallbacks: list[int], share: Share = Share()) -> SmallFetch:  # noqa: B008
    def received(whole: WholeObject) -> None:
        raise AssertionError("nothing is received")

    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), ResponseStore(begin), share=share)  # type: ignore[arg-type]
    assert SmallObjectFetcher.accepts(source)
    return SmallFetch(source, received, lambda: fallbacks.append(1))


class Panic(BaseException):
    """Not an ``Exception``, as the panics of a store's client."""


def raises(error: BaseException) -> Callable[..., NoReturn]:
    def fails(*_: object) -> NoReturn:
        raise error

    return fails


@pytest.mark.promise("S220")
@pytest.mark.parametrize(
    "begin", [lambda: None, raises(ValueError("a defect")), raises(Panic())], ids=["no", "raises", "panics"]
)
def test_a_request_that_cannot_start_goes_to_the_fallback(fetcher: OwnLoopFetcher, begin: Callable[[], object]) -> None:
    fallbacks: list[int] = []
    for _ in range(3):
        fetcher.submit(fetch_of(begin, fallbacks))
    wait_until(lambda: len(fallbacks) == 3)


@pytest.mark.promise("S220")
@pytest.mark.parametrize(
    "error", [UnusableResponse(), ConnectionResetError(), ValueError("a defect"), MemoryError(), Panic()], ids=repr
)
def test_a_request_that_fails_is_aborted_and_goes_to_the_fallback(
    fetcher: OwnLoopFetcher, error: BaseException
) -> None:
    fallbacks: list[int] = []
    responses = [ScriptedResponse(raises(error)) for _ in range(6)]
    remaining = list(responses)
    for _ in responses:
        fetcher.submit(fetch_of(remaining.pop, fallbacks))
    wait_until(lambda: len(fallbacks) == 6)
    assert all(response.aborted for response in responses)
    assert fetcher.busy == 0


@pytest.mark.promise("S220")
def test_a_request_goes_to_the_fallback_although_its_abort_fails(fetcher: OwnLoopFetcher) -> None:
    fallbacks: list[int] = []
    late, early = ScriptedResponse(lambda: None, ready=False), ScriptedResponse(raises(UnusableResponse()))
    ends = late.abort, early.abort
    late.abort = early.abort = raises(Panic())  # type: ignore[method-assign]
    for response in (late, early):
        fetcher.submit(fetch_of(lambda response=response: response, fallbacks))  # type: ignore[misc]
    wait_until(lambda: len(fallbacks) == 2)
    assert fetcher.busy == 0
    for end in ends:
        end()


@pytest.mark.promise("S220")
def test_a_request_that_cannot_be_polled_goes_to_the_fallback(fetcher: OwnLoopFetcher) -> None:
    fallbacks: list[int] = []
    closed = ScriptedResponse(lambda: None)
    closed.abort()  # its descriptor is -1
    fetcher.submit(fetch_of(lambda: closed, fallbacks))
    wait_until(lambda: len(fallbacks) == 1)
    assert fetcher.busy == 0


def test_a_request_that_times_out_is_aborted_and_goes_to_the_fallback(fetcher: OwnLoopFetcher) -> None:
    fallbacks: list[int] = []
    response = ScriptedResponse(lambda: None, ready=False)
    fetcher.submit(fetch_of(lambda: response, fallbacks))
    wait_until(lambda: len(fallbacks) == 1)
    assert response.aborted


def test_a_slow_response_does_not_time_out_while_bytes_are_received() -> None:
    """The timeout is for each wait, and not for the object. The clock runs twenty times as fast as time."""
    fetcher, fallbacks = OwnLoopFetcher(4, clock=lambda: time.monotonic() * 20), list[int]()

    def a_little() -> None:
        time.sleep(0.002)

    response = ScriptedResponse(a_little)
    response.timeout_s = 10.0
    fetcher.submit(fetch_of(lambda: response, fallbacks))
    time.sleep(1.2)
    assert not response.aborted
    assert fallbacks == []
    fetcher.close()


@pytest.mark.promise("S200")
def test_bytes_that_are_none_of_the_object_are_no_progress(fetcher: OwnLoopFetcher) -> None:
    """Such as a head that comes byte by byte, or records of TLS without data."""
    fallbacks: list[int] = []
    response = ScriptedResponse(lambda: time.sleep(0.002), grows=False)
    fetcher.submit(fetch_of(lambda: response, fallbacks))
    wait_until(lambda: fallbacks == [1])
    assert response.aborted


def test_requests_in_flight_of_all_volumes_together_are_bounded() -> None:
    fetcher = OwnLoopFetcher(16)
    silent = [ScriptedResponse(lambda: None, ready=False) for _ in range(30)]
    remaining = list(silent)
    for response in silent:
        response.timeout_s = 60.0
    for number in range(len(silent)):
        version = ObjectVersion("d", "e", "b", "key", "etag", 1)
        source = ObjectSource(version, ResponseStore(remaining.pop), share=Share("", "store", str(number % 2)))  # type: ignore[arg-type]
        fetcher.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(remaining) == 30 - 16)
    time.sleep(0.05)
    assert len(remaining) == 30 - 16
    fetcher.close()
    for response in remaining:
        response.abort()


def test_bytes_in_flight_are_bounded() -> None:
    fetcher = OwnLoopFetcher(1024)
    silent = [ScriptedResponse(lambda: None, ready=False) for _ in range(60)]
    remaining = list(silent)
    for response in silent:
        response.timeout_s = 60.0
    for number in range(len(silent)):
        version = ObjectVersion("d", "e", "b", "key", "etag", MAX_OBJECT_BYTES)
        source = ObjectSource(version, ResponseStore(remaining.pop), share=Share("", "store", str(number % 2)))  # type: ignore[arg-type]
        fetcher.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(remaining) == 60 - MAX_IN_FLIGHT_BYTES // MAX_OBJECT_BYTES)
    time.sleep(0.05)
    assert len(remaining) == 60 - MAX_IN_FLIGHT_BYTES // MAX_OBJECT_BYTES
    silent[-1].advance = raises(ConnectionResetError())
    silent[-1].send()
    wait_until(lambda: len(remaining) == 60 - MAX_IN_FLIGHT_BYTES // MAX_OBJECT_BYTES - 1)
    fetcher.close()
    for response in remaining:
        response.abort()


def test_a_connection_is_polled_for_writing_and_then_for_reading(fetcher: OwnLoopFetcher) -> None:
    """A connection that is being opened."""
    steps: list[int] = []

    def advance() -> WholeObject | None:
        steps.append(response.events)
        response.events = select.POLLIN
        return None if len(steps) < 2 else WholeObject([memoryview(b"x")])

    response = ScriptedResponse(advance, ready=False)
    response.events, response.timeout_s = select.POLLOUT, 60.0
    received: list[WholeObject] = []
    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), ResponseStore(lambda: response))  # type: ignore[arg-type]
    fetcher.submit(SmallFetch(source, received.append, lambda: None))
    wait_until(lambda: steps == [select.POLLOUT])
    time.sleep(0.05)
    assert steps == [select.POLLOUT], "nothing is received yet"
    response.send()
    wait_until(lambda: len(received) == 1)
    assert steps == [select.POLLOUT, select.POLLIN]
    response.abort()


def test_a_volume_whose_store_hangs_leaves_requests_to_other_volumes(fetcher: OwnLoopFetcher) -> None:
    """More requests than may be in flight, of one volume; then one of another."""
    fallbacks: list[int] = []
    silent = [ScriptedResponse(lambda: None, ready=False) for _ in range(20)]
    for response in silent:
        response.timeout_s = 60.0
    remaining = list(silent)
    store = ResponseStore(remaining.pop)
    source = ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), store)  # type: ignore[arg-type]
    many = OwnLoopFetcher(16)
    for _ in silent:
        many.submit(SmallFetch(source, lambda whole: None, lambda: None))
    wait_until(lambda: len(remaining) == 20 - 14)
    many.submit(fetch_of(lambda: None, fallbacks, Share("", "", "other")))
    wait_until(lambda: len(fallbacks) == 1)
    assert len(remaining) == 20 - 14, "two of the 16 are remaining to others"
    many.close()
    for response in remaining:
        response.abort()


class SilentStores:
    """Volumes of several stores and namespaces that never answer."""

    def __init__(self, fetcher: OwnLoopFetcher) -> None:
        self._fetcher = fetcher
        self.begun: list[ScriptedResponse] = []

    def request(self, share: Share, count: int, size_bytes: int = 1) -> None:
        def begin() -> ScriptedResponse:
            response = ScriptedResponse(lambda: WholeObject([memoryview(b"x")]), ready=False)
            response.timeout_s = 1000.0
            self.begun.append(response)
            return response

        for _ in range(count):
            version = ObjectVersion("d", "e", "b", "key", "etag", size_bytes)
            source = ObjectSource(version, ResponseStore(begin), share=share)  # type: ignore[arg-type]
            self._fetcher.submit(SmallFetch(source, lambda whole: None, lambda: None))


@pytest.mark.parametrize("size_bytes", [1, MAX_OBJECT_BYTES])
def test_a_namespace_does_not_wait_for_requests_of_others(size_bytes: int) -> None:
    fetcher, fallbacks = OwnLoopFetcher(128), list[int]()
    stores = SilentStores(fetcher)
    for number in range(20):
        stores.request(Share(f"team-{number % 4}", f"store-{number}", f"volume-{number}"), 200, size_bytes)
    wait_until(lambda: len(stores.begun) >= 32)
    fetcher.submit(fetch_of(lambda: None, fallbacks, Share("team-9", "store-9", "victim")))
    wait_until(lambda: len(fallbacks) == 1)
    fetcher.close()


def test_requests_without_a_byte_leave_their_place_to_others() -> None:
    """The clock runs twenty times as fast as time."""
    fetcher = OwnLoopFetcher(16, clock=lambda: time.monotonic() * 20)
    stores = SilentStores(fetcher)
    for number in range(20):
        stores.request(Share("team", f"store-{number}", f"volume-{number}"), 200, MAX_OBJECT_BYTES // 4)
    wait_until(lambda: len(stores.begun) >= 31)
    wait_until(lambda: fetcher.busy == 0)
    assert len(stores.begun) == 32, "half of all the places, and not more, for one namespace"
    stores.begun[5].send()
    wait_until(lambda: len(stores.begun) == 33)
    fetcher.close()
    assert all(response.aborted for response in stores.begun[:5] + stores.begun[6:])
    stores.begun[5].abort()


def test_requests_submitted_while_the_loop_polls_or_works_are_all_started(fetcher: OwnLoopFetcher) -> None:
    fallbacks: list[int] = []
    for number in range(2000):
        fetcher.submit(fetch_of(lambda: None, fallbacks))
        if number % 7 == 0:
            time.sleep(0.0002)
    wait_until(lambda: len(fallbacks) == 2000)
    assert fetcher.busy == 0


def test_submitting_after_close_does_no_harm() -> None:
    fetcher = OwnLoopFetcher(4)
    fetcher.close()
    fetcher.event_loop._polling = True
    fetcher.submit(fetch_of(lambda: None, []))


@pytest.mark.parametrize("reads_whole", [False, None], ids=["a wrapper around another kind", "a store without it"])
def test_stores_without_a_path_for_complete_objects_are_not_accepted(reads_whole: bool | None) -> None:
    store = ResponseStore(lambda: None)
    store.reads_whole = reads_whole  # type: ignore[assignment]
    assert not SmallObjectFetcher.accepts(ObjectSource(ObjectVersion("d", "e", "b", "key", "etag", 1), store))  # type: ignore[arg-type]


class Schedule:
    """The steps for objects that are all received by the time when the first of them is answered."""

    def __init__(self, fetcher: OwnLoopFetcher) -> None:
        self.steps: list[str] = []
        self._fetcher = fetcher
        self._responses: list[ScriptedResponse] = []
        self._first_may_end = threading.Event()
        self.submit("first", lambda: self._first_may_end.wait(20))
        wait_until(lambda: "first answered" in self.steps)

    def submit(
        self,
        name: str,
        on_received: Callable[[], object] = lambda: None,
        *,
        size_bytes: int = 1,
        awaited: bool = False,
        ready: bool = True,
        on_write: Callable[[], object] = lambda: None,
    ) -> None:
        def begin() -> ScriptedResponse:
            self.steps.append(f"{name} requested")
            self._responses.append(ScriptedResponse(lambda: WholeObject([memoryview(b"x")]), ready))
            self._responses[-1].timeout_s = 60.0
            return self._responses[-1]

        def received(_whole: WholeObject) -> ObjectWrite:
            self.steps.append(f"{name} answered")
            on_received()
            return ObjectWrite(write, awaited)

        def write() -> None:
            on_write()
            self.steps.append(f"{name} written")

        source = ObjectSource(ObjectVersion("d", "e", "b", name, "etag", size_bytes), ResponseStore(begin))  # type: ignore[arg-type]
        self._fetcher.submit(SmallFetch(source, received, lambda: None))

    def run(self, until: str) -> list[str]:
        """The steps after all were submitted, up to and with that."""
        start = len(self.steps)
        self.end_of_first()
        wait_until(lambda: until in self.steps)
        return [step for step in self.steps[start:] if not step.startswith("first")]

    def end_of_first(self) -> None:
        self._first_may_end.set()

    def close(self) -> None:
        for response in self._responses:
            response.abort()


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    fetcher = OwnLoopFetcher(64)
    schedule = Schedule(fetcher)
    yield schedule
    schedule.end_of_first()
    fetcher.close()
    schedule.close()


def test_requests_go_first_then_answers_and_writes_when_no_event_is_pending(schedule: Schedule) -> None:
    schedule.submit("A", lambda: schedule.submit("C", ready=False))
    schedule.submit("B")
    assert schedule.run("B written") == [
        "A requested",
        "B requested",
        "A answered",
        "C requested",
        "B answered",
        "A written",
        "B written",
    ]


def test_an_object_with_a_pending_open_is_written_at_once(schedule: Schedule) -> None:
    schedule.submit("A")
    schedule.submit("B", awaited=True)
    schedule.submit("C")
    steps = schedule.run("C written")
    assert steps[3:] == ["A answered", "B answered", "B written", "C answered", "A written", "C written"]


def test_the_bytes_of_deferred_writes_are_bounded() -> None:
    fetcher = OwnLoopFetcher(64)
    schedule, deferred_bytes = Schedule(fetcher), list[int]()
    fit = MAX_DEFERRED_BYTES // MAX_OBJECT_BYTES
    for number in range(2 * fit):
        schedule.submit(
            str(number), lambda: deferred_bytes.append(fetcher._deferred_bytes), size_bytes=MAX_OBJECT_BYTES
        )
    steps = schedule.run(f"{2 * fit - 1} written")
    fetcher.close()
    schedule.close()
    assert max(deferred_bytes) == MAX_DEFERRED_BYTES
    before_the_last = steps[: steps.index(f"{2 * fit - 1} answered")]
    assert sum(step.endswith("written") for step in before_the_last) == fit - 1
    assert fetcher._deferred_bytes == 0


def test_close_runs_the_deferred_writes() -> None:
    fetcher, may_end = OwnLoopFetcher(64), threading.Event()
    schedule = Schedule(fetcher)
    schedule.submit("A")
    schedule.submit("B", lambda: may_end.wait(20))
    schedule.end_of_first()
    wait_until(lambda: "B answered" in schedule.steps)
    ending = threading.Thread(target=fetcher.close)
    ending.start()
    wait_until(lambda: fetcher.event_loop._closing.is_set())
    may_end.set()
    ending.join(20)
    assert schedule.steps[-4:] == ["A answered", "B answered", "A written", "B written"]
    schedule.close()


def test_close_waits_for_the_thread_that_took_over_from_a_stuck_one() -> None:
    fetcher, b_begun = OwnLoopFetcher(64), threading.Event()
    schedule = Schedule(fetcher)
    schedule.submit("A", on_write=lambda: b_begun.wait(20))
    schedule.submit("B", on_write=lambda: (b_begun.set(), time.sleep(0.2)))
    schedule.end_of_first()
    wait_until(lambda: "B answered" in schedule.steps)
    fetcher.close()
    assert set(schedule.steps[-2:]) == {"A written", "B written"}
    schedule.close()


def test_deferred_writes_that_take_too_long_at_close_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is closed next, and nothing must be written to it any more."""
    monkeypatch.setattr(event_loop, "_CLOSE_TIMEOUT_S", 0.1)
    fetcher, stuck, may_end = OwnLoopFetcher(64), threading.Event(), threading.Event()
    schedule = Schedule(fetcher)
    schedule.submit("A", on_write=lambda: (stuck.set(), may_end.wait(20)))
    schedule.submit("B")
    schedule.end_of_first()
    wait_until(stuck.is_set)
    thread = fetcher.event_loop._thread
    fetcher.close()
    may_end.set()
    thread.join(20)
    assert schedule.steps[-2:] == ["B answered", "A written"]
    schedule.close()


def test_an_object_whose_answer_raises_goes_to_the_fallback(fetcher: OwnLoopFetcher) -> None:
    fallbacks: list[int] = []
    response = ScriptedResponse(lambda: WholeObject([memoryview(b"x")]))
    fetch = fetch_of(lambda: response, fallbacks)
    fetch.received = raises(ValueError("a defect"))
    fetcher.submit(fetch)
    wait_until(lambda: len(fallbacks) == 1)
    assert fetcher.busy == 0
    response.abort()


@pytest.mark.promise("S431")
def test_requests_that_wait_for_their_turn_are_work_of_readers() -> None:
    fetcher = OwnLoopFetcher(16)
    stores = SilentStores(fetcher)
    stores.request(Share("team", "store", "volume"), 100, 1)
    wait_until(lambda: len(stores.begun) == 14)
    begun = threading.Event()
    fetcher.fetcher.warm(Job(begun.set))
    assert not begun.wait(1), "a warmup begins nothing meanwhile"
    assert len(stores.begun) == 14
    fetcher.close()
    for response in stores.begun:
        response.abort()


@pytest.mark.promise("S431")
def test_requests_that_wait_for_stalled_ones_of_their_own_volume_are_not() -> None:
    fetcher = OwnLoopFetcher(16, clock=lambda: time.monotonic() * 20)
    stores = SilentStores(fetcher)
    stores.request(Share("team", "store", "volume"), 100, 1)
    wait_until(lambda: len(stores.begun) >= 14)
    begun = threading.Event()
    fetcher.fetcher.warm(Job(begun.set))
    assert begun.wait(20)
    fetcher.close()
    for response in stores.begun:
        response.abort()
