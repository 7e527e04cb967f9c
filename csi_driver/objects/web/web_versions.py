"""What tells one version of a web server's object from another, as the ETag of a snapshot.

| the server sends | ETag of the snapshot | pinned by |
|---|---|---|
| ``ETag: "x"`` | ``x`` | If-Match, and the ETag of each answer |
| ``ETag: W/"x"`` | ``W/x`` | the ETag of each answer |
| Last-Modified alone | ``W/last-modified 1700000000`` | If-Unmodified-Since, and the Last-Modified of each answer |
| neither | none | its size only |

Names of headers are in lower case here, or are found in any case.

A list of files may have a checksum of its own, which is ``sha256 <hex>``. An ETag of a server holds no space, so that
none is taken for one of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime

from csi_driver.objects.checksums import Checksum

_MODIFIED = "W/last-modified "
_CHECKSUM = re.compile(r"(md5|sha1|sha256|sha512) ([0-9a-f]+)\Z")
_ETAG = re.compile(r'(W/)?"?([!-~]{1,500}?)"?\Z')
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
_USUAL_DATE = re.compile(
    r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT\Z", re.ASCII
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LAST_S = (1 << 63) // 10**9 - 1
"""Later times are no 64 bits of nanoseconds."""


def checksum_version(hex_digest: str) -> str | None:
    """The version that a checksum names, by its length; None: the algorithm is not supported."""
    algorithm = _ALGORITHMS.get(len(hex_digest))
    return None if algorithm is None else f"{algorithm} {hex_digest.lower()}"


def checksum_of(version: str | None) -> Checksum | None:
    """The checksum that a list of files had."""
    found = _CHECKSUM.match(version or "")
    return None if found is None else Checksum(found[1], bytes.fromhex(found[2]))


def modified_version(seconds: int) -> str:
    """The version of an object without an ETag."""
    return f"{_MODIFIED}{seconds}"


def etag_version(header: str | None) -> str | None:
    """The version that an ETag names, with or without quotes."""
    found = _ETAG.match((header or "").strip())
    return None if found is None or '"' in found[2] else (found[1] or "") + found[2]


def version_of(headers: Mapping[str, str]) -> str | None:
    """The version of an answer; None: nothing pins it."""
    etag = etag_version(headers.get("etag"))
    if etag is not None:
        return etag
    seconds = seconds_of(headers.get("last-modified"))
    return None if seconds is None else modified_version(seconds)


def seconds_of(http_date: str | None) -> int | None:
    """Seconds since 1970 of a date in a header. None: there is none, or none that can be used."""
    try:
        seconds = int(_time_of(http_date or "").timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if 0 <= seconds <= _LAST_S else None


def _time_of(text: str) -> datetime:
    """The form that servers have to send takes a tenth of the time that ``email.utils`` takes for any."""
    usual = _USUAL_DATE.match(text)
    if usual is None or usual[2] not in _MONTHS:
        return parsedate_to_datetime(text)
    day, month, year, hour, minute, second = usual.groups()
    return datetime(int(year), 1 + _MONTHS.index(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)


def condition(version: str | None) -> dict[str, str]:
    """The header that asks for this version alone; a weak ETag matches nothing."""
    if version is None or _CHECKSUM.match(version):
        return {}
    if version.startswith(_MODIFIED):
        return {"If-Unmodified-Since": formatdate(int(version.removeprefix(_MODIFIED)), usegmt=True)}
    return {} if version.startswith("W/") else {"If-Match": f'"{version}"'}


def is_of(version: str | None, headers: Mapping[str, str]) -> bool:
    """Whether an answer is of this version. ETags are compared without ``W/``: a proxy that changes the form of an
    answer makes a strong one weak."""
    if version is None or _CHECKSUM.match(version):
        return True
    if version.startswith(_MODIFIED):
        return seconds_of(headers.get("last-modified")) == int(version.removeprefix(_MODIFIED))
    return is_same(version, etag_version(headers.get("etag")))


def is_same(one: str | None, other: str | None) -> bool:
    """Whether both are known and equal, apart from ``W/``."""
    return one is not None and other is not None and one.removeprefix("W/") == other.removeprefix("W/")


class PinnedAnswers:
    """Versions of objects that a snapshot names by their content or not at all: the first answer pins them, for as long
    as this store is open, so that no read mixes two versions. Safe for any number of threads: each operation is one
    step of a dictionary, and two first answers at the same time differ by a request at most."""

    _MOST = 65_536

    def __init__(self) -> None:
        self._by_key: dict[str, str] = {}

    def pinned(self, key: str, version: str | None) -> str | None:
        """The version that an answer has to have."""
        needs_pin = version is None or checksum_of(version) is not None
        return self._by_key.get(key, version) if needs_pin else version

    def note(self, key: str, version: str | None, headers: Mapping[str, str]) -> None:
        """After an answer that ``pinned`` allowed."""
        if version is None or checksum_of(version) is not None:
            found = version_of(headers)
            if found is not None and len(self._by_key) < self._MOST:
                self._by_key.setdefault(key, found)
