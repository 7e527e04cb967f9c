"""Reads the trace of ``warmupTrace`` from the store of its volume, and makes one of what was recorded."""

from __future__ import annotations

from csi_driver.catalog.trace_format import MOST_BYTES, decode_trace
from csi_driver.catalog.tree import Tree
from csi_driver.filesystem.access_recorder import AccessRecorder
from csi_driver.model.access_trace import AccessTrace, TracedRange
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import InvalidParameter, ObjectNotFound
from csi_driver.objects.store import ObjectStore

_NAME = "warmupTrace"


def load_trace(store: ObjectStore, url: DatasetUrl, path: str) -> AccessTrace:
    """The trace at that path below the URL. Blocks on the store. Raises InvalidParameter if there is none, or one of
    another dataset, and StoreError."""
    key = url.prefix + path
    try:
        found = store.stat(key)
        if found.size_bytes > MOST_BYTES:
            raise InvalidParameter(_NAME, path, f"a trace of at most {MOST_BYTES} bytes")
        parts = store.read_range(key, ByteRange(0, found.size_bytes), if_match=found.etag) if found.size_bytes else ()
        content = b"".join(parts)
    except ObjectNotFound:
        remedy = "Upload what `hayloft trace record` has written, or leave the parameter out"
        raise InvalidParameter(_NAME, path, f"the path of an object below {url}; there is none", remedy) from None
    trace = decode_trace(_NAME, path, content)
    if trace.dataset_url != str(url):
        remedy = f"That one was recorded of {trace.dataset_url}; record one of this dataset"
        raise InvalidParameter(_NAME, path, f"a trace of {url}", remedy)
    return trace


def recorded_trace(recorder: AccessRecorder, tree: Tree, url: DatasetUrl) -> AccessTrace:
    """What was read of a mount until now."""
    ranges, truncated = recorder.ranges()
    return AccessTrace(
        str(url),
        tuple(
            TracedRange(
                path=tree.path(each.node),
                size_bytes=file.size_bytes,
                etag=file.etag,
                mtime_ns=file.mtime_ns,
                start=each.start,
                stop=min(each.stop, file.size_bytes),
                time_ms=int(each.seconds * 1000),
            )
            for each in ranges
            if each.start < (file := tree.file(each.node)).size_bytes
        ),
        truncated,
    )
