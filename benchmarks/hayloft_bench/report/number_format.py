"""Figures as people read them."""

from __future__ import annotations

import math

NOTHING = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """At least ``digits`` significant digits: 12,345, 98.7, 0.0123; a dash for None."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def seconds(value: float | None) -> str:
    """With the unit that fits: 1.20 s, 3.40 ms, 12.0 µs."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(value) * factor >= 1 or unit == "µs":
            return f"{significant(value * factor)} {unit}"
    return NOTHING


def size(value: float | None) -> str:
    """In decimal units: 264 MB."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {unit}"
    return f"{value:,.0f} B"


def times(value: float | None) -> str:
    """0.98 ×, 12.3 ×, 456 ×."""
    return NOTHING if value is None else f"{value:.2f} ×" if abs(value) < 10 else f"{significant(value)} ×"


def percent(value: float | None) -> str:
    """97 %."""
    return NOTHING if value is None else f"{value * 100:.0f} %"


def listed(names: list[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
