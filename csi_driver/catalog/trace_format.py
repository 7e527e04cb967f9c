"""The file of an access trace: an Arrow IPC stream, described in docs/traces.md.

The author of a volume names the file, and the daemon reads it for all volumes of a node: what it may cost is bounded
before Arrow decodes it. Nothing may be compressed, so that it takes no more memory than the file has bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from csi_driver.model.access_trace import AccessTrace, TracedRange
from csi_driver.model.errors import InvalidParameter
from csi_driver.model.tracebacks import summary

MOST_RANGES = 250_000
"""Of a trace: about 50 MB of memory while it is recorded or replayed."""

MOST_BYTES = 64 << 20
"""Of a file: so many ranges, each of another file with a path of 200 bytes."""

FORMAT = b"1"
_FORMAT_KEY, _URL_KEY, _TRUNCATED_KEY = b"hayloft.trace", b"hayloft.dataset", b"hayloft.truncated"

_NUMBERS = ("size_bytes", "mtime_ns", "start", "stop", "time_ms")

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
"""Kinds of messages in Arrow's Message.fbs that may be compressed."""


def encode_trace(trace: AccessTrace) -> bytes:
    """The content of the file."""
    import pyarrow as pa

    columns = [
        pa.array([each.path for each in trace.ranges], pa.binary()).dictionary_encode(),
        pa.array([each.etag for each in trace.ranges], pa.utf8()).dictionary_encode(),
        *(pa.array([getattr(each, name) for each in trace.ranges], pa.int64()) for name in _NUMBERS),
    ]
    url = trace.dataset_url.encode("utf-8", "surrogateescape")
    truncated = b"true" if trace.truncated else b"false"
    schema = _schema().with_metadata({_FORMAT_KEY: FORMAT, _URL_KEY: url, _TRUNCATED_KEY: truncated})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode_trace(name: str, place: str, content: bytes) -> AccessTrace:
    """Raises InvalidParameter for the parameter ``name``, whose value is the ``place`` of the file."""
    import pyarrow as pa

    def refused(reason: str) -> InvalidParameter:
        allowed = "the path of a file that `hayloft trace record` has written"
        return InvalidParameter(name, place, allowed, f"That file cannot be read as one: {reason}")

    try:
        if _is_anything_compressed(content):
            raise refused("it is compressed")
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            metadata = reader.schema.metadata or {}
            if metadata.get(_FORMAT_KEY) != FORMAT or reader.schema.remove_metadata() != _schema():
                raise refused("it is no trace, or one of a later version of Hayloft")
            table = reader.read_all()
        table.validate(full=True)
        if table.num_rows > MOST_RANGES:
            raise refused(f"it has more than {MOST_RANGES} ranges")
        ranges = tuple(_ranges(table, refused))
        url = metadata[_URL_KEY].decode("utf-8", "surrogateescape")
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, struct.error) as error:
        raise refused(summary(error)) from None
    return AccessTrace(url, ranges, metadata.get(_TRUNCATED_KEY) == b"true")


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.dictionary(pa.int32(), pa.binary())),
            pa.field("etag", pa.dictionary(pa.int32(), pa.utf8())),
            *(pa.field(name, pa.int64()) for name in _NUMBERS),
        ]
    )


def _ranges(table: Any, refused: Callable[[str], InvalidParameter]) -> Iterator[TracedRange]:
    for batch in table.to_batches():
        # Each value of a dictionary becomes one object, however many rows refer to it.
        paths, etags = (_texts(batch.column(name)) for name in ("path", "etag"))
        numbers = (batch.column(name).to_pylist() for name in _NUMBERS)
        for path, etag, size_bytes, mtime_ns, start, stop, time_ms in zip(paths, etags, *numbers, strict=True):
            if path is None or None in (size_bytes, mtime_ns, start, stop, time_ms):
                raise refused("a row has no path, or a number is missing")
            if not 0 <= start < stop <= size_bytes:
                raise refused("a range is outside of its file")
            yield TracedRange(path, size_bytes, etag, mtime_ns, start, stop, time_ms)


def _texts(column: Any) -> list[Any]:
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _is_anything_compressed(content: bytes) -> bool:
    """Looks at the headers of all messages. Raises ArrowException, struct.error."""
    import pyarrow as pa

    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(content))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return False
        if _is_compressed(message.metadata.to_pybytes()):
            return True


def _is_compressed(metadata: bytes) -> bool:
    """Of a message of Arrow IPC: a FlatBuffer whose root is the table Message. Raises struct.error."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    kind_at, header_at = _field(metadata, message, 1), _field(metadata, message, 2)
    kind = struct.unpack_from("<B", metadata, kind_at)[0] if kind_at else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or not header_at:
        return False
    batch = _followed(metadata, header_at)
    if kind == _DICTIONARY_BATCH:
        data_at = _field(metadata, batch, 1)
        if not data_at:
            return False
        batch = _followed(metadata, data_at)
    return bool(_field(metadata, batch, 3))  # RecordBatch.compression


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a table of a FlatBuffer is; 0: it is absent."""
    entries = table - struct.unpack_from("<i", buffer, table)[0]
    size_bytes = struct.unpack_from("<H", buffer, entries)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", buffer, entries + place)[0] if place < size_bytes else 0
    return table + offset if offset else 0


def _followed(buffer: bytes, place: int) -> int:
    offset: int = struct.unpack_from("<I", buffer, place)[0]
    return place + offset
