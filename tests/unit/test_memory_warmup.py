"""What a warmup reads into memory: the order, the budget, and files that are not there any more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cache import page_cache
from csi_driver.cache.page_cache import READ_BYTES, hot_bytes, read_in
from csi_driver.model.chunk import ByteRange, chunk_range
from csi_driver.reading import memory_warmup
from csi_driver.reading.memory_warmup import MemoryWarmup, Part, within
from csi_driver.reading.services import ObjectSource
from tests.support.random_bytes import random_bytes
from tests.support.warmups import WarmBench

MIB = 1 << 20
DRAW = random.Random(5)
OBJECTS = {
    "a/config.json": DRAW.randbytes(2_000),
    "a/data.tar": random_bytes(1, 9 * MIB),
    "b/model.safetensors": random_bytes(2, 17 * MIB + 5),
    "b/other.gguf": random_bytes(3, 6 * MIB),
}
TOTAL = sum(map(len, OBJECTS.values()))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[WarmBench]:
    bench = WarmBench(tmp_path, OBJECTS)
    yield bench
    bench.close()


def warmed(bench: WarmBench, budget_bytes: int) -> MemoryWarmup:
    memory = MemoryWarmup("test", bench.files, range(len(OBJECTS)), bench.library)
    memory.grant(budget_bytes)
    return memory


@pytest.mark.promise("S541")
def test_weights_are_read_in_before_all_other_files(bench: WarmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    order: list[str] = []

    def read(self: MemoryWarmup, source: ObjectSource, part: ByteRange, buffer: memoryview) -> tuple[int, int]:
        order.append(source.version.key)
        return 0, len(part)

    monkeypatch.setattr(MemoryWarmup, "_read", read)
    monkeypatch.setattr(memory_warmup, "THREADS", 1)
    assert warmed(bench, TOTAL).run().hot_bytes == TOTAL
    assert order == ["b/model.safetensors", "b/other.gguf", "a/config.json", "a/data.tar"]


@pytest.mark.promise("S542")
def test_no_more_is_read_in_than_the_budget(bench: WarmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    read: list[ByteRange] = []

    def note(descriptor: int, part: ByteRange, buffer: memoryview, stopping: object) -> None:
        read.append(part)

    monkeypatch.setattr(memory_warmup, "read_in", note)
    monkeypatch.setattr(memory_warmup, "hot_bytes", lambda descriptor, part: 0)
    budget_bytes = 20 * MIB
    progress = warmed(bench, budget_bytes).run()
    assert progress.is_bounded
    assert progress.claimed_bytes == budget_bytes
    assert 17 * MIB < sum(map(len, read)) <= budget_bytes
    assert warmed(bench, 0).run().read_bytes == 0


def test_a_budget_ends_within_a_file_at_a_complete_read() -> None:
    parts: list[Part] = [(None, ByteRange(0, 30 * MIB)), (None, ByteRange(0, MIB))]  # type: ignore[list-item]
    assert [part for _, part in within(20 * MIB, iter(parts))] == [ByteRange(0, 2 * READ_BYTES)]
    assert [part for _, part in within(31 * MIB, iter(parts))] == [part for _, part in parts]
    assert list(within(READ_BYTES - 1, iter(parts))) == []


def test_a_file_that_is_not_cached_any_more_is_not_fetched_again(bench: WarmBench) -> None:
    progress = warmed(bench, TOTAL).run()
    assert (progress.total_bytes, progress.hot_bytes, progress.read_bytes) == (TOTAL, 0, 0)
    assert not bench.origin.requests


@pytest.mark.promise("S541")
def test_what_is_in_memory_can_be_counted_again(bench: WarmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    memory = warmed(bench, TOTAL)
    assert memory.run().hot_bytes == TOTAL
    monkeypatch.setattr(memory_warmup, "hot_bytes", lambda descriptor, part: len(part) - 1)
    assert memory.recount().hot_bytes == memory.progress().hot_bytes == TOTAL - len(OBJECTS)


def test_a_warmup_that_is_stopped_reads_no_further(bench: WarmBench) -> None:
    bench.run()
    memory = warmed(bench, TOTAL)
    memory.stop()
    assert memory.run().hot_bytes == 0
    assert memory.stopped


def test_pages_are_counted_alike_by_both_calls_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DRAW.randbytes(3 * MIB + 100))
    whole = ByteRange(0, 3 * MIB + 100)
    with path.open("rb") as file:
        descriptor = file.fileno()
        read_in(descriptor, whole, memoryview(bytearray(READ_BYTES)), lambda: False)
        parts = [whole, chunk_range(1, len(whole)), chunk_range(3, len(whole)), ByteRange(0, 0)]
        for part in parts:
            counted = hot_bytes(descriptor, part)
            assert counted == len(part)
            if len(part):
                assert page_cache._by_mincore(descriptor, part) == counted
