"""The style of the plots: one palette, panels narrow enough for a phone, bars and lines. No figure is computed here.

matplotlib is imported when something is drawn, because its import is slow.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 5.0
"""360 CSS pixels: a phone held upright shows a panel without making it smaller."""
TEXT_PT = 9.5
BAR_IN = 0.235
GRID_WIDTH_IN = 3.9
"""Of one panel in a picture of several."""

PEER_SLOTS = 10
ROLES = ("ink", "muted", "grid", "limit", "h0", "h1", "h2", "h3", *(f"p{number}" for number in range(PEER_SLOTS)))
"""ink, muted and grid: text and lines. h0 to h3: Hayloft and its variants. p0 and on: everything else, by target."""


def _palette(own: str, peers: str) -> dict[str, str]:
    return dict(zip(ROLES, [*own.split(), *peers.split()], strict=True))


# Hayloft is the one warm colour. The others differ in hue, lightness and dash, for people of any colour vision
# (after the set of Okabe and Ito, with its orange left to Hayloft); each has at least 3 : 1 against its background.
LIGHT = _palette(
    "#1c1917 #57534e #e7e5e4 #1c1917 #c2410c #ea580c #9a3412 #b45309",
    "#0072b2 #00795a #a8467f #4a55a8 #2d8bba #5c6b00 #7d3fae #66707c #0e7490 #86198f",
)
DARK = _palette(
    "#f5f5f4 #a8a29e #3a3634 #f5f5f4 #fb923c #fdba74 #f97316 #fbbf24",
    "#56b4e9 #34c79a #e08fc0 #97a3f0 #8fd3f4 #c3cf4a #c79bf0 #aab4bf #67e8f9 #f0abfc",
)
MARKERS = {role: f"#01fe{number:02x}" for number, role in enumerate(ROLES)}
"""Colours of no palette: in an inline SVG they become ``var(--role)``, so that the page chooses light or dark."""
LIMIT_DASH = (0, (3, 2))
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its length, and the quartiles of the repetitions. ``text`` stands at its end."""

    label: str
    role: str
    value: float
    lower: float
    upper: float
    text: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Bars that are compared, under a heading; ``limit`` is drawn as a line across them."""

    heading: str
    bars: Sequence[Bar]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line through points."""

    label: str
    role: str
    points: Sequence[tuple[float, float]]
    is_ours: bool = False
    dash: int = 0


Draw = Callable[[dict[str, str]], "Figure"]
"""Draws with the colours of the roles."""


def bars(blocks: Sequence[Block], unit: str, *, limit_label: str = "", title: str = "") -> Draw:
    """Horizontal bars in blocks, one below the other."""

    def draw(colours: dict[str, str]) -> Figure:
        rows = sum(len(block.bars) + 1.15 for block in blocks)
        figure, axes = _panel(colours, rows * BAR_IN + 0.45, title)
        _draw_blocks(axes, colours, blocks)
        if limit_label and any(block.limit is not None for block in blocks):
            axes.plot([], [], color=colours["limit"], lw=1.3, ls=LIMIT_DASH, label=limit_label)
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0, **_legend(colours))
        axes.set_xlabel(unit, color=colours["muted"])
        return figure

    return draw


def bar_grid(panels: Sequence[tuple[str, Sequence[Block]]], *, columns: int, title: str, caption: str) -> Draw:
    """Panels of bars side by side, each with its title and a scale of its own; ``caption`` stands below."""

    def draw(colours: dict[str, str]) -> Figure:
        from matplotlib.figure import Figure

        lines = -(-len(panels) // columns)
        rows = max(sum(len(block.bars) + 1.15 for block in blocks) for _, blocks in panels)
        figure = Figure(figsize=(columns * GRID_WIDTH_IN, lines * (rows * BAR_IN + 0.6) + 0.75), layout="constrained")
        figure.suptitle(title, color=colours["ink"], fontsize=TEXT_PT + 3.5, fontweight="bold")
        figure.supxlabel(caption, color=colours["muted"], fontsize=TEXT_PT)
        for number, (heading, blocks) in enumerate(panels, 1):
            axes = figure.add_subplot(lines, columns, number)
            _style(axes, colours)
            _draw_blocks(axes, colours, blocks)
            axes.set_ylim(rows - 0.5, -0.6)  # bars of all panels are of one height
            axes.set_title(heading, color=colours["ink"], fontsize=TEXT_PT + 0.5, fontweight="bold")
        return figure

    return draw


def _draw_blocks(axes: Axes, colours: dict[str, str], blocks: Sequence[Block]) -> None:
    most = max((max(bar.upper, block.limit or 0) for block in blocks for bar in block.bars), default=1.0) or 1.0
    y = 0.0
    for block in blocks:
        axes.text(0, y, block.heading, color=colours["muted"], va="center", ha="left", fontweight="bold")
        top, y = y + 0.5, y + 1.0
        for bar in block.bars:
            _bar(axes, colours, bar, y, most, block.limit)
            y += 1.0
        if block.limit is not None:
            axes.plot([block.limit] * 2, [top, y - 0.5], color=colours["limit"], lw=1.3, ls=LIMIT_DASH, zorder=4)
        y += 0.15
    axes.set_ylim(y - 0.5, -0.6)
    axes.set_xlim(0, most * 1.22)
    axes.set_yticks([])
    axes.grid(axis="x", color=colours["grid"], lw=0.8)


def _bar(axes: Axes, colours: dict[str, str], bar: Bar, y: float, most: float, limit: float | None) -> None:
    axes.barh(y, bar.value, height=0.74, color=colours[bar.role], zorder=3)
    if bar.upper > bar.lower:
        axes.plot([bar.lower, bar.upper], [y, y], color=colours["ink"], lw=1.2, zorder=5, solid_capstyle="butt")
    weight = "bold" if bar.is_ours else "normal"
    axes.text(
        -0.015, y, bar.label, color=colours["ink"], va="center", ha="right", fontweight=weight,
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    end = max(bar.value, bar.upper)
    if limit is not None and end < limit < end + most * (0.02 + 0.026 * len(bar.text)):
        end = limit  # the figure stands behind the line that it would be crossed by
    x = end + most * 0.015
    axes.text(x, y, bar.text, color=colours["ink"], va="center", ha="left", fontweight=weight, fontsize=TEXT_PT - 0.5)


def lines(
    drawn: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    ticks: Sequence[str] | None = None,
    whole_x: bool = False,
    level: tuple[float, str] | None = None,
    percent: bool = False,
    with_points: bool = True,
    title: str = "",
) -> Draw:
    """Lines with a legend below. ``ticks``: names of the places 0, 1, … of x. ``level``: a line across, with what it
    is. ``percent``: y from 0 to 1, shown in per cent."""

    def draw(colours: dict[str, str]) -> Figure:
        legend_rows = -(-len(drawn) // 3)
        figure, axes = _panel(colours, 2.75 + 0.2 * legend_rows, title)
        for line in sorted(drawn, key=lambda one: one.is_ours):
            x, y = zip(*line.points, strict=True)
            axes.plot(
                x, y, label=line.label, color=colours[line.role], lw=2.6 if line.is_ours else 1.5,
                ls=LIMIT_DASH if line.role == "limit" else DASHES[line.dash % len(DASHES)],
                marker="o" if with_points else "", ms=5 if line.is_ours else 3.5,
                zorder=6 if line.role == "limit" else 5 if line.is_ours else 3,
            )  # fmt: skip
        if level is not None:
            axes.axhline(level[0], color=colours["muted"], lw=1.0, ls=":")
            axes.annotate(
                level[1], (1, level[0]), xycoords=("axes fraction", "data"), xytext=(0, -3),
                textcoords="offset points", ha="right", va="top", color=colours["muted"], fontsize=TEXT_PT - 1,
            )  # fmt: skip
        _axes_of_lines(axes, log_x=log_x, ticks=ticks, whole_x=whole_x, percent=percent)
        axes.set_xlabel(xlabel, color=colours["muted"])
        axes.set_ylabel(ylabel, color=colours["muted"])
        axes.grid(color=colours["grid"], lw=0.8)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: [line.label for line in drawn].index(labels[index]))
        figure.legend(
            [handles[index] for index in order], [labels[index] for index in order],
            loc="outside lower center", ncols=3, **_legend(colours),
        )  # fmt: skip
        return figure

    return draw


def _axes_of_lines(axes: Axes, *, log_x: bool, ticks: Sequence[str] | None, whole_x: bool, percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from hayloft_bench.report.number_format import seconds

    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+ ", " ", seconds(value))))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.3, len(ticks) - 0.7)
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _panel(colours: dict[str, str], height_in: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in + (0.3 if title else 0)), layout="constrained")
    if title:
        figure.suptitle(title, color=colours["ink"], fontsize=TEXT_PT + 1.5, fontweight="bold")
    axes = figure.add_subplot()
    _style(axes, colours)
    return figure, axes


def _style(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=colours["muted"], length=0, labelsize=TEXT_PT - 0.5, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _legend(colours: dict[str, str]) -> dict[str, object]:
    return {"frameon": False, "labelcolor": colours["ink"], "fontsize": TEXT_PT - 0.5, "handlelength": 2.2}


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    import matplotlib

    # Text stays text: it can be searched and read aloud. The salt keeps ids apart in one page, and the same run gives
    # the same file.
    with matplotlib.rc_context({"font.size": TEXT_PT, "svg.fonttype": "none", "svg.hashsalt": salt}):
        yield


def inline_svg(draw: Draw, name: str, label: str) -> str:
    """For a page: without a fixed size, colours as ``var(--role)``; ``label`` is what a screen reader says."""
    from html import escape

    text = _svg(draw, MARKERS, name)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(label)}" ', text, count=1)
    # Groups are numbered in every figure anew; nothing refers to them.
    text = re.sub(r' id="(?!m[0-9a-f]{9}|p[0-9a-f]{9})[^"]*"', "", text)
    roles = {colour: role for role, colour in MARKERS.items()}
    return re.sub(r"#01fe[0-9a-f]{2}", lambda found: f"var(--{roles[found.group()]})", text)


def svg(draw: Draw, name: str) -> bytes:
    """A file of its own, light."""
    return _svg(draw, LIGHT, name, background="#ffffff").encode()


def png(draw: Draw, *, dark: bool = False, dots_per_inch: int = 160) -> bytes:
    """A picture, light unless asked otherwise."""
    output = io.BytesIO()
    with _settings(""):
        draw(DARK if dark else LIGHT).savefig(
            output, format="png", dpi=dots_per_inch, facecolor="#1c1917" if dark else "#ffffff"
        )
    return output.getvalue()


def _svg(draw: Draw, colours: dict[str, str], name: str, background: str = "none") -> str:
    output = io.StringIO()
    with _settings(name):
        draw(colours).savefig(output, format="svg", facecolor=background, metadata={"Date": None, "Creator": None})
    return output.getvalue()
