"""Text for terminals: tables that fit the width, sizes, shares, durations, names with control characters."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from csi_driver.volumes.warmup_waiting import human_size

_GAP = "  "

_CLEAR = "\x1b[H\x1b[J"
"""Moves to the first line of a terminal and clears what is below."""
_LEAST_WIDTH = 8
"""Of a column that is shortened."""

_READABLE_WIDTH = 20
"""A column that is not to be shortened further as long as another one can be left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    """Aligned to the right, as numbers are."""
    shortened: bool = False
    """May lose the middle of its texts where the terminal is too narrow."""
    optional: int = 0
    """Left out where the terminal is too narrow still, the highest number first; 0: never."""


def terminal_width() -> int:
    """Of standard output; 0: it is no terminal, and nothing is shortened for it, so that grep finds it."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return 0
    return shutil.get_terminal_size().columns


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Lines, the titles first, none wider than ``width`` (0: any) as far as the columns allow it. Columns that may be
    left out go before texts become too short to be read."""
    given = [list(row) for row in rows]
    natural = [max([len(column.title), *(len(row[at]) for row in given)]) for at, column in enumerate(columns)]
    shown = list(range(len(columns)))
    widths = natural
    if width:
        least = [
            min(natural[at], _READABLE_WIDTH) if column.shortened else natural[at] for at, column in enumerate(columns)
        ]
        for at in sorted((at for at in shown if columns[at].optional), key=lambda at: -columns[at].optional):
            if _total(shown, least) > width:
                shown.remove(at)
        widths = _shortened(columns, shown, natural, width)
    lines = [[column.title for column in columns], *given]
    return [_line(columns, shown, widths, line) for line in lines]


def _shortened(columns: Sequence[Column], shown: Sequence[int], natural: Sequence[int], width: int) -> list[int]:
    """Takes the missing places from the columns that may lose them, from the widest first."""
    widths = list(natural)
    for _ in range(_total(shown, widths) - width):
        candidates = [at for at in shown if columns[at].shortened and widths[at] > _LEAST_WIDTH]
        if not candidates:
            break
        widths[max(candidates, key=lambda at: widths[at])] -= 1
    return widths


def _total(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[at] for at in shown) + len(_GAP) * (len(shown) - 1)


def _line(columns: Sequence[Column], shown: Sequence[int], widths: Sequence[int], texts: Sequence[str]) -> str:
    cells = []
    for at in shown:
        text = middle_left_out(texts[at], widths[at])
        cells.append(text.rjust(widths[at]) if columns[at].right else text.ljust(widths[at]))
    return _GAP.join(cells).rstrip()


def middle_left_out(text: str, width: int) -> str:
    """The text in at most so many places: begin and end of a name tell most."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    tail = width - 1 - head
    return text[:head] + "…" + text[len(text) - tail :]


def labelled(label: str, text: str, width: int, label_width: int = 10) -> list[str]:
    """``label  text``; text that is wider than the terminal continues below itself."""
    indent = " " * label_width
    if not width:
        return [f"{label:<{label_width}}{text}".rstrip()]
    lines = textwrap.wrap(text, max(20, width - label_width), break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label:<{label_width}}{lines[0]}".rstrip(), *(indent + line for line in lines[1:])]


def percent(part: float, whole: float) -> str:
    """``100%`` only if nothing is missing, ``0%`` only if nothing is there."""
    if whole <= 0 or part >= whole:
        return "100%"
    if part <= 0:
        return "0%"
    share = 100 * part / whole
    if share < 0.1:
        return "<0.1%"
    return f"{min(share, 99.9):.1f}%"


def rate(bytes_per_s: float) -> str:
    """Such as ``312.0 MiB/s``."""
    return f"{human_size(int(bytes_per_s))}/s"


def duration(seconds: float, most_units: int = 2) -> str:
    """Two units at the most, such as ``3 h 12 min``."""
    rest = int(seconds)
    if rest < 60:
        return f"{rest} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {name}")
        if len(parts) == most_units:
            break
    return " ".join(parts)


def counted(number: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def write(lines: Iterable[str]) -> None:
    """On standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def repaint(lines: Sequence[str]) -> None:
    """In place of what was written before, if standard output is a terminal."""
    if sys.stdout.isatty() and lines:
        lines = [_CLEAR + lines[0], *lines[1:]]
    write(lines)


def write_json(document: Any, *, on_one_line: bool = False) -> None:
    """On standard output."""
    write([json.dumps(document, indent=None if on_one_line else 2)])


class ProgressLine:
    """A line on standard error that replaces itself; nothing where that is no terminal."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown and sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
