"""What to fetch for a read and ahead of it: a pure function.

The kernel requests a file in pieces of up to 1 MiB, several at a time and not always in order. The positions alone
distinguish sequential, strided and random readers. A sequential one gets long fetches and a window that doubles with
the bytes that it has read; a strided one the next few ranges; a random one exactly the range that it requested.

Where a volume says that files like this one are read completely (weights of a model), the first read of an open decides
for all of the file, however the reader goes on: a memory map is read by page faults, in any order.
"""

from __future__ import annotations

from typing import NamedTuple

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_count, chunks_of

SLACK_BYTES = 4 * CHUNK_BYTES
"""How far from the expected offset a read still counts as sequential: the kernel has a few requests of 1 MiB in flight,
and two threads may receive them in either order."""

STRIDES_SEEN = 2
"""Equal distances in a row before a reader counts as strided."""

STRIDES_AHEAD = 4
"""Ranges fetched ahead for a strided reader."""


WHOLE_FILE_BYTES = 16 * CHUNK_BYTES
"""The least size of a file that is fetched completely by intent. A smaller one is two fetches of a reader."""
PACED_FETCH_S = 0.25
"""With a limit of bandwidth a fetch takes about this long, so that the rate is even."""


class Limits(NamedTuple):
    """The longest fetch, and the longest window ahead of a reader, in chunks. ``whole``: the first read of an open
    starts the fetch of the complete object, as many fetches at a time as readahead may have."""

    fetch_chunks: int
    window_chunks: int
    whole: bool = False


def paced_chunks(most: int, bytes_per_second: int) -> int:
    """The length of a fetch, in chunks, under a limit of bandwidth; 0: there is none."""
    return min(most, max(1, int(bytes_per_second * PACED_FETCH_S / CHUNK_BYTES))) if bytes_per_second else most


def paced(limits: Limits, bytes_per_second: int) -> Limits:
    """The limits of a volume with such a limit of bandwidth: as many fetches ahead, which are shorter."""
    if not bytes_per_second:
        return limits
    fetch_chunks = paced_chunks(limits.fetch_chunks, bytes_per_second)
    window_chunks = limits.window_chunks // limits.fetch_chunks * fetch_chunks
    return limits._replace(fetch_chunks=fetch_chunks, window_chunks=window_chunks)


class History(NamedTuple):
    """The state of an open file."""

    next_offset: int = 0
    run_bytes: int = 0
    ahead_stop: int = 0
    """First chunk that is not covered by readahead yet."""
    last_start: int = 0
    stride: int = 0
    strides: int = 0


class Plan(NamedTuple):
    """``demand`` are the chunks of the read itself; ``ahead`` are fetches that run when nothing urgent is queued."""

    history: History
    demand: range
    ahead: tuple[range, ...]


def plan(history: History, read: ByteRange, size_bytes: int, limits: Limits) -> Plan:
    """The fetches for a read of an object of that size. The read must not be empty."""
    planned = _plan(history, read, size_bytes, limits)
    if limits.whole and not history.run_bytes:
        # The window of the history stays that of the reads: if the disk could not take all of this, it goes on.
        return planned._replace(ahead=_whole(planned.demand, chunk_count(size_bytes), limits.fetch_chunks))
    return planned


def _whole(demand: range, chunks: int, longest: int) -> tuple[range, ...]:
    """All chunks but those of the read: from there to the end, then from the start."""
    parts = (range(demand.stop, chunks), range(demand.start))
    return tuple(
        range(first, min(first + longest, part.stop))
        for part in parts
        for first in range(part.start, part.stop, longest)
    )


def _plan(history: History, read: ByteRange, size_bytes: int, limits: Limits) -> Plan:
    wanted = chunks_of(read)
    # The slack grows with the run; otherwise a random read near the last one would count as its successor.
    slack_bytes = min(SLACK_BYTES, 2 * history.run_bytes or CHUNK_BYTES)
    if abs(read.start - history.next_offset) <= slack_bytes:
        return _sequential(history, read, wanted, chunk_count(size_bytes), limits)
    distance = read.start - history.last_start
    strides = history.strides + 1 if distance == history.stride and distance else 0
    ahead = _strided(read, distance, size_bytes) if strides >= STRIDES_SEEN else ()
    # run_bytes is not 0 from here on: the next read may turn out to be the second of a sequence.
    return Plan(History(read.stop, len(read), 0, read.start, distance, strides), wanted, ahead)


def _sequential(history: History, read: ByteRange, wanted: range, chunks: int, limits: Limits) -> Plan:
    next_offset = max(history.next_offset, read.stop)
    run_bytes = history.run_bytes + len(read)
    reached = max(wanted.stop, -(-next_offset // CHUNK_BYTES))
    window = min(limits.window_chunks, 2 * -(-run_bytes // CHUNK_BYTES))
    target = min(chunks, reached + window)
    first = max(reached, history.ahead_stop)
    longest = min(limits.fetch_chunks, max(1, window))
    ahead: list[range] = []
    # Full fetches only, or the rest of the object: topping the window up chunk by chunk would make every fetch short.
    while first < target and (target - first >= longest or target == chunks):
        stop = min(first + longest, target)
        ahead.append(range(first, stop))
        first = stop
    seen = History(next_offset, run_bytes, max(first, reached), read.start)
    return Plan(seen, wanted, tuple(ahead))


def _strided(read: ByteRange, distance: int, size_bytes: int) -> tuple[range, ...]:
    ahead = []
    for step in range(1, STRIDES_AHEAD + 1):
        start = read.start + step * distance
        if 0 <= start < size_bytes:
            ahead.append(chunks_of(ByteRange(start, min(start + len(read), size_bytes))))
    return tuple(ahead)
