"""A warmup: every byte is fetched once, readers go first, and failures are reported."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    CacheDiskFailed,
    CredentialsRejected,
    HayloftError,
    ObjectChanged,
    StoreUnavailable,
)
from csi_driver.reading import warmup
from csi_driver.reading.bandwidth_limit import BURST_S
from csi_driver.reading.fair_shares import Share, note_progress
from csi_driver.reading.fetcher import Job
from csi_driver.reading.scheduler import LIGHT_FETCHES
from tests.support.daemons import wait_until
from tests.support.random_bytes import random_bytes
from tests.support.warmups import WarmBench

DRAW = random.Random(5)
SMALL = {f"small/{number:03}": DRAW.randbytes(DRAW.randint(1, 3000)) for number in range(60)}
LARGE = {f"large/{number}": random_bytes(number, (20 + number) * CHUNK_BYTES + 12345) for number in range(2)}
OBJECTS = {"empty": b"", **SMALL, **LARGE}
TOTAL = sum(map(len, OBJECTS.values()))

MakeBench = Callable[..., WarmBench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeBench]:
    made: list[WarmBench] = []

    def bench(objects: dict[str, bytes] | None = None, **options: Any) -> WarmBench:
        made.append(WarmBench(tmp_path, objects or OBJECTS, **options))
        return made[-1]

    yield bench
    for each in made:
        each.close()


def test_afterwards_every_file_is_cached_and_each_byte_was_fetched_once(make: MakeBench) -> None:
    bench = make()
    end = bench.run()
    assert (end.state, end.done_files, end.done_bytes, end.message) == ("complete", len(OBJECTS), TOTAL, "")
    assert end.fetched_bytes == bench.origin.bytes_sent == TOTAL
    assert all(bench.is_complete(key) for key in OBJECTS if OBJECTS[key])
    assert bench.library.table.is_empty
    assert not bench.chunks._in_use.digests


@pytest.mark.promise("S73")
def test_one_fetch_at_a_time_takes_files_in_the_order_of_the_manifest_in_fetches_of_16_chunks(
    make: MakeBench,
) -> None:
    bench = make(LARGE)
    bench.run(concurrency=1)
    keys = list(dict.fromkeys(key for key, _ in bench.origin.requests))
    assert keys == list(LARGE)
    ranges = [len(byte_range) for key, byte_range in bench.origin.requests if key == "large/0"]
    assert ranges == [16 * CHUNK_BYTES, 4 * CHUNK_BYTES + 12345]


def test_a_second_warmup_sends_no_request(make: MakeBench) -> None:
    bench = make()
    bench.run()
    bench.origin.requests.clear()
    end = bench.run()
    assert (end.state, end.done_bytes, end.fetched_bytes) == ("complete", TOTAL, 0)
    assert bench.origin.requests == []


@pytest.mark.promise("S73")
def test_only_the_missing_chunks_of_a_large_object_are_fetched(make: MakeBench) -> None:
    bench = make(LARGE)
    opened = bench.open("large/0")
    done = threading.Event()
    opened.read(5 * CHUNK_BYTES, 100, lambda data: done.set())
    assert done.wait(20)
    opened.close()
    had = bench.origin.bytes_sent
    assert had == CHUNK_BYTES
    end = bench.run()
    assert end.state == "complete"
    assert bench.origin.bytes_sent == sum(map(len, LARGE.values()))
    assert end.fetched_bytes == bench.origin.bytes_sent - had


@pytest.mark.promise("S74")
def test_readers_beside_a_warmup_get_the_right_bytes_without_a_second_fetch(make: MakeBench) -> None:
    bench = make()
    warmup = bench.warmup()
    warmup.start()
    wrong: list[str] = []

    def read(key: str) -> None:
        opened = bench.open(key)
        found = bytearray()
        for start in range(0, len(OBJECTS[key]), CHUNK_BYTES):
            done = threading.Event()

            def take(data: list[memoryview] | HayloftError, done: threading.Event = done) -> None:
                found.extend(b"".join(data) if isinstance(data, list) else b"")
                done.set()

            opened.read(start, CHUNK_BYTES, take)
            assert done.wait(20)
        opened.close()
        if found != OBJECTS[key]:
            wrong.append(key)

    readers = [threading.Thread(target=read, args=(key,)) for key in [*LARGE, *list(SMALL)[:10]]]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert warmup.join(30)
    assert wrong == []
    assert bench.origin.bytes_sent == TOTAL
    assert bench.ends[-1].state == "complete"


class Readers:
    """Reads in flight, on fetch threads, until they are ended."""

    def __init__(self, bench: WarmBench, count: int) -> None:
        self.begun = 0
        self._end = threading.Event()
        for number in range(count):
            bench.library.fetcher.demand(Job(self._read), Share("", "store", str(number)))

    def _read(self) -> None:
        self.begun += 1
        while not self._end.wait(0.1):
            note_progress()

    def end(self) -> None:
        self._end.set()


@pytest.mark.promise("S75")
def test_no_fetch_begins_while_a_reader_waits_for_a_thread(make: MakeBench) -> None:
    bench = make()
    readers = Readers(bench, 17)
    wait_until(lambda: readers.begun == 16)
    warmup = bench.warmup()
    warmup.start()
    assert not warmup.join(0.3)
    assert bench.origin.requests == []
    readers.end()
    assert warmup.join(30)
    assert bench.ends[-1].state == "complete"


@pytest.mark.promise("S75")
@pytest.mark.parametrize(("objects", "at_a_time"), [("LARGE", 1), ("SMALL", LIGHT_FETCHES)])
def test_while_readers_fetch_one_request_of_a_warmup_runs_at_a_time_or_a_few_small_ones(
    make: MakeBench, objects: str, at_a_time: int
) -> None:
    bench = make({"LARGE": LARGE, "SMALL": SMALL}[objects])
    readers = Readers(bench, 5)
    wait_until(lambda: readers.begun == 5)
    bench.origin.gate.clear()
    warmup = bench.warmup(concurrency=4)
    warmup.start()
    wait_until(lambda: len(bench.origin.requests) == at_a_time)
    assert not warmup.join(0.3)
    assert len(bench.origin.requests) == at_a_time
    bench.origin.gate.set()
    readers.end()
    assert warmup.join(30)


@pytest.mark.parametrize(
    ("objects", "at_a_time"), [("LARGE", 2), ("ONE", 2), ("SMALL", 2 * LIGHT_FETCHES), ("BOTH", 1 + LIGHT_FETCHES)]
)
def test_no_more_requests_run_at_a_time_than_its_concurrency(make: MakeBench, objects: str, at_a_time: int) -> None:
    """Eight small ones count as one. A large one has two pieces; in the last case many small ones follow one piece."""
    one, whole = {"a/large": LARGE["large/0"]}, {"a/large": LARGE["large/0"][: 16 * CHUNK_BYTES]}
    bench = make({"LARGE": LARGE, "ONE": one, "SMALL": SMALL, "BOTH": whole | SMALL}[objects])
    bench.origin.gate.clear()
    warmup = bench.warmup(concurrency=2)
    warmup.start()
    wait_until(lambda: len(bench.origin.requests) == at_a_time)
    assert not warmup.join(0.2)
    assert len(bench.origin.requests) == at_a_time
    bench.origin.gate.set()
    assert warmup.join(30)


def test_what_a_stopped_warmup_has_queued_does_not_begin(make: MakeBench) -> None:
    bench = make()
    readers = Readers(bench, 17)
    wait_until(lambda: readers.begun == 16)
    warmup = bench.warmup()
    warmup.start()
    assert not warmup.join(0.2)
    warmup.stop(cancelled=False)
    assert warmup.join(20), "it waits for no place"
    readers.end()
    bench.open(next(iter(SMALL))).close()
    assert len(bench.origin.requests) == 1
    assert bench.ends == []


def test_the_limit_of_bandwidth_makes_fetches_short_and_decides_how_long_it_takes(make: MakeBench) -> None:
    bench = make({"one": bytes(8 * CHUNK_BYTES)})
    began = time.monotonic()
    rate = 16 << 20
    end = bench.run(bandwidth_bytes=rate, concurrency=1)
    assert end.state == "complete"
    longest = max(len(byte_range) for _, byte_range in bench.origin.requests)
    assert longest == 4 * CHUNK_BYTES
    assert time.monotonic() - began >= (8 * CHUNK_BYTES - longest) / rate - BURST_S


def test_a_cancelled_warmup_leaves_what_it_has_fetched(make: MakeBench) -> None:
    bench = make(SMALL)
    bench.origin.gate.clear()
    warmup = bench.warmup(concurrency=2)
    warmup.start()
    wait_until(lambda: len(bench.origin.requests) == 2 * LIGHT_FETCHES)
    warmup.stop(cancelled=True)
    bench.origin.gate.set()
    assert warmup.join(20)
    assert bench.ends[-1].state == "cancelled"
    assert len(bench.origin.requests) == 2 * LIGHT_FETCHES
    assert sum(bench.is_complete(key) for key in SMALL) == bench.ends[-1].done_files == 2 * LIGHT_FETCHES


def test_a_warmup_stopped_for_the_next_daemon_reports_no_end_and_the_next_one_resumes(make: MakeBench) -> None:
    bench = make()
    bench.origin.gate.clear()
    warmup = bench.warmup(concurrency=2)
    warmup.start()
    wait_until(lambda: len(bench.origin.requests) == 2 * LIGHT_FETCHES)
    warmup.stop(cancelled=False)
    bench.origin.gate.set()
    assert warmup.join(20)
    assert bench.ends == []
    assert bench.run().state == "complete"
    assert bench.origin.bytes_sent == TOTAL


@pytest.mark.promise("S80")
def test_a_warmup_retries_while_a_store_fails(make: MakeBench) -> None:
    bench = make()
    began = bench.clock.now
    bench.origin.failures = [StoreUnavailable("gone"), CredentialsRejected("expired"), StoreUnavailable("gone")]
    end = bench.run()
    assert (end.state, end.failed_files, end.done_bytes) == ("complete", 0, TOTAL)
    assert bench.clock.now > began + 1


@pytest.mark.promise("S80")
def test_a_changed_or_forbidden_object_fails_alone_and_is_reported(make: MakeBench) -> None:
    bench = make()
    bench.origin.objects["large/1"] = bytes(100)
    bench.origin.objects["small/007"] = b"changed"
    end = bench.run()
    assert (end.state, end.failed_files, end.done_files) == ("failed", 2, len(OBJECTS) - 2)
    assert end.message.startswith("files could not be fetched; the last error: ")
    requests = [key for key, _ in bench.origin.requests if key == "small/007"]
    assert len(requests) == 1, "a changed object is not retried"


def test_a_file_that_always_fails_is_tried_for_a_few_rounds(make: MakeBench) -> None:
    bench = make({"one": b"1" * 100, "two": b"2" * 100})
    tries = 0
    whole = bench.origin.read_range

    def read_range(key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        nonlocal tries
        if key == "one":
            tries += 1
            raise StoreUnavailable("one: unavailable")
        return whole(key, byte_range, if_match=if_match)

    bench.origin.read_range = read_range  # type: ignore[method-assign]
    end = bench.run()
    assert (end.state, end.failed_files, end.done_files) == ("failed", 1, 1)
    assert "unavailable" in end.message
    assert tries == warmup.MOST_ROUNDS


def test_a_warmup_is_aborted_when_every_file_is_forbidden(make: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "MOST_FAILURES_IN_A_ROW", 10)
    bench = make(SMALL)
    bench.origin.failures = [AccessDenied("no") for _ in SMALL]
    end = bench.run(concurrency=1)
    assert end.state == "failed"
    assert 10 <= len(bench.origin.requests) < 10 + LIGHT_FETCHES, "those in flight, and no more"


@pytest.mark.promise("S81")
@pytest.mark.parametrize("concurrency", [1, 4])
def test_files_that_do_not_fit_are_not_fetched_and_nothing_is_evicted_for_them(
    make: MakeBench, concurrency: int
) -> None:
    objects = {f"{number}": DRAW.randbytes(3 * CHUNK_BYTES) for number in range(20)}
    bench = make(objects, limit_bytes=32 * CHUNK_BYTES)
    end = bench.run(concurrency=concurrency)
    assert end.state == "full"
    assert "--cache-limit" in end.message
    assert end.total_bytes == 60 * CHUNK_BYTES
    assert end.done_bytes == bench.chunks.used_bytes == bench.origin.bytes_sent
    assert end.done_bytes >= 27 * CHUNK_BYTES, "the capacity below the high watermark is used"
    cached = [number for number, key in enumerate(objects) if bench.is_complete(key)]
    assert cached[:-1] == list(range(len(cached) - 1)), "the first ones in order are cached"
    # Any of those in flight together may get the last capacity.
    assert cached[-1] < len(cached) - 1 + concurrency


@pytest.mark.promise("S81")
def test_objects_of_no_mounted_volume_are_evicted_for_a_warmup(make: MakeBench) -> None:
    old = {f"{number}": DRAW.randbytes(3 * CHUNK_BYTES) for number in range(9)}
    new = {f"new-{number}": DRAW.randbytes(3 * CHUNK_BYTES) for number in range(9)}
    bench = make({**old, **new}, limit_bytes=32 * CHUNK_BYTES)
    numbers = {key: number for number, key in enumerate(bench.origin.objects)}
    for key in old:
        source = bench.files.source(numbers[key])._replace(dataset=2)
        bench.open_source(source).close()
    bench.files.chosen = lambda stopping: [numbers[key] for key in new]  # type: ignore[method-assign]
    bench.mounted = {1, 2}
    assert bench.run().state == "full"
    assert all(bench.is_complete(key) for key in old)
    bench.mounted = {1}
    end = bench.run()
    assert end.state == "complete"
    assert all(bench.is_complete(key) for key in new)


def test_a_warmup_waits_while_the_disk_refuses_writes_and_then_resumes(make: MakeBench) -> None:
    bench = make(SMALL)
    bench.chunks.note_failure(CacheDiskFailed("cache disk failed (chunk.write: EIO)"))
    warmup = bench.warmup()
    warmup.start()
    wait_until(lambda: "cache disk failed" in warmup.progress().message)
    assert warmup.progress().state == "running"
    assert warmup.progress().eta_s is None
    bench.chunks._capacity._refused_until = 0.0
    assert warmup.join(30)
    assert bench.ends[-1].state == "complete"


def test_an_unexpected_error_ends_a_warmup_and_is_reported(make: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = make(SMALL)

    def broken(number: int) -> None:
        raise ZeroDivisionError("a defect")

    bench.files.source = broken  # type: ignore[method-assign,assignment]
    end = bench.run()
    assert end.state == "failed"
    assert "ZeroDivisionError" in end.message


def test_progress_counts_bytes_of_a_large_object_before_it_is_complete(make: MakeBench) -> None:
    bench = make({"large/0": LARGE["large/0"]})
    halted = threading.Event()
    whole = bench.origin.read_range

    def read_range(key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if byte_range.start >= 16 * CHUNK_BYTES:
            assert halted.wait(20)
        return whole(key, byte_range, if_match=if_match)

    bench.origin.read_range = read_range  # type: ignore[method-assign]
    warmup = bench.warmup(concurrency=1)
    warmup.start()
    wait_until(lambda: warmup.progress().done_bytes == 16 * CHUNK_BYTES)
    assert warmup.progress().done_files == 0
    halted.set()
    assert warmup.join(20)
    assert bench.ends[-1].done_bytes == len(LARGE["large/0"])


def test_an_object_that_changes_during_its_warmup_counts_as_failed(make: MakeBench) -> None:
    bench = make(LARGE)
    whole = bench.origin.read_range

    def read_range(key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if key == "large/0" and byte_range.start:
            raise ObjectChanged("large/0: is another version now")
        return whole(key, byte_range, if_match=if_match)

    bench.origin.read_range = read_range  # type: ignore[method-assign]
    end = bench.run(concurrency=1)
    assert (end.state, end.failed_files, end.done_files) == ("failed", 1, 1)
    assert "another version" in end.message


@pytest.mark.promise("S220")
@pytest.mark.parametrize("objects", [SMALL, LARGE], ids=["small", "large"])
def test_a_warmup_retries_what_a_panic_of_the_stores_client_broke(make: MakeBench, objects: dict[str, bytes]) -> None:
    class Panic(BaseException):
        pass

    bench = make(objects)
    bench.origin.failures = [Panic() for _ in range(3)]  # type: ignore[misc]
    end = bench.run()
    assert (end.state, end.done_files) == ("complete", len(objects))


@pytest.mark.promise("S646")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_warmup_begins_at_a_share_of_the_bytes_and_ends_with_what_lies_before_it(
    make: MakeBench, share: float
) -> None:
    bench = make(LARGE)
    end = bench.run(concurrency=1, start_share=share)
    keys = list(dict.fromkeys(key for key, _ in bench.origin.requests))
    order, before_bytes = list(LARGE), 0
    while share and before_bytes < share * sum(map(len, LARGE.values())):
        before_bytes += len(LARGE[order[0]])
        order.append(order.pop(0))
    assert keys == order
    assert (end.state, end.done_files) == ("complete", len(LARGE))
