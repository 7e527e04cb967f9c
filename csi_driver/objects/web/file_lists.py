"""Reads lists of files, as public datasets are published with: the parameter ``manifest``.

| form | told by its first line |
|---|---|
| JSON | begins with ``{`` (an object in each line) or ``[`` (one list) |
| sums of ``sha256sum``, ``md5sum`` and the like, GNU's form or BSD's | is one |
| TSV of Google's Storage Transfer Service | ``TsvHttpData-1.0`` |
| TSV or CSV | names one of the columns below, or is a path with a size, a checksum or both behind it |
| one path or URL in a line | else |

Any of them may be compressed by gzip, and begin with comments: lines of ``#`` and a space.
"""

from __future__ import annotations

import base64
import binascii
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from csi_driver.model.errors import BudgetExceeded, InvalidParameter
from csi_driver.objects.web.index_pages import size_of
from csi_driver.objects.web.web_versions import checksum_version

FIELD = "manifest"
MOST_BYTES = 1 << 30
"""Of a list, also after decompression: ten million files at 100 bytes each."""

_PLACES = ("url", "uri", "href", "link", "path", "filepath", "file", "filename", "key", "name")
_SIZES = ("size", "sizebytes", "filesize", "bytes", "length", "contentlength")
_SUMS = ("sha256", "sha512", "sha1", "md5", "checksum", "hash", "digest", "sha256sum", "md5sum")
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]{32,128}) [ *](.+)\Z", re.DOTALL)
_BSD = re.compile(r"(\\?)(?:MD5|SHA[0-9-]+) \((.+)\) = ([0-9A-Fa-f]{32,128})\Z", re.DOTALL)
_HEX = re.compile(r"(?:[a-z0-9-]+[:= ])?([0-9a-f]{32,128})\Z", re.IGNORECASE)
_ESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_COMMENT = re.compile(r"#+\s|#*\s*\Z")
_GOOGLE = "TsvHttpData-1.0"
_HEADER_CHARACTERS = 64 << 10


class ListedFile(NamedTuple):
    """One file of a list."""

    place: str
    """A URL, or a path."""
    size_bytes: int | None = None
    version: str | None = None
    """By its checksum (``web_versions.py``)."""


def parse_list(body: bytes) -> Iterator[ListedFile]:
    """Raises InvalidParameter, which names the line; BudgetExceeded."""
    lines = _lines(_decompressed(body))
    first = next((line for line in lines if _columns(line) or not _COMMENT.match(line)), "")
    rest = _prepended(first, lines)
    if first.startswith("["):
        yield from _from_objects(_rows_of_json("".join(rest)))
    elif first.startswith("{"):
        yield from _from_objects((number, _json(line, number)) for number, line in _numbered(rest))
    elif _GNU.match(first) or _BSD.match(first):
        yield from _from_sums(rest)
    elif first.strip() == _GOOGLE:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from _from_columns(rows, ["url", "size", "md5"], 2)
    else:
        yield from _from_table_or_lines(first, lines)


def _decompressed(body: bytes) -> bytes:
    if not body.startswith(b"\x1f\x8b"):
        return body
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(body)).read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise InvalidParameter(FIELD, "the file", "a list of files that gzip can decompress") from None
    if len(content) > MOST_BYTES:
        raise BudgetExceeded(f"{FIELD}: the list of files has more than {MOST_BYTES} bytes, the most that is read")
    return content


def _lines(body: bytes) -> Iterator[str]:
    for line in io.BytesIO(body.removeprefix(b"\xef\xbb\xbf")):
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _prepended(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Without blank ones."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


# -- JSON -------------------------------------------------------------------------------------------------------------


def _json(text: str, number: int) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise _unreadable(number, text, "a JSON object in each line, or one JSON list") from None


def _rows_of_json(text: str) -> Iterator[tuple[int, Any]]:
    return enumerate(_json(text, 1), start=1)


def _from_objects(rows: Iterable[tuple[int, Any]]) -> Iterator[ListedFile]:
    for number, row in rows:
        if isinstance(row, str):
            yield ListedFile(row)
            continue
        if not isinstance(row, dict):
            raise _unreadable(number, str(row), "a JSON object or text for each file")
        yield _listed(number, {_plain(name): value for name, value in row.items()})


# -- sums -------------------------------------------------------------------------------------------------------------


def _from_sums(lines: Iterable[str]) -> Iterator[ListedFile]:
    for number, line in _numbered(lines):
        gnu, bsd = _GNU.match(line), _BSD.match(line)
        if gnu is not None:
            escaped, digest, path = gnu.groups()
        elif bsd is not None:
            escaped, path, digest = bsd.groups()
        elif line.startswith("#"):
            continue
        else:
            raise _unreadable(number, line, "a checksum, two spaces and a path in each line")
        if escaped:
            path = re.sub(r"\\[\\nr]", lambda found: _ESCAPED[found[0]], path)
        yield ListedFile(path, None, checksum_version(digest))


# -- tables and lines -------------------------------------------------------------------------------------------------


def _from_table_or_lines(first: str, rest: Iterator[str]) -> Iterator[ListedFile]:
    columns = _columns(first)
    if columns is not None:
        delimiter, names, has_header = columns
        lines = rest if has_header else _prepended(first, rest)
        # With its line breaks: a quoted value may hold one.
        rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter)
        yield from _from_columns(rows, names, 2 if has_header else 1)
        return
    if "\t" in first:
        raise _unreadable(1, first, f"a first line that names the columns, with one of {', '.join(_PLACES)}")
    for _, line in _numbered(_prepended(first, rest)):
        yield ListedFile(line)


def _columns(first: str) -> tuple[str, list[str], bool] | None:
    """Delimiter and names of the columns, and whether the line is a header. None: it begins no table."""
    for delimiter in "\t,":
        cells = first[:_HEADER_CHARACTERS].split(delimiter)
        names = [_plain(cell) for cell in cells]
        if any(name in _PLACES for name in names):
            return delimiter, names, True
        kinds = ["size" if size_of(cell) is not None else "checksum" if _HEX.match(cell) else "" for cell in cells]
        if len(cells) > 1 and all(kinds[1:]) and not kinds[0]:
            return delimiter, ["path", *kinds[1:]], False
    return None


def _from_columns(rows: Iterator[list[str]], names: list[str], first_number: int) -> Iterator[ListedFile]:
    number = first_number
    try:
        for number, row in enumerate(rows, start=first_number):
            if row:
                yield _listed(number, dict(zip(names, row, strict=False)))
    except csv.Error:
        raise _unreadable(number, "", "a table that can be read, with values of up to 128 KiB") from None


# -- values -----------------------------------------------------------------------------------------------------------


def _listed(number: int, row: Mapping[str, Any]) -> ListedFile:
    place = next((row[name] for name in _PLACES if row.get(name)), None)
    if not isinstance(place, str):
        raise _unreadable(number, "", f"a path or URL for each file, as one of {', '.join(_PLACES)}")
    size = next((row[name] for name in _SIZES if row.get(name) is not None), None)
    versions = (_version(row[name]) for name in _SUMS if row.get(name))
    return ListedFile(place, size_of(size), next(filter(None, versions), None))


def _version(text: Any) -> str | None:
    """Of a checksum in hexadecimal digits, also behind the name of its algorithm, or of an MD5 in base64."""
    found = _HEX.match(str(text).strip())
    if found is not None:
        return checksum_version(found[1])
    try:
        value = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        return None
    return checksum_version(value.hex()) if len(value) == 16 else None


def _plain(name: object) -> str:
    return "".join(filter(str.isalnum, str(name))).lower()


def _unreadable(number: int, line: str, allowed: str) -> InvalidParameter:
    shown = line.partition("?")[0][:200]  # a query may be a signature
    return InvalidParameter(FIELD, f"line {number}: {shown}", allowed)
