"""The picture: bars against the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csi_driver.demo.extra import pyplot
from csi_driver.demo.results import Results
from csi_driver.demo.table import TARGET_TITLES, TARGETS, WORKLOAD_TITLES
from csi_driver.demo.workloads import WORKLOADS

_COLOURS = {"local": "#c9ced6", "hayloft": "#d9861e", "boto3": "#5b7fa6", "s3fs": "#93abc6"}
_INK = "#2b2f36"
_FAINT = "#7a828e"


def draw(results: Results, path: Path) -> None:
    """Writes a PNG: for each workload the warm speeds as bars, the cold ones as a mark on each bar, and plain local
    files as a line across. The scale is logarithmic: the slowest and the fastest differ by two orders of magnitude."""
    plot = pyplot()
    with plot.rc_context({"font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK}):
        figure, panels = plot.subplots(1, len(WORKLOADS), figsize=(11, 4.6), dpi=150, sharey=True)
        for panel, workload in zip(panels, WORKLOADS, strict=True):
            _panel(panel, results, workload)
        panels[0].set_ylabel("MB/s, logarithmic")
        _headline(figure, results)
        figure.tight_layout(rect=(0, 0.04, 1, 0.86), w_pad=2.0)
        figure.savefig(path)
        plot.close(figure)


def _panel(panel: Any, results: Results, workload: str) -> None:
    panel.set_yscale("log")
    limit = results.rate(workload, "local", "warm") / 1e6
    bars = [target for target in TARGETS if target != "local"]
    for place, target in enumerate(bars):
        warm, cold = (results.rate(workload, target, phase) / 1e6 for phase in ("warm", "cold"))
        panel.bar(place, warm, width=0.62, color=_COLOURS[target], zorder=2)
        panel.plot([place - 0.31, place + 0.31], [cold, cold], color=_INK, linewidth=2, zorder=4)
        label = f"{warm:,.0f}\n{warm / limit:.2f} ×" if limit else f"{warm:,.0f}"
        weight = "bold" if target == "hayloft" else "normal"
        panel.annotate(
            label, (place, max(warm, cold)), xytext=(0, 4), textcoords="offset points", ha="center", weight=weight
        )
    panel.axhline(limit, color=_FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=3)
    panel.annotate(
        f"plain local files {limit:,.0f}",
        (len(bars) - 0.6, limit),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=_FAINT,
        fontsize=9,
    )
    panel.set_xticks(range(len(bars)), [TARGET_TITLES[target] for target in bars])
    panel.set_title(WORKLOAD_TITLES[workload], loc="left", fontsize=11, weight="bold")
    panel.set_xlim(-0.6, len(bars) - 0.4)
    rates = [results.rate(workload, target, phase) / 1e6 for target in TARGETS for phase in ("cold", "warm")]
    known = [rate for rate in rates if rate > 0] or [1.0]
    panel.set_ylim(min(min(known) / 3, panel.get_ylim()[0]), max(max(known) * 5, panel.get_ylim()[1]))
    panel.tick_params(axis="both", length=0)
    panel.grid(axis="y", color="#e6e9ee", zorder=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _headline(figure: Any, results: Results) -> None:
    seconds = {target: results.seconds(target, "warm") for target in TARGETS}
    figure.suptitle("Reading a dataset from an object store, warm epochs", x=0.012, y=0.975, ha="left", size=15, weight="bold")
    figure.text(
        0.012,
        0.895,
        f"one epoch: Hayloft {seconds['hayloft']:.2f} s, plain local files {seconds['local']:.2f} s, "
        f"boto3 {seconds['boto3']:.1f} s, s3fs {seconds['s3fs']:.1f} s",
        color=_FAINT,
        size=10.5,
    )
    figure.text(
        0.012,
        0.015,
        "Bars: median of the warm epochs, with the share of plain local files. Black marks: the cold epoch. "
        "Store, driver and readers share one machine.",
        color=_FAINT,
        size=8.5,
    )
