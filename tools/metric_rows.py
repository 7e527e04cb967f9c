"""The table of ``docs/monitoring.md``: every metric of ``csi_driver/wiring/metric_table.py``."""

from __future__ import annotations

from pathlib import Path

from csi_driver.wiring.metric_table import OF_CSI, OF_DAEMON, OF_PROCESS


def table(_repository: Path) -> str:
    """Markdown, by process."""
    rows = ["| metric | type | labels | meaning |\n", "|---|---|---|---|\n"]
    for heading, specs in (
        ("cache daemon (`--metrics-port`)", OF_DAEMON),
        ("node plugin and controller (`--health-port`)", OF_CSI),
        ("all three", OF_PROCESS),
    ):
        rows.append(f"| **{heading}** | | | |\n")
        for spec in specs:
            labels = ", ".join(f"`{label}`" for label in spec.labels)
            rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |\n")
    return "".join(rows)
