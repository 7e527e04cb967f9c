"""The picture: bars against the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hayloft_bench.demo.extra import pyplot
from hayloft_bench.demo.results import Results
from hayloft_bench.demo.table import TARGET_TITLES, TARGETS, WORKLOAD_TITLES, ratio_text
from hayloft_bench.demo.workloads import WORKLOADS

_WARM = {"local": "#aeb6c2", "hayloft": "#d9861e", "boto3": "#5b7fa6", "s3fs": "#5b7fa6"}
_COLD = {"local": "#e1e5ea", "hayloft": "#f4d3a5", "boto3": "#c3d1e0", "s3fs": "#c3d1e0"}
_INK = "#2b2f36"
_FAINT = "#737b87"
_WIDTH = 0.4


def draw(results: Results, path: Path) -> None:
    """Writes a PNG: for each workload and target a cold and a warm bar, and plain local files as a line across all.
    Every workload has its own linear scale, so that lengths can be compared by eye."""
    plot = pyplot()
    with plot.rc_context({"font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK}):
        figure, panels = plot.subplots(1, len(WORKLOADS), figsize=(12, 5), dpi=150)
        for panel, workload in zip(panels, WORKLOADS, strict=True):
            _panel(panel, results, workload)
        _words(figure, results)
        figure.tight_layout(rect=(0, 0.05, 1, 0.87), w_pad=3.0)
        figure.savefig(path)
        plot.close(figure)


def _panel(panel: Any, results: Results, workload: str) -> None:
    limit = results.rate(workload, "local", "warm") / 1e6
    highest = limit
    for place, target in enumerate(TARGETS):
        cold, warm = (results.rate(workload, target, phase) / 1e6 for phase in ("cold", "warm"))
        highest = max(highest, cold, warm)
        panel.bar(place - _WIDTH / 2, cold, width=_WIDTH, color=_COLD[target], zorder=2)
        panel.bar(place + _WIDTH / 2, warm, width=_WIDTH, color=_WARM[target], zorder=2)
        weight = "bold" if target == "hayloft" else "normal"
        _label(panel, place - _WIDTH / 2, cold, f"{cold:,.0f}", _FAINT, "normal")
        share = f"\n{ratio_text(warm / limit)} ×" if limit and target != "local" else ""
        _label(panel, place + _WIDTH / 2, warm, f"{warm:,.0f}{share}", _INK, weight)
    panel.axhline(limit, color=_FAINT, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    panel.set_ylim(0, highest * 1.22 or 1)
    panel.set_xticks(range(len(TARGETS)), ["local\nfiles", *(TARGET_TITLES[target] for target in TARGETS[1:])])
    panel.set_title(f"{WORKLOAD_TITLES[workload]}, MB/s", loc="left", fontsize=11, weight="bold")
    panel.set_yticks([])
    panel.tick_params(axis="both", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(_FAINT)


def _label(panel: Any, place: float, height: float, text: str, colour: str, weight: str) -> None:
    panel.annotate(
        text,
        (place, height),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=colour,
        weight=weight,
    )


def _words(figure: Any, results: Results) -> None:
    seconds = {target: results.seconds(target, "warm") for target in TARGETS}
    left = 0.012
    figure.suptitle("Training reads a dataset from an object store", x=left, y=0.975, ha="left", size=15, weight="bold")
    headline = (
        f"One warm epoch: Hayloft {seconds['hayloft']:.2f} s, plain local files {seconds['local']:.2f} s, "
        f"boto3 {seconds['boto3']:.1f} s, s3fs {seconds['s3fs']:.1f} s"
    )
    figure.text(left, 0.895, headline, color=_FAINT, size=11)
    legend = (
        "Light bars: the first, cold epoch. Strong bars: the median of the warm epochs, and its share of plain local "
        "files (dashed). Store, driver and readers share one machine."
    )
    figure.text(left, 0.018, legend, color=_FAINT, size=8.5)
