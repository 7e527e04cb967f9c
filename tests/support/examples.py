"""How many examples hypothesis draws: all, or a quarter in the inner loop (``make check`` sets ``HAYLOFT_QUICK=1``)."""

from __future__ import annotations

import os

from hypothesis import settings

QUICK = os.environ.get("HAYLOFT_QUICK") == "1"


def examples(count: int) -> settings:
    """``count`` examples without a deadline; in the inner loop a quarter of them."""
    return settings(max_examples=count // 4 if QUICK else count, deadline=None)
