"""The file of an access trace: Arrow IPC, described in docs/traces.md."""

from __future__ import annotations

from collections.abc import Iterable

from csi_driver.model.access_trace import AccessTrace, TracedRange
from csi_driver.model.errors import InvalidParameter

MOST_BYTES = 64 << 20
"""Of a file: 250,000 ranges of as many files take about 30 MB."""

FORMAT = b"1"
_FORMAT_KEY, _URL_KEY, _TRUNCATED_KEY = b"hayloft.trace", b"hayloft.dataset", b"hayloft.truncated"

_NUMBERS = ("size_bytes", "mtime_ns", "start", "stop", "time_ms")


def encode_trace(trace: AccessTrace) -> bytes:
    """The content of the file."""
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("path", pa.dictionary(pa.int32(), pa.binary())),
            pa.field("etag", pa.dictionary(pa.int32(), pa.utf8())),
            *(pa.field(name, pa.int64()) for name in _NUMBERS),
        ],
        metadata={
            _FORMAT_KEY: FORMAT,
            _URL_KEY: trace.dataset_url.encode("utf-8", "surrogateescape"),
            _TRUNCATED_KEY: b"true" if trace.truncated else b"false",
        },
    )
    columns = [
        pa.array([each.path for each in trace.ranges], pa.binary()).dictionary_encode(),
        pa.array([each.etag for each in trace.ranges], pa.utf8()).dictionary_encode(),
        *(pa.array([getattr(each, name) for each in trace.ranges], pa.int64()) for name in _NUMBERS),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode_trace(name: str, place: str, content: bytes) -> AccessTrace:
    """Raises InvalidParameter for the parameter ``name``, whose value is the ``place`` of the file."""
    import pyarrow as pa

    allowed = "the path of a file that `hayloft trace record` has written"
    try:
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        table.validate(full=True)
        metadata = table.schema.metadata or {}
        if metadata.get(_FORMAT_KEY) != FORMAT:
            raise InvalidParameter(name, place, allowed, "That file is no trace, or one of a later version of Hayloft")
        columns = [table.column(column).to_pylist() for column in ("path", "etag", *_NUMBERS)]
        ranges = tuple(_ranges(zip(*columns, strict=True)))
        url = metadata[_URL_KEY].decode("utf-8", "surrogateescape")
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        problem = f"That file cannot be read as one: {type(error).__name__}"
        raise InvalidParameter(name, place, allowed, problem) from None
    return AccessTrace(url, ranges, metadata.get(_TRUNCATED_KEY) == b"true")


def _ranges(rows: Iterable[tuple[object, ...]]) -> Iterable[TracedRange]:
    """Raises ValueError, TypeError."""
    for path, etag, size_bytes, mtime_ns, start, stop, time_ms in rows:
        numbers = (size_bytes, mtime_ns, start, stop, time_ms)
        if not isinstance(path, bytes) or not all(isinstance(number, int) for number in numbers):
            raise TypeError("a row without a path or a number")
        if not 0 <= start < stop <= size_bytes:  # type: ignore[operator]
            raise ValueError("a range outside of its file")
        yield TracedRange(path, size_bytes, etag, mtime_ns, start, stop, time_ms)  # type: ignore[arg-type]
