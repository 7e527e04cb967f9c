"""ETags as RFC 9110 compares them. A strong one names one content; a weak one, ``W/"x"``, may stay when bytes change.

Here they have no quotes: ``x`` for ``"x"``, ``W/x`` for ``W/"x"``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

MOST_CHARACTERS = 1024
_WEAK = "W/"
_USABLE = re.compile(rf"[ !#-~]{{1,{MOST_CHARACTERS}}}")
"""What can be sent back in a header; without quotes inside, which no list of ETags could hold."""

_REGULAR_PAGE = re.compile(rf"(?:&quot;[0-9A-Za-z-]{{0,{MOST_CHARACTERS}}}&quot;\n)*+")


def plain_etag(text: str | None) -> str | None:
    """From the text of a header or a listing. None if it has none that can be sent back: it identifies nothing."""
    text = (text or "").strip()
    weak = text[:2] in ("W/", "w/")
    opaque = text[2:] if weak else text
    if len(opaque) > 1 and opaque[0] == opaque[-1] == '"':
        opaque = opaque[1:-1]
    if not _USABLE.fullmatch(opaque):
        return None
    return _WEAK + opaque if weak else opaque


def plain_etags_of_xml(texts: Sequence[str]) -> list[str | None]:
    """As ``plain_etag``, for texts with XML's entities. A page of digests takes a few passes in C."""
    joined = "\n".join((*texts, ""))
    if _REGULAR_PAGE.fullmatch(joined):
        return [text or None for text in joined.replace("&quot;", "").split("\n")[:-1]]
    return [plain_etag(html.unescape(text)) for text in texts]


def is_strong(etag: str | None) -> bool:
    """Whether the ETag names one content."""
    return etag is not None and etag != "" and etag[:2] != _WEAK


def if_match_header(etag: str | None) -> str | None:
    """The value of If-Match; None for no condition. It compares strongly, so a weak ETag matches nothing, not even
    itself."""
    return f'"{etag}"' if is_strong(etag) else None


def weakened(etag: str) -> str:
    """The weak form of an ETag."""
    return _WEAK + _opaque(etag)


def satisfies(answered: str | None, if_match: str) -> bool:
    """Whether an answer with this ETag is of the version that was requested: by the strong comparison, and for a weak
    one, which could not be a condition of the request, by the weak one."""
    return answered == if_match if is_strong(if_match) else weakly_equal(answered, if_match)


def weakly_equal(one: str | None, other: str | None) -> bool:
    """The weak comparison: the same text, whether one of them is weak or not. No ETag is equal to none."""
    return bool(one) and bool(other) and _opaque(one) == _opaque(other)


def _opaque(etag: str | None) -> str:
    return (etag or "").removeprefix(_WEAK)
