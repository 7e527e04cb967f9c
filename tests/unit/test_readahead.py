"""Readahead: the fetches for each kind of reader."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_count, chunks_of
from csi_driver.reading.readahead import History, Limits, Plan, plan

LIMITS = Limits(fetch_chunks=8, window_chunks=48)
SIZE = 143 * CHUNK_BYTES + 17


def play(reads: list[ByteRange], size_bytes: int = SIZE) -> list[Plan]:
    history, plans = History(), []
    for read in reads:
        plans.append(plan(history, read, size_bytes, LIMITS))
        history = plans[-1].history
    return plans


def sequence(count_bytes: int, size_bytes: int = SIZE) -> list[ByteRange]:
    return [ByteRange(start, min(start + count_bytes, size_bytes)) for start in range(0, size_bytes, count_bytes)]


def test_readahead_of_a_sequential_reader_requests_every_chunk_exactly_once() -> None:
    plans = play(sequence(CHUNK_BYTES))
    ahead = [chunk for each in plans for fetch in each.ahead for chunk in fetch]
    assert sorted(ahead) == list(range(1, chunk_count(SIZE)))


@pytest.mark.promise("S19")
def test_fetches_of_a_sequential_reader_grow_to_the_longest() -> None:
    lengths = [len(fetch) for each in play(sequence(CHUNK_BYTES)) for fetch in each.ahead]
    assert lengths[0] <= 2
    assert lengths.count(8) > len(lengths) // 2
    assert max(lengths) == 8


def test_small_sequential_reads_do_not_make_short_fetches() -> None:
    lengths = [len(fetch) for each in play(sequence(128 * 1024)) for fetch in each.ahead]
    assert sum(lengths) == chunk_count(SIZE) - 1
    assert len(lengths) < 40


def test_a_reader_is_still_sequential_when_the_kernel_reorders_its_requests() -> None:
    reads = sequence(CHUNK_BYTES)
    for number in range(0, len(reads) - 1, 2):
        reads[number], reads[number + 1] = reads[number + 1], reads[number]
    ahead = [chunk for each in play(reads) for fetch in each.ahead for chunk in fetch]
    assert len(ahead) == len(set(ahead)) > chunk_count(SIZE) - 5


def test_a_random_reader_gets_what_it_requested_and_no_readahead() -> None:
    draw = random.Random(7)
    starts = [draw.randrange(20 * CHUNK_BYTES, SIZE - 8192) for _ in range(300)]
    for each, start in zip(play([ByteRange(start, start + 8192) for start in starts]), starts, strict=True):
        assert each.ahead == ()
        assert each.demand == chunks_of(ByteRange(start, start + 8192))


def test_readahead_of_a_strided_reader_requests_its_next_ranges() -> None:
    reads = [ByteRange(start, start + 4096) for start in range(50 * CHUNK_BYTES, 120 * CHUNK_BYTES, 10 * CHUNK_BYTES)]
    plans = play(reads)
    assert plans[0].ahead == plans[1].ahead == ()
    assert plans[4].ahead[0] == chunks_of(reads[5])


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 2 * CHUNK_BYTES)), max_size=40))
def test_every_plan_stays_inside_the_object_and_its_limits(reads: list[tuple[int, int]]) -> None:
    for each in play([ByteRange(start, min(start + length, SIZE)) for start, length in reads]):
        for fetch in (each.demand, *each.ahead):
            assert 0 <= fetch.start < fetch.stop <= chunk_count(SIZE)
        assert sum(map(len, each.ahead)) <= LIMITS.window_chunks + 8
        assert all(len(fetch) <= 8 for fetch in each.ahead)


WHOLE = LIMITS._replace(whole=True)


@pytest.mark.promise("S545")
@pytest.mark.parametrize("start", [0, 70 * CHUNK_BYTES + 5, SIZE - 1])
def test_with_the_intent_of_the_complete_file_the_first_read_fetches_all_of_it_in_long_ranges(start: int) -> None:
    read = ByteRange(start, min(start + 4096, SIZE))
    planned = plan(History(), read, SIZE, WHOLE)
    assert planned.demand == chunks_of(read)
    fetched = [chunk for fetch in planned.ahead for chunk in fetch]
    assert sorted([*planned.demand, *fetched]) == list(range(chunk_count(SIZE)))
    assert max(map(len, planned.ahead)) == WHOLE.fetch_chunks
    assert len(planned.ahead) <= -(-chunk_count(SIZE) // WHOLE.fetch_chunks) + 2, "as few requests as possible"
    behind = [chunk for chunk in fetched if chunk < planned.demand.start]
    assert fetched == [chunk for chunk in fetched if chunk not in behind] + behind, "from the read to the end first"


@pytest.mark.promise("S545")
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 2 * CHUNK_BYTES)), min_size=1, max_size=20))
def test_after_the_first_read_the_plans_are_those_of_any_other_reader(reads: list[tuple[int, int]]) -> None:
    """So a reader goes on as before where the complete fetch was not possible, as with a disk that is backlogged."""
    history = usual = History()
    for number, (start, length) in enumerate(reads):
        read = ByteRange(start, min(start + length, SIZE))
        planned, expected = plan(history, read, SIZE, WHOLE), plan(usual, read, SIZE, LIMITS)
        assert planned.history == expected.history
        assert planned.demand == expected.demand
        assert number == 0 or planned.ahead == expected.ahead
        history, usual = planned.history, expected.history
