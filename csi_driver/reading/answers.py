"""Answers to several waiters: each gets its own, whatever happens in that of another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def answer_each(waiting: Iterable[T], answer: Callable[[T], None]) -> None:
    """Calls ``answer`` with each. Raises nothing."""
    for one in waiting:
        try:
            answer(one)
        except BaseException:  # whatever it is, the others still wait
            logger.exception("unexpected error in the answer to a reader; the answers to others are not affected")
