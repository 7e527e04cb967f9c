"""Reads the data files of an inventory as pages of a listing: of Parquet, ORC and CSV, batch after batch.

The columns are those of S3 Inventory, which has one spelling of their names for CSV (``LastModifiedDate``) and another
for ORC and Parquet (``last_modified_date``, ``e_tag``): compared without underscores and case. A list of the user's own
has ``key`` and ``size``, and may have the others.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.inventory_files import Inventory, InventoryFile
from csi_driver.catalog.plain_batches import ColumnPage
from csi_driver.model.entity_tags import plain_etag
from csi_driver.model.errors import HayloftError, InventoryUnusable
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectPage

BATCH_ROWS = 65_536
"""Rows that become columns of the manifest together; where one is odd, Python objects: 20 MB."""
_BLOCK_BYTES = 4 << 20
"""Of a CSV file, read at a time; no row may be longer."""
_LONGEST_HEADER = 1 << 16

_ALIASES = {"lastmodifieddate": "lastmodified", "versionid": "versionid", "etag": "etag"}
_USED = (
    *("bucket", "key", "size", "lastmodified", "etag", "islatest", "isdeletemarker", "storageclass"),
    "intelligenttieringaccesstier",
)
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_ARCHIVE_TIERS = ("ARCHIVE", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "DEEP_ARCHIVE_ACCESS")
"""Of INTELLIGENT_TIERING: as in inventories, and as in the API. ARCHIVE_INSTANT_ACCESS is read at once."""
_GZIP = b"\x1f\x8b"

Columns = Mapping[str, Any]
"""Arrays of one batch, by the names in ``_USED``."""


def pages_of(
    inventory: Inventory, file: InventoryFile, content: BinaryIO, prefix: str
) -> Iterator[ColumnPage | ObjectPage]:
    """The objects with the prefix, in the order of the file. Of versions the latest, and no delete marker. ``content``
    is a file on this machine. Raises InventoryUnusable, which names the file, and MemoryError."""
    read = _READERS[inventory.file_format]
    batches = read(inventory, file, content)
    while True:
        try:
            batch = next(batches, None)
            page = None if batch is None else _page(inventory, file, batch, prefix)
        except (HayloftError, MemoryError):
            raise
        except (pa.ArrowException, OSError, EOFError, ValueError, LookupError, TypeError, csv.Error) as error:
            # The file is complete and on this machine: an OSError is Arrow's for a file that it cannot parse.
            raise InventoryUnusable(
                f"inventory: {file.key!r} cannot be read as {inventory.file_format} ({type(error).__name__}); "
                "is it damaged, or in another format than its manifest or name says?"
            ) from error
        if page is None:
            return
        if len(page):
            yield page


# -- formats ----------------------------------------------------------------------------------------------------------


def _parquet(inventory: Inventory, file: InventoryFile, content: BinaryIO) -> Iterator[Columns]:
    import pyarrow.parquet as pq  # 20 ms, and of use here alone

    opened = pq.ParquetFile(_mapped(content))
    names = _wanted(inventory, file, opened.schema_arrow.names)
    for batch in opened.iter_batches(BATCH_ROWS, columns=list(names.values()), use_threads=False):
        yield {name: batch.column(column) for name, column in names.items()}


def _orc(inventory: Inventory, file: InventoryFile, content: BinaryIO) -> Iterator[Columns]:
    from pyarrow import orc

    opened = orc.ORCFile(_mapped(content))
    names = _wanted(inventory, file, opened.schema.names)
    for stripe in range(opened.nstripes):
        rows = opened.read_stripe(stripe, columns=list(names.values()))
        for start in range(0, rows.num_rows, BATCH_ROWS):
            piece = rows.slice(start, BATCH_ROWS)
            yield {name: piece.column(column) for name, column in names.items()}


def _mapped(content: BinaryIO) -> Any:
    return pa.memory_map(f"/proc/self/fd/{content.fileno()}")


def _csv(inventory: Inventory, file: InventoryFile, content: BinaryIO) -> Iterator[Columns]:
    from pyarrow import csv as arrow_csv

    content.seek(0)
    zipped = content.read(2) == _GZIP
    content.seek(0)
    header = inventory.column_names
    if header is None:
        header = _header(file, gzip.GzipFile(fileobj=content) if zipped else content)
        content.seek(0)
    names = _wanted(inventory, file, header)
    stream = pa.PythonFile(content, "r")
    reader = arrow_csv.open_csv(
        pa.CompressedInputStream(stream, "gzip") if zipped else stream,
        arrow_csv.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            column_names=list(header),
            skip_rows=0 if inventory.column_names is not None else 1,
        ),
        # The keys of S3 Inventory are encoded, and hold no line break; those of others may, within quotes.
        arrow_csv.ParseOptions(newlines_in_values=not inventory.is_of_s3),
        arrow_csv.ConvertOptions(
            check_utf8=False,
            column_types={column: pa.binary() for column in header},
            include_columns=list(names.values()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    for batch in reader:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            piece = batch.slice(start, BATCH_ROWS)
            yield {name: piece.column(column) for name, column in names.items()}


def _header(file: InventoryFile, content: Any) -> list[str]:
    """The names in the first line of a CSV file."""
    line = content.readline(_LONGEST_HEADER)
    text = io.StringIO(line.decode("utf-8-sig", "replace"), newline="")
    names = [name.strip() for name in next(csv.reader(text), [])]
    if len(set(names)) != len(names):
        raise InventoryUnusable(f"inventory: the first line of {file.key!r} names a column twice")
    return names


_READERS: Mapping[str, Callable[[Inventory, InventoryFile, BinaryIO], Iterator[Columns]]] = {
    "Parquet": _parquet,
    "ORC": _orc,
    "CSV": _csv,
}


def _wanted(inventory: Inventory, file: InventoryFile, names: Sequence[str]) -> dict[str, str]:
    """The columns that are used, and their names in the file. Raises InventoryUnusable."""
    found: dict[str, str] = {}
    for name in names:
        plain = name.replace("_", "").replace(" ", "").lower()
        plain = _ALIASES.get(plain, plain)
        if plain in _USED:
            found.setdefault(plain, name)
    required = ("bucket", "key", "size") if inventory.is_of_s3 else ("key", "size")
    missing = [name for name in required if name not in found]
    if missing:
        shown = ", ".join(name[:40] for name in names[:20]) or "none"
        remedy = "add the field Size to the inventory's configuration" if inventory.is_of_s3 else "docs/inventory.md"
        raise InventoryUnusable(
            f"inventory: {file.key!r} lacks the columns {', '.join(missing)}; it has {shown!a}; {remedy}"
        )
    if not inventory.is_of_s3:
        found.pop("bucket", None)
    return found


# -- values -----------------------------------------------------------------------------------------------------------


def _page(inventory: Inventory, file: InventoryFile, columns: Columns, prefix: str) -> ColumnPage | ObjectPage:
    rows = _rows_of(inventory, file, columns, prefix)
    if not len(rows["key"]):
        return ObjectPage((), (), (), ())
    sizes = _integers(rows["size"])
    if "lastmodified" in rows:
        times = _times(file, rows["lastmodified"])
    else:
        times = pa.repeat(pa.scalar(TIME_UNKNOWN_NS, pa.int64()), len(sizes))
    archived: list[int] = []
    for name, values in (("storageclass", _ARCHIVES), ("intelligenttieringaccesstier", _ARCHIVE_TIERS)):
        if name in rows:
            mask = pc.is_in(_as_text(rows[name]), value_set=pa.array(values, pa.large_string()))
            archived += pc.indices_nonzero(mask).to_pylist()
    etags = _raw(rows["etag"]) if "etag" in rows else pa.nulls(len(sizes), pa.large_binary())
    # The texts of others may have quotes: where not all are plain texts, each is looked at.
    if not archived and pc.all(pc.match_substring_regex(etags, "^[0-9A-Za-z-]+$")).as_py() is not False:
        return ColumnPage(rows["key"], sizes, etags, times)
    keys, texts = _texts(rows["key"]), _texts(etags)
    named = [keys[row] for row in archived]
    return ObjectPage(keys, sizes.to_pylist(), _etags(texts), times.to_pylist(), archived=named)


def _rows_of(inventory: Inventory, file: InventoryFile, columns: Columns, prefix: str) -> dict[str, Any]:
    """The columns without the rows that are not of the dataset; keys as their bytes."""
    keys = _keys(inventory, columns["key"])
    mask = _kept(columns)
    if "bucket" in columns and len(keys):
        _check_bucket(inventory, file, columns["bucket"])
    below = pc.starts_with(keys, prefix.encode("utf-8", "surrogateescape"))
    mask = below if mask is None else pc.and_(mask, below)
    found = {**columns, "key": keys}
    if pc.all(mask).as_py() is not False:
        return found
    return {name: column.filter(mask) for name, column in found.items()}


def _keys(inventory: Inventory, column: Any) -> Any:
    if column.null_count:
        raise ValueError("a row without a key")
    keys = _raw(column)
    if inventory.file_format != "CSV" or not inventory.is_of_s3:
        return keys
    if not pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        return keys
    decoded = (unquote_plus(key, errors="surrogateescape") for key in _texts(keys))  # a space is a plus
    return pa.array([key.encode("utf-8", "surrogateescape") for key in decoded], pa.large_binary())


def _raw(column: Any) -> Any:
    """The bytes of texts."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_binary())


def _texts(column: Any) -> list[Any]:
    """Bytes that are not UTF-8 become surrogate escapes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        found: list[Any] = _as_text(column).to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        found = [
            None if value is None else value.decode("utf-8", "surrogateescape")
            for value in column.cast(pa.large_binary()).to_pylist()
        ]
    return found


def _as_text(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string())


def _kept(columns: Columns) -> Any:
    """Which rows are of the latest version, and no delete markers; None: all."""
    mask = None
    for name, dropped in (("islatest", False), ("isdeletemarker", True)):
        if name not in columns:
            continue
        column = columns[name]
        if not pa.types.is_boolean(column.type):
            column = pc.equal(pc.utf8_lower(_as_text(column)), "true")
        kept = pc.fill_null(pc.not_equal(column, dropped), True)
        mask = kept if mask is None else pc.and_(mask, kept)
    return mask


def _check_bucket(inventory: Inventory, file: InventoryFile, column: Any) -> None:
    texts = _as_text(column)
    same = pc.equal(texts, inventory.source_bucket)
    if pc.all(pc.fill_null(same, False)).as_py():
        return
    other = texts[pc.index(pc.fill_null(same, False), False).as_py()].as_py()
    raise InventoryUnusable(
        f"inventory: {file.key!r} lists objects of bucket {other!a}, and the manifest says "
        f"{inventory.source_bucket!r}; name an inventory of the volume's bucket"
    )


def _integers(column: Any) -> Any:
    """``SIZE_UNKNOWN`` for none: such an object is reported, and not shown."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = _as_text(column)
    return _one_array(pc.fill_null(column.cast(pa.int64()), SIZE_UNKNOWN))


def _etags(texts: Sequence[str | None]) -> list[str | None]:
    """Of S3 Inventory without quotes; lists of others may have them."""
    if all(text is None or (text.isascii() and text.isalnum()) for text in texts):
        return list(texts)
    return [plain_etag(text) for text in texts]


def _times(file: InventoryFile, column: Any) -> Any:
    """From timestamps, or texts as 2026-11-28T01:00:00.000Z."""
    if pa.types.is_timestamp(column.type):
        stamps = column
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        _refuse_times(file, column.type)
    else:
        texts = _as_text(column)
        zoned = pc.any(pc.match_substring_regex(texts, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
        stamps = texts.cast(pa.timestamp("us", "UTC") if zoned else pa.timestamp("us"))
    nanoseconds = stamps.cast(pa.timestamp("ns", stamps.type.tz)).cast(pa.int64())
    return _one_array(pc.fill_null(nanoseconds, TIME_UNKNOWN_NS))


def _one_array(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _refuse_times(file: InventoryFile, kind: Any) -> NoReturn:
    raise InventoryUnusable(
        f"inventory: last_modified in {file.key!r} is {kind}; allowed: timestamps, or texts as 2026-11-28T01:00:00Z"
    )
