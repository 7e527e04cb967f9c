"""How many examples hypothesis draws: all of them, or a quarter.

``make check`` and ``make test`` set ``HAYLOFT_QUICK=1`` and draw a quarter, new ones each time; ``.ci/run`` draws all.
``HAYLOFT_RANDOM_EXAMPLES=10000`` is for long runs of the tests with random volumes and random answers.
"""

from __future__ import annotations

import os

from hypothesis import settings

QUICK = os.environ.get("HAYLOFT_QUICK") == "1"


def drawn(count: int) -> int:
    """So many examples, or a quarter of them."""
    return count // 4 if QUICK else count


def random_examples(count: int) -> int:
    """The same, unless the environment says how many."""
    return int(os.environ.get("HAYLOFT_RANDOM_EXAMPLES") or drawn(count))


def examples(count: int) -> settings:
    """``drawn`` examples without a deadline."""
    return settings(max_examples=drawn(count), deadline=None)
