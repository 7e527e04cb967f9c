"""The recording of the reads of one mount, from ``start`` until ``stop`` or until its time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from csi_driver.catalog.trace_format import encode_trace
from csi_driver.catalog.tree import Tree
from csi_driver.daemon.trace_source import recorded_trace
from csi_driver.filesystem.access_recorder import AccessRecorder
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem
from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import InvalidParameter
from csi_driver.volumes.data_plane import MOST_TRACE_S, TraceReport

PIECE_BYTES = 1 << 20
"""Of one answer."""


class TraceRecording:
    """May be used from any thread.

    ``_lock`` guards all fields; it is held while a trace is encoded, which takes a second for the longest one.
    """

    def __init__(
        self, filesystem: DatasetFilesystem, tree: Tree, url: DatasetUrl, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._filesystem = filesystem
        self._tree = tree
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._recorder: AccessRecorder | None = None
        self._until_s = 0.0
        self._content = b""

    def start(self, most_s: float) -> None:
        """Begins anew: what was recorded before is dropped. Raises InvalidParameter."""
        if not 0 < most_s <= MOST_TRACE_S:
            raise InvalidParameter("seconds", f"{most_s:g}", f"more than 0 and at most {MOST_TRACE_S:g} seconds")
        with self._lock:
            self._content = b""
            self._until_s = self._clock() + most_s
            self._recorder = self._filesystem.recorder = AccessRecorder()

    def end_if_due(self) -> None:
        """Called about every second: a recording that is not stopped costs passthrough, and memory."""
        with self._lock:
            if self._recorder is not None and self._clock() > self._until_s:
                self._filesystem.recorder = None

    def stop(self, volume_id: str) -> TraceReport:
        """Ends the recording, and describes it. Raises InvalidParameter if none was started."""
        with self._lock:
            if self._recorder is None:
                raise InvalidParameter("volume_id", volume_id, "a volume whose reads are recorded")
            self._filesystem.recorder = None
            trace = recorded_trace(self._recorder, self._tree, self._url)
            self._content = encode_trace(trace)
            return TraceReport(
                volume_id, len(self._content), trace.file_count, len(trace.ranges), trace.total_bytes, trace.truncated
            )

    def piece(self, offset: int) -> bytes:
        """A part of the file of the trace that was stopped last; empty at its end."""
        with self._lock:
            return self._content[offset : offset + PIECE_BYTES]
