"""Names of objects as text. They are bytes, and made by strangers."""

from __future__ import annotations


def visible(name: bytes) -> str:
    """Control characters and bytes that are not UTF-8 escaped: no name controls the terminal."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
