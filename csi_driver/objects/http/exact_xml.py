"""Reads XML whose texts must be exact: keys of objects.

XML 1.0 has no form for most control characters, and parsers make one newline of each carriage return. Stores have keys
with both. Some write such characters as they are, or as references that the standard forbids (``&#x1;``): a parser
refuses such a document, whose other keys are in order. So they are replaced before parsing, and put back afterwards.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Around the number of a character that was replaced. Where a text holds them, they are replaced themselves."""
_REPLACED = re.compile(
    "[\x00-\x08\x0b-\x1f\ud800-\udfff\ue000\ue001\ufffe\uffff]|&#(?:x([0-9A-Fa-f]{1,6})|([0-9]{1,7}));"
)
_CONTROL = bytes({*range(0x20)} - {*b"\t\n"})
_SEQUENCES = (b"&#", b"\xee\x80", b"\xef\xbb", b"\xef\xbf")
"""The beginnings of the other texts that ``_REPLACED`` matches, and of a byte order mark."""
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_REFERENCE = re.compile(f"&(?:#x([0-9A-Fa-f]{{1,6}})|#([0-9]{{1,7}})|({'|'.join(_NAMED)}));")
_NUMBER = re.compile(f"{_OPEN}([0-9a-f]+){_CLOSE}")


def parse_exact(body: bytes) -> ElementTree.Element:
    """The root of the document; its texts are to be read by ``exact_text``. Bytes that are not UTF-8 become surrogate
    escapes. Raises ElementTree.ParseError."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("utf-8", "surrogateescape")
    else:
        if not _may_need_replacement(body):
            return ElementTree.fromstring(text)  # noqa: S314 - expat refuses entity bombs, and nothing is loaded
    # As text, so that a declared encoding is of no importance: stores declare UTF-8, and send nothing else.
    return ElementTree.fromstring(_REPLACED.sub(_replacement, text.removeprefix("\ufeff")))  # noqa: S314 - as above


def _may_need_replacement(body: bytes) -> bool:
    """For UTF-8. Ten times as fast as a search by ``_REPLACED``, and almost no page needs more."""
    if len(body.translate(None, _CONTROL)) != len(body):
        return True
    return any(sequence in body for sequence in _SEQUENCES)


def exact_text(text: str | None) -> str:
    """The characters that the store meant; empty for None."""
    if not text:
        return ""
    return _NUMBER.sub(lambda found: chr(int(found[1], 16)), text) if _OPEN in text else text


def unescaped(text: str) -> str:
    """The characters that the text of an element stands for, as it is written in the document. HTML has more names, and
    maps some numbers to other characters."""
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(found: re.Match[str]) -> str:
    if found[3]:
        return _NAMED[found[3]]
    number = int(found[1], 16) if found[1] else int(found[2])
    return chr(number) if number <= 0x10FFFF else found[0]


def _replacement(found: re.Match[str]) -> str:
    number = int(found[1], 16) if found[1] else int(found[2]) if found[2] else ord(found[0])
    return f"{_OPEN}{number:x}{_CLOSE}" if number <= 0x10FFFF else found[0]
