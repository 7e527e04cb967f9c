"""Errors as text, by their structure. What an exception says is shown only if Hayloft composed it.

The texts of other exceptions may hold anything that was passed to a library: a request's URL with its signature, the
secret that could not be decoded. No search for known secrets finds all of their spellings, so such a text is shown
nowhere: not in a log, not in a status, not in a message of Hayloft's own. Class, place and error number say what
happened. Standard library only: `hayloft keeper` loads this module.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator

from csi_driver.model.errors import HayloftError, InternalFailure

_MOST_FRAMES = 60
"""Of one exception, the innermost ones: an endless recursion has a thousand."""

_DEEPEST = 20
"""Causes of causes, and groups in groups."""


def summary(error: BaseException) -> str:
    """In one line: the message of an error of Hayloft, the number of one of the system, else the class alone."""
    if isinstance(error, HayloftError):
        return f"{type(error).__name__}: {error}"
    return f"{_class_name(error)}{_number(error)}"


def unexpected(error: BaseException) -> HayloftError:
    """The error that is reported in the place of any other: itself if it is one of Hayloft, else InternalFailure."""
    return error if isinstance(error, HayloftError) else InternalFailure(summary(error))


def outline(error: BaseException) -> str:
    """A traceback with classes and frames, without source lines, notes and the texts of other exceptions."""
    return "\n".join(_lines(error, _DEEPEST))


def _class_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _number(error: BaseException) -> str:
    """Taken from the system's tables, since ``strerror`` may be any text."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:
        return f": {os.strerror(number)} ({errno.errorcode[number]})"
    if type(error).__module__ == "sqlite3" and hasattr(error, "sqlite_errorname"):
        return f": {error.sqlite_errorname}"
    return ""


def _lines(error: BaseException, depth: int) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth:
        yield from _lines(cause, depth - 1)
        yield "which caused:" if error.__cause__ is not None else "and while that was handled:"
    frames = list(traceback.walk_tb(error.__traceback__))
    if len(frames) > _MOST_FRAMES:
        yield f"  ({len(frames) - _MOST_FRAMES} more frames)"
    for frame, line_number in frames[-_MOST_FRAMES:]:
        yield f"  {frame.f_code.co_filename}:{line_number} in {frame.f_code.co_qualname}"
    yield summary(error)
    if isinstance(error, BaseExceptionGroup) and depth:
        for number, inner in enumerate(error.exceptions, start=1):
            yield f"  error {number} of the group:"
            yield from ("    " + line for line in _lines(inner, depth - 1))
