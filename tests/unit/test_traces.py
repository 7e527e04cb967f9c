"""What a recording holds of the reads, and the file of a trace."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.trace_format import decode_trace, encode_trace
from csi_driver.daemon.warmup_files import merged
from csi_driver.filesystem.access_recorder import AccessRecorder
from csi_driver.model.access_trace import AccessTrace, TracedRange
from csi_driver.model.errors import InvalidParameter

READS = st.lists(st.tuples(st.integers(2, 4), st.integers(0, 50), st.integers(1, 12)), max_size=60)


@pytest.mark.promise("S547")
@given(READS)
def test_a_recording_has_each_byte_that_was_read_once_and_where_it_was_read_first(
    reads: list[tuple[int, int, int]],
) -> None:
    recorder = AccessRecorder(clock=lambda: 0.0)
    for node, start, length in reads:
        recorder.note(node, start, start + length)
    ranges, truncated = recorder.ranges()
    recorded = [(each.node, byte) for each in ranges for byte in range(each.start, each.stop)]
    expected = {(node, byte) for node, start, length in reads for byte in range(start, start + length)}
    assert not truncated
    assert len(recorded) == len(set(recorded))
    assert set(recorded) == expected
    nodes = [each.node for each in ranges]
    assert list(dict.fromkeys(nodes)) == list(dict.fromkeys(node for node, _, _ in reads))


def test_neighbouring_reads_are_one_range_with_the_time_of_the_first() -> None:
    now = iter(range(100))
    recorder = AccessRecorder(clock=lambda: float(next(now)))
    recorder.note(2, 0, 10)
    recorder.note(3, 5, 6)
    recorder.note(2, 10, 20)
    ranges, _ = recorder.ranges()
    assert [(each.node, each.start, each.stop, each.seconds) for each in ranges] == [(2, 0, 20, 1.0), (3, 5, 6, 2.0)]


def test_a_recording_that_is_full_says_so() -> None:
    recorder = AccessRecorder(most_ranges=2)
    for start in (0, 100, 200):
        recorder.note(2, start, start + 1)
    ranges, truncated = recorder.ranges()
    assert len(ranges) == 2
    assert truncated


TRACES = st.builds(
    AccessTrace,
    st.just("s3://bucket/data/"),
    st.lists(
        st.builds(
            lambda path, etag, start, length, rest: TracedRange(
                path, start + length + rest, etag, 7, start, start + length, 5
            ),
            st.binary(min_size=1, max_size=9),
            st.none() | st.text(max_size=5),
            st.integers(0, 1 << 40),
            st.integers(1, 1 << 20),
            st.integers(0, 9),
        ),
        max_size=8,
    ).map(tuple),
    st.booleans(),
)


@pytest.mark.promise("S547")
@given(TRACES)
def test_a_trace_is_read_as_it_was_written(trace: AccessTrace) -> None:
    assert decode_trace("warmupTrace", "a", encode_trace(trace)) == trace


@pytest.mark.promise("S549")
@given(st.binary(max_size=300))
def test_what_is_no_trace_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter, match=r"^warmupTrace: 'a' is not allowed"):
        decode_trace("warmupTrace", "a", content)


@pytest.mark.promise("S549")
@pytest.mark.parametrize("damage", range(0, 1400, 13))
def test_a_damaged_trace_is_refused_or_read_within_its_files(damage: int) -> None:
    content = bytearray(encode_trace(AccessTrace("s3://b/c/", (TracedRange(b"a", 10, "e", 1, 0, 10),) * 3)))
    content[damage % len(content)] ^= 0x41
    try:
        found = decode_trace("warmupTrace", "a", bytes(content))
    except InvalidParameter:
        return
    assert all(0 <= each.start < each.stop <= each.size_bytes for each in found.ranges)


@pytest.mark.promise("S549")
def test_a_trace_that_is_compressed_is_refused_before_it_is_decoded() -> None:
    """A file of a megabyte could take all memory of the daemon, which serves the volumes of others, too."""
    trace = AccessTrace("s3://b/c/", tuple(TracedRange(b"a" * 99, 10, "e", 1, 0, 10) for _ in range(999)))
    table = pa.ipc.open_stream(encode_trace(trace)).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidParameter, match="it is compressed"):
        decode_trace("warmupTrace", "a", sink.getvalue().to_pybytes())


def test_a_table_of_another_kind_is_refused() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"path": ["a"]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidParameter, match="no trace, or one of a later version"):
        decode_trace("warmupTrace", "a", sink.getvalue().to_pybytes())


@given(st.lists(st.builds(lambda start, length: range(start, start + length), st.integers(0, 40), st.integers(1, 9))))
def test_chunks_are_merged_into_as_few_ranges_as_possible(chunks: list[range]) -> None:
    found = list(merged(iter(chunks)))
    assert [chunk for each in found for chunk in each] == sorted({chunk for each in chunks for chunk in each})
    assert all(before.stop < after.start for before, after in pairwise(found))
