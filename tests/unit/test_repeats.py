"""What failed at its deadline a moment ago is tried once: the kernel repeats reads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    EndpointUnreachable,
    HayloftError,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.objects.retrying import Retrying
from csi_driver.reading.repeats import MOST_REPEATS, REPEATED_WITHIN_S, Repeats
from csi_driver.reading.services import ObjectSource
from tests.support.scripted_store import ScriptedStore
from tests.unit.test_disk_health import Clock
from tests.unit.test_reading import LARGE, SMALL, ReadBench, read, waited

DEADLINE_S = 0.3


class Outage:
    """A source behind retries, whose store notes where requests begin and fails while it is down."""

    def __init__(self, store: ScriptedStore, key: str) -> None:
        self.starts: list[int] = []
        self.down: HayloftError | None = None
        answered = store.read_range

        def read_range(key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
            self.starts.append(byte_range.start)
            if self.down is not None:
                raise self.down
            return answered(key, byte_range, if_match=if_match)

        store.read_range = read_range  # type: ignore[method-assign]
        self.source = ObjectSource(store.version(key), Retrying(store, DEADLINE_S))

    def tries(self, start: int = 0) -> int:
        """Requests from there on: not those of the readahead, which has a deadline of its own."""
        return self.starts.count(start)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ReadBench]:
    bench = ReadBench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S226")
def test_a_repeat_of_a_read_sends_one_request_and_has_the_same_error(bench: ReadBench) -> None:
    outage = Outage(bench.origin, "large")
    opened = waited(lambda answer: bench.read_through_cache.open(outage.source, answer))
    outage.down = TransientStoreError("refused", when_exhausted=EndpointUnreachable)
    with pytest.raises(EndpointUnreachable, match="retries exhausted"):
        read(opened, 0, 4096)  # type: ignore[arg-type]
    assert outage.tries() > 1
    for repeat in range(2):
        outage.starts.clear()
        with pytest.raises(EndpointUnreachable, match="refused"):
            read(opened, 0, 4096)  # type: ignore[arg-type]
        assert outage.tries() == 1, f"repeat {repeat}"
    outage.down = None
    assert read(opened, 0, 4096) == LARGE[:4096], "a store that works again is noticed"  # type: ignore[arg-type]
    outage.down = TransientStoreError("late")
    outage.starts.clear()
    with pytest.raises(StoreUnavailable, match="retries exhausted"):
        read(opened, 12 * CHUNK_BYTES, 4096)  # type: ignore[arg-type]
    assert outage.tries(12 * CHUNK_BYTES) > 1, "another part of the object has its own deadline"


@pytest.mark.promise("S226")
def test_a_repeat_of_a_small_object_sends_one_request(bench: ReadBench) -> None:
    outage = Outage(bench.origin, "small")
    outage.down = TransientStoreError("late")

    def open_to_read() -> object:
        outage.starts.clear()
        return waited(lambda answer: bench.read_through_cache.open_to_read(outage.source, answer))

    assert isinstance(open_to_read(), StoreUnavailable)
    assert outage.tries() > 1
    assert isinstance(open_to_read(), StoreUnavailable)
    assert outage.tries() == 1
    outage.down = None
    opened = waited(lambda answer: bench.read_through_cache.open(outage.source, answer))
    assert read(opened, 0, len(SMALL)) == SMALL  # type: ignore[arg-type]


def test_a_later_read_has_a_deadline_of_its_own() -> None:
    store, clock = ScriptedStore({"a": b"x"}), Clock()
    source, repeats = ObjectSource(store.version("a"), Retrying(store, 1)), Repeats(clock)
    repeats.failed(source, (0,), StoreUnavailable("late"))
    assert repeats.store(source, 0) is store
    assert repeats.store(source, 1) is source.store
    clock.now += REPEATED_WITHIN_S + 0.1
    assert repeats.store(source, 0) is source.store
    repeats.failed(source, (0,), StoreUnavailable("late"))
    for _ in range(MOST_REPEATS):
        assert repeats.store(source, 0) is store
        repeats.failed(source, (0,), TransientStoreError("late"))
        clock.now += REPEATED_WITHIN_S - 0.1
    assert repeats.store(source, 0) is source.store


def test_only_an_error_at_the_deadline_makes_a_repeat() -> None:
    store = ScriptedStore({"a": b"x"})
    source, repeats = ObjectSource(store.version("a"), Retrying(store, 1)), Repeats()
    denied = AccessDenied("no")
    assert repeats.failed(source, (0,), denied) is denied
    assert repeats.store(source, 0) is source.store


def test_failures_are_bounded_in_number() -> None:
    store = ScriptedStore({"a": b"x"})
    source, repeats = ObjectSource(store.version("a"), Retrying(store, 1)), Repeats()
    repeats.failed(source, range(5000), StoreUnavailable("late"))
    assert len(repeats._failures) == 1024
    assert repeats.store(source, 4999) is store
