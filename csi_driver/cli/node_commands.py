"""``hayloft status``, ``volumes``, ``ls``, ``evict``, ``pin``, ``unpin`` and ``verify``: the cache of this node, as the
daemon tells it. Import no settings: see ``application.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from csi_driver.cli import options as flags
from csi_driver.cli.daemon_connection import connected, find_volume
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.status_text import status_lines, volume_lines
from csi_driver.cli.text_tables import (
    Column,
    ProgressLine,
    counted,
    labelled,
    percent,
    repaint,
    table,
    terminal_width,
    write,
    write_json,
)
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.model.visible_text import visible
from csi_driver.volumes.node_operations import (
    DirectoryPage,
    Entry,
    FileRows,
    Finding,
    NodeOperations,
    NodeStatus,
    VolumeStatus,
)
from csi_driver.volumes.status_documents import (
    Rates,
    all_conditions,
    directory_document,
    status_document,
    volume_document,
)
from csi_driver.volumes.warmup_waiting import human_size

RATES_S = 1.0
"""Over so long the rates of ``status`` are measured."""


def status(
    daemon_socket: flags.OwnDaemonSocket = None,
    watch: flags.Watch = False,
    interval: flags.Interval = "2s",
    json: flags.Json = False,
) -> int:
    """Show the cache of this node, and what is wrong.

    Space, hits, rates, warmups and volumes; with --watch again and again."""
    interval_s = interval_seconds(interval)
    with connected(daemon_socket) as client:
        before, before_s = client.status(), time.monotonic()
        time.sleep(min(interval_s, RATES_S))
        while True:
            try:
                after, after_s = client.status(), time.monotonic()
            except DaemonUnavailable as error:
                if not watch:
                    raise
                show_absence(error, as_json=json)
            else:
                _show_status(after, Rates.between(before, after, after_s - before_s), watched=watch, as_json=json)
                if not watch:
                    return ExitCode.FINDINGS if all_conditions(after) else ExitCode.SUCCESS
                before, before_s = after, after_s
            time.sleep(interval_s)


def show_absence(error: DaemonUnavailable, *, as_json: bool) -> None:
    """In a view that is repeated, which goes on when another daemon answers."""
    if as_json:
        write_json({"error": str(error)}, on_one_line=True)
    else:
        repaint(labelled("", str(error), terminal_width(), 0))


def interval_seconds(text: str) -> float:
    """Of ``--interval``. Raises InvalidParameter."""
    from csi_driver.volumes.parameter_text import duration

    return duration("--interval", text, least_s=0.1, most_s=3600.0)


def _show_status(found: NodeStatus, rates: Rates, *, watched: bool, as_json: bool) -> None:
    if as_json:
        write_json(status_document(found, rates), on_one_line=watched)
        return
    lines = status_lines(found, rates, terminal_width())
    repaint(lines) if watched else write(lines)


def volumes(daemon_socket: flags.OwnDaemonSocket = None, json: flags.Json = False) -> int:
    """List the volumes that are mounted on this node."""
    with connected(daemon_socket) as client:
        found = client.status().volumes
    if json:
        write_json([volume_document(one) for one in found])
    else:
        write(volume_lines(found, terminal_width()))
    return ExitCode.SUCCESS


def ls(
    volume: flags.VolumeName,
    path: flags.PathInVolume = "",
    daemon_socket: flags.OwnDaemonSocket = None,
    json: flags.Json = False,
) -> int:
    """List a directory of a volume: how much is cached.

    Of each file, and of all files below each directory."""
    with connected(daemon_socket) as client:
        volume_id = find_volume(volume, client.status().volumes).volume.volume_id
        listed, entries = _listed(client, volume_id, path)
        progress = ProgressLine(shown=not json)
        entries_cached = [(entry, _cached_bytes(client, volume_id, listed, entry, progress)) for entry in entries]
        progress.clear()
    if json:
        write_json(directory_document(volume_id, path, entries_cached))
    else:
        write(directory_lines(entries_cached, terminal_width()))
    return ExitCode.SUCCESS


def _listed(client: NodeOperations, volume_id: str, path: str) -> tuple[DirectoryPage, list[Entry]]:
    page = first = client.list_directory(volume_id, os.fsencode(path))
    entries = list(page.entries)
    while page.next_cookie:
        page = client.list_directory(volume_id, os.fsencode(path), page.next_cookie)
        entries.extend(page.entries)
    return first, entries


def _cached_bytes(
    client: NodeOperations, volume_id: str, listed: DirectoryPage, entry: Entry, progress: ProgressLine
) -> int:
    if entry.cached_bytes is not None:
        return entry.cached_bytes
    total = 0
    for step in _steps(entry.rows, lambda rows: client.count_cached(volume_id, listed.snapshot_id, rows)):
        total += step.cached_bytes
        done = step.next_row - entry.rows.start
        progress.show(f"counting {visible(entry.name)}: {done:,} of {entry.rows.stop - entry.rows.start:,} files")
    return total


def _files(number: int) -> str:
    return counted(number, "file")


def _steps(rows: FileRows, step: Callable[[FileRows], Any]) -> Iterator[Any]:
    """The results of a call that is repeated until it has worked on all rows."""
    while rows.start < rows.stop:
        result = step(rows)
        yield result
        rows = FileRows(result.next_row, rows.stop)


def directory_lines(entries: list[tuple[Entry, int]], width: int) -> list[str]:
    """The table of ``hayloft ls``, with a line of totals."""
    columns = (
        Column("CACHED", right=True),
        Column("BYTES", right=True),
        Column("OF", right=True),
        Column("NAME", shortened=True),
    )
    rows = [
        (
            percent(cached_bytes, entry.size_bytes),
            human_size(cached_bytes),
            human_size(entry.size_bytes),
            visible(entry.name) + ("/" if entry.is_directory else ""),
        )
        for entry, cached_bytes in entries
    ]
    cached = sum(cached_bytes for _, cached_bytes in entries)
    total = sum(entry.size_bytes for entry, _ in entries)
    files = sum(entry.rows.stop - entry.rows.start for entry, _ in entries)
    rows.append((percent(cached, total), human_size(cached), human_size(total), f"total of {_files(files)}"))
    return table(columns, rows, width)


def evict(
    volume: flags.VolumeName,
    path: flags.PathInVolume = "",
    daemon_socket: flags.OwnDaemonSocket = None,
    json: flags.Json = False,
) -> int:
    """Remove a volume, or a path in it, from the cache. Files that are open stay."""
    totals = {"evicted_bytes": 0, "evicted_files": 0, "kept_bytes": 0, "kept_files": 0}
    with connected(daemon_socket) as client:
        volume_id = find_volume(volume, client.status().volumes).volume.volume_id
        listed = client.list_directory(volume_id, os.fsencode(path))
        progress = ProgressLine(shown=not json)
        for step in _steps(listed.rows, lambda rows: client.evict(volume_id, listed.snapshot_id, rows)):
            for name in totals:
                totals[name] += getattr(step, name)
            progress.show(f"evicted {totals['evicted_files']:,} files, {human_size(totals['evicted_bytes'])}")
        progress.clear()
    if json:
        write_json({"volume_id": volume_id, "path": path.strip("/"), **totals})
        return ExitCode.SUCCESS
    text = f"volume {volume_id}: {_files(totals['evicted_files'])} with {human_size(totals['evicted_bytes'])} evicted"
    if totals["kept_files"]:
        text += (
            f"; {_files(totals['kept_files'])} with {human_size(totals['kept_bytes'])} kept, because they are open "
            "or shown by a materialised view"
        )
    write([text])
    return ExitCode.SUCCESS


def pin(volume: flags.VolumeName, daemon_socket: flags.OwnDaemonSocket = None, json: flags.Json = False) -> int:
    """Reserve the cache for a volume.

    What is cached of it is not evicted, until it is unmounted or unpinned. Fetches nothing."""
    return _set_pinned(volume, daemon_socket, pinned=True, as_json=json)


def unpin(volume: flags.VolumeName, daemon_socket: flags.OwnDaemonSocket = None, json: flags.Json = False) -> int:
    """End what `hayloft pin` began.

    The volume's own cacheReservation stays."""
    return _set_pinned(volume, daemon_socket, pinned=False, as_json=json)


def _set_pinned(text: str, socket: flags.OwnDaemonSocket, *, pinned: bool, as_json: bool) -> int:
    with connected(socket) as client:
        volume_id = find_volume(text, client.status().volumes).volume.volume_id
        found = client.set_pinned(volume_id, pinned)
    if as_json:
        write_json(volume_document(found))
    else:
        write([_pin_text(found)])
    return ExitCode.SUCCESS


def _pin_text(found: VolumeStatus) -> str:
    volume = found.volume
    if not found.pinned:
        kept = (
            f"; {human_size(volume.reserved_bytes)} stay reserved (cacheReservation)" if volume.reserved_bytes else ""
        )
        return f"volume {volume.volume_id}: not pinned{kept}"
    missing = volume.total_bytes - volume.cached_bytes
    rest = f"; fetch the rest with: hayloft warm {volume.volume_id}" if missing or not found.counted else ""
    cached = f"{human_size(volume.cached_bytes)} of them cached" if found.counted else "cached files are being counted"
    return f"volume {volume.volume_id}: pinned, {human_size(volume.total_bytes)} reserved, {cached}{rest}"


def verify(
    volume: flags.VolumeName,
    path: flags.PathInVolume = "",
    origin: flags.Origin = False,
    daemon_socket: flags.OwnDaemonSocket = None,
    json: flags.Json = False,
) -> int:
    """Check every cached byte against its checksum.

    Of a volume, or of a path in it; with --origin also each file against the store. Damaged bytes are dropped, and
    fetched again when they are read."""
    totals = {"checked_bytes": 0, "checked_files": 0, "compared_files": 0}
    findings: list[Finding] = []
    with connected(daemon_socket) as client:
        volume_id = find_volume(volume, client.status().volumes).volume.volume_id
        listed = client.list_directory(volume_id, os.fsencode(path))
        progress = ProgressLine(shown=not json)

        def step(rows: FileRows) -> Any:
            return client.verify(volume_id, listed.snapshot_id, rows, origin=origin)

        for verified in _steps(listed.rows, step):
            for name in totals:
                totals[name] += getattr(verified, name)
            findings.extend(verified.findings)
            done = verified.next_row - listed.rows.start
            whole = listed.rows.stop - listed.rows.start
            progress.show(f"{done:,} of {whole:,} files, {human_size(totals['checked_bytes'])} checked")
        progress.clear()
    if json:
        write_json(verify_document(volume_id, path, totals, findings))
    else:
        write(verify_lines(volume_id, totals, findings, origin=origin))
    return ExitCode.FINDINGS if findings else ExitCode.SUCCESS


def verify_lines(volume_id: str, totals: dict[str, int], findings: list[Finding], *, origin: bool) -> list[str]:
    """A line for each finding, and one of totals."""
    lines = [f"{one.kind}: {visible(one.path)}{_finding_detail(one)}" for one in findings]
    compared = f", {_files(totals['compared_files'])} compared with the store" if origin else ""
    verdict = counted(len(findings), "finding") if findings else "nothing is wrong"
    checked = f"{human_size(totals['checked_bytes'])} in {_files(totals['checked_files'])} checked"
    return [*lines, f"volume {volume_id}: {checked}{compared}: {verdict}"]


def _finding_detail(one: Finding) -> str:
    if one.bad_chunks:
        return f" ({one.bad_chunks} of its chunks of 1 MiB; dropped, and fetched again when they are read)"
    return f" ({one.detail})" if one.detail else ""


def verify_document(volume_id: str, path: str, totals: dict[str, int], findings: list[Finding]) -> dict[str, Any]:
    """Of ``hayloft verify --json``."""
    return {
        "volume_id": volume_id,
        "path": path.strip("/"),
        **totals,
        "findings": [
            {
                "path": os.fsdecode(one.path),
                "kind": str(one.kind),
                "bad_chunks": one.bad_chunks,
                "detail": one.detail,
            }
            for one in findings
        ],
    }
