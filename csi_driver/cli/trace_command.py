"""``hayloft trace record``: records which bytes of a mounted volume are read, through the daemon on this node."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from csi_driver.cli import complain
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import InvalidParameter
from csi_driver.volumes.data_plane import MOST_TRACE_S, DataPlane, TraceReport
from csi_driver.volumes.parameter_text import duration
from csi_driver.volumes.warmup_waiting import human_size


def run_record(socket: Path, volume_id: str, output: Path, time: str) -> int:
    """The exit code: 1 if nothing was read. Records until the time is over, SIGINT or SIGTERM, and writes the file.
    Raises HayloftError."""
    seconds = duration("--time", time.strip(), 1, MOST_TRACE_S)
    if not output.parent.is_dir():
        raise InvalidParameter("--output", str(output), "a file in a directory that exists")
    client = DaemonClient(socket)
    try:
        with _until_signal() as wait:
            client.start_trace(volume_id, seconds)
            complain(f"volume {volume_id}: reads are recorded for {seconds:g} s, or until Ctrl-C")
            wait(seconds)
        return save(client, volume_id, output)
    finally:
        client.close()


def save(data_plane: DataPlane, volume_id: str, output: Path) -> int:
    """Ends the recording and writes its file. The exit code."""
    report = data_plane.stop_trace(volume_id)
    if not report.ranges:
        complain(
            f"volume {volume_id}: no read reached the driver, and no file was written. Files that were open before are "
            "read by the kernel, and so are those of a volume that is published as plain files: set view: fuse, and "
            "start the recording before the program"
        )
        return 1
    content = bytearray()
    while piece := data_plane.read_trace(volume_id, len(content)):
        content += piece
    output.write_bytes(content)
    print(_text(report, output))  # noqa: T201  # output of a command
    return 0


def _text(report: TraceReport, output: Path) -> str:
    text = (
        f"{output}: {human_size(report.read_bytes)} in {report.ranges} ranges of {report.files} files; upload it below "
        "the dataset's URL and name its path there in warmupTrace"
    )
    return f"{text} (the recording was full: what was read later is missing)" if report.truncated else text


@contextmanager
def _until_signal() -> Iterator[Callable[[float], bool]]:
    """A wait that SIGINT and SIGTERM end."""
    stopped = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped.wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
