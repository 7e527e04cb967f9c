"""``hayloft top``: which pods and processes read which volumes, and how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence

from csi_driver.cli import options as flags
from csi_driver.cli.daemon_connection import connected
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.node_commands import interval_seconds, show_absence
from csi_driver.cli.text_tables import Column, labelled, rate, repaint, table, terminal_width, write, write_json
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.volumes.volume_ids import readable_part
from csi_driver.wiring.reader_rates import NOTE, NodeUse, Sample, Use, VolumeUse, top_document, use_between


def top(
    daemon_socket: flags.OwnDaemonSocket = None,
    watch: flags.Watch = False,
    interval: flags.Interval = "2s",
    json: flags.Json = False,
) -> int:
    """Show which pods and processes read what, how fast.

    Passed through by the kernel, served by the daemon, fetched from stores."""
    interval_s = interval_seconds(interval)
    with connected(daemon_socket) as client:
        before = Sample.of(client.activity())
        while True:
            time.sleep(interval_s)
            try:
                after = Sample.of(client.activity())
            except DaemonUnavailable as error:
                if not watch:
                    raise
                show_absence(error, as_json=json)
                continue
            use = use_between(before, after)
            if json:
                write_json(top_document(use), on_one_line=watch)
            else:
                lines = top_lines(use, terminal_width())
                repaint(lines) if watch else write(lines)
            if not watch:
                return ExitCode.SUCCESS
            before = after


def top_lines(use: NodeUse, width: int) -> list[str]:
    """For a terminal of this width; 0: any."""
    lines = [f"fetched from stores: {rate(use.fetched_per_s)}, {use.requests_per_s:.0f} requests/s"]
    if not use.volumes:
        return [*lines, "", "No volume is mounted on this node."]
    columns = (
        Column("VOLUME", shortened=True),
        Column("PASSED", right=True),
        Column("SERVED", right=True),
        Column("CACHED/s", right=True),
        Column("STORE", right=True),
    )
    lines += ["", *table(columns, map(_volume_row, use.volumes), width)]
    if not use.uses:
        return [*lines, "", "No process that can be seen from here has a file of them open."]
    of_processes = (
        Column("PROCESS", right=True),
        Column("COMMAND", shortened=True),
        Column("POD", shortened=True, optional=1),
        Column("VOLUME", shortened=True),
        Column("OPEN", right=True),
        Column("MAPPED", right=True, optional=2),
        Column("PASSED/s", right=True),
        Column("SERVED/s", right=True),
        Column("READ/s", right=True),
    )
    lines += ["", *table(of_processes, map(_use_row, use.uses), width), "", *labelled("", NOTE, width, 0)]
    return lines


def _volume_row(volume: VolumeUse) -> Sequence[str]:
    opened = ("-", "-") if volume.without_opens else (f"{volume.passed_through:,}", f"{volume.served:,}")
    waits = f"waits {volume.store_wait_s:.0f} s" if volume.store_wait_s >= 1 else "-"
    return (readable_part(volume.volume_id), *opened, rate(volume.cached_per_s), waits)


def _use_row(use: Use) -> Sequence[str]:
    return (
        str(use.process_id),
        use.command,
        use.pod or "-",
        readable_part(use.volume_id),
        f"{use.open_files:,}",
        f"{use.mapped:,}",
        rate(use.passed_per_s),
        "-" if use.served_per_s is None else rate(use.served_per_s),
        "-" if use.process_reads_per_s is None else rate(use.process_reads_per_s),
    )
