"""Makes Arrow columns of many objects at a time, where all their keys are paths as they are: a few passes in C, and no
step of Python for each object. Anything odd is left to ``PageCollector``, which looks at one object after the other.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.etags import encode_etags
from csi_driver.catalog.key_names import FOLDER_SUFFIX, NAME_LIMIT_BYTES, PATH_LIMIT_BYTES, all_plain
from csi_driver.model.snapshot import MOST_TIME_NS, ObjectPage

MOST_BYTES = (1 << 63) - 1
"""Of all objects together: stat(2) and the manifest have 64 bits."""
MOST_OBJECT_BYTES = 1 << 60
"""Of one: 5,000 times the largest that a store takes. A size beyond it is none."""

NATURAL = -1
"""In the column ``renamed``: the path is the key. Otherwise the row of the object in the table of renamed keys."""

ROWS = pa.schema(
    [
        ("directory", pa.dictionary(pa.int32(), pa.large_binary())),
        ("name", pa.large_binary()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.large_binary()),
        ("renamed", pa.int32()),
    ]
)

_DOTS = pa.array([b".", b".."], pa.large_binary())
_MD5_DIGITS, _PACKED_MD5_BYTES = 32, 17


@dataclass(frozen=True, slots=True)
class ColumnPage:
    """As ``ObjectPage``, of Arrow arrays without nulls: ``keys`` large_binary, numbers int64; ``etags``: large_binary
    with nulls, their text without quotes."""

    keys: Any
    sizes_bytes: Any
    etags: Any
    mtimes_ns: Any

    def __len__(self) -> int:
        return len(self.keys)

    def as_objects(self) -> ObjectPage:
        """The same with an object of Python for each value."""
        keys: list[str] = _texts(self.keys)
        return ObjectPage(keys, self.sizes_bytes.to_pylist(), _texts(self.etags), self.mtimes_ns.to_pylist())


def _texts(column: Any) -> list[Any]:
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in column.to_pylist()]


def columns_of(pages: Sequence[ObjectPage]) -> ColumnPage | None:
    """All objects of the pages; None if a value cannot be in such a column."""
    try:
        return ColumnPage(
            pa.array(list(chain.from_iterable(page.keys for page in pages)), pa.large_string()).cast(pa.large_binary()),
            pa.array(list(chain.from_iterable(page.sizes_bytes for page in pages)), pa.int64()),
            pa.array(list(chain.from_iterable(page.etags for page in pages)), pa.large_string()).cast(
                pa.large_binary()
            ),
            pa.array(list(chain.from_iterable(page.mtimes_ns for page in pages)), pa.int64()),
        )
    except (pa.ArrowException, UnicodeError, OverflowError):
        return None


def plain_batch(page: ColumnPage, prefix: bytes, most_bytes: int) -> Any:
    """A record batch of ``ROWS``; None unless each object has a key below the prefix that is a path as it is, and a
    size, and all together have at most ``most_bytes``."""
    count = len(page)
    sizes, times = (pc.min_max(column).as_py() for column in (page.sizes_bytes, page.mtimes_ns))
    if not count or sizes["min"] < 0 or sizes["max"] > min(MOST_OBJECT_BYTES, most_bytes // count):
        return None
    if times["min"] < -MOST_TIME_NS:  # the other bound is that of the column
        return None
    split = pc.split_pattern(page.keys, b"/", max_splits=1, reverse=True)
    parts = pc.min_max(pc.list_value_length(split)).as_py()
    if parts["min"] != parts["max"]:
        return None
    if parts["min"] == 2:
        coded, names = pc.list_element(split, 0).dictionary_encode(), pc.list_element(split, 1)
        below = _below(coded.dictionary.to_pylist(), prefix)
    else:  # in the root of the bucket
        names, below = page.keys, None if prefix else [b""]
        coded = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([b""]))
    if below is None or not _plain_names(names):
        return None
    directories = pa.DictionaryArray.from_arrays(coded.indices, pa.array(below, pa.large_binary()))
    renamed = pa.repeat(pa.scalar(NATURAL, pa.int32()), count)
    columns = [directories, names, page.sizes_bytes, page.mtimes_ns, encoded_etags(page.etags), renamed]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)


def _below(directories: Sequence[bytes], prefix: bytes) -> list[bytes] | None:
    """The paths of the directories below the prefix; None if one is not below it, or no plain path."""
    below = []
    for directory in directories:
        complete = directory + b"/"
        path = complete[len(prefix) : -1]
        # Empty is the root alone: in "p//a" below "p/", and in "/a", a part is empty.
        if not complete.startswith(prefix) or (not path and complete != prefix):
            return None
        below.append(path)
    paths = [path for path in below if path]
    if paths and not all_plain(paths):
        return None
    return below if max(map(len, below)) + 1 + NAME_LIMIT_BYTES <= PATH_LIMIT_BYTES else None


def _plain_names(names: Any) -> bool:
    lengths = pc.min_max(pc.binary_length(names)).as_py()
    if lengths["min"] < 1 or lengths["max"] > NAME_LIMIT_BYTES:
        return False
    if lengths["min"] <= 2 and pc.any(pc.is_in(names, value_set=_DOTS)).as_py():
        return False
    characters = _data_of(names)
    return b"\0" not in characters and FOLDER_SUFFIX not in characters


def encoded_etags(etags: Any) -> Any:
    """As ``encode_etags``, of columns."""
    if not etags.null_count:
        lengths = pc.min_max(pc.binary_length(etags)).as_py()
        if lengths["min"] == lengths["max"] == _MD5_DIGITS and (packed := _packed_md5s(_data_of(etags))) is not None:
            buffers = [None, _offsets(len(etags)), pa.py_buffer(packed)]
            return pa.Array.from_buffers(pa.large_binary(), len(etags), buffers)
    return pa.array(encode_etags(_texts(etags)), pa.large_binary())


def _packed_md5s(digits: bytes) -> bytearray | None:
    """17 bytes for each 32 digits: 0, and the MD5. None if some are no lower-case digits."""
    try:
        md5s = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return None
    if md5s.hex().encode() != digits:
        return None
    packed = bytearray(len(md5s) // 16 * _PACKED_MD5_BYTES)
    for place in range(16):
        packed[place + 1 :: _PACKED_MD5_BYTES] = md5s[place::16]
    return packed


@lru_cache(maxsize=2)
def _offsets(count: int) -> Any:
    return pa.py_buffer(array("q", range(0, (count + 1) * _PACKED_MD5_BYTES, _PACKED_MD5_BYTES)))


def _data_of(column: Any) -> bytes:
    """The bytes of all values of a large_binary column without nulls, one after the other."""
    _, offsets, data = column.buffers()
    if data is None:
        return b""
    ends = memoryview(offsets).cast("q")
    first, stop = ends[column.offset], ends[column.offset + len(column)]
    characters: bytes = data.slice(first, stop - first).to_pybytes()
    return characters
