"""Inventories as S3 writes them: Parquet, ORC and CSV in a bucket, with their manifest."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import orc

CREATED_MS = 1_795_000_000_000
"""2026-11-18T11:06Z."""
FOLDER = "lists/bucket/daily/"
MANIFEST = f"{FOLDER}2026-11-18T11-06Z/manifest.json"

_CSV_NAMES = {
    "bucket": "Bucket",
    "key": "Key",
    "version_id": "VersionId",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
    "size": "Size",
    "last_modified_date": "LastModifiedDate",
    "e_tag": "ETag",
    "storage_class": "StorageClass",
}
_TYPES = {
    "is_latest": pa.bool_(),
    "is_delete_marker": pa.bool_(),
    "size": pa.int64(),
    "last_modified_date": pa.timestamp("ms", "UTC"),
}


class Row(NamedTuple):
    """One version of an object."""

    key: str
    size: int | None = 3
    e_tag: str | None = "0" * 32
    last_modified_ms: int = 1_700_000_000_000
    storage_class: str = "STANDARD"
    is_latest: bool = True
    is_delete_marker: bool = False
    bucket: str = "bucket"
    version_id: str = "v1"

    def values(self) -> dict[str, Any]:
        values = self._asdict()
        return {**values, "last_modified_date": values.pop("last_modified_ms")}


def table_of(rows: Sequence[Row], columns: Sequence[str] = tuple(_CSV_NAMES)) -> pa.Table:
    values = [row.values() for row in rows]
    return pa.table(
        {name: pa.array([each[name] for each in values], _TYPES.get(name, pa.string())) for name in columns}
    )


def parquet_of(rows: Sequence[Row], columns: Sequence[str] = tuple(_CSV_NAMES)) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table_of(rows, columns), sink, compression="snappy")
    return sink.getvalue()


def orc_of(rows: Sequence[Row], columns: Sequence[str] = tuple(_CSV_NAMES)) -> bytes:
    sink = io.BytesIO()
    orc.write_table(table_of(rows, columns), sink)
    return sink.getvalue()


def csv_of(rows: Sequence[Row], columns: Sequence[str] = tuple(_CSV_NAMES)) -> bytes:
    """Every field is quoted, keys are encoded, there is no header."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for row in rows:
        writer.writerow([_csv_field(name, row.values()[name]) for name in columns])
    return gzip.compress(text.getvalue().encode())


def _csv_field(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "key":
        return quote_plus(value, safe="/", errors="surrogateescape")
    if name == "last_modified_date":
        return pa.scalar(value, pa.timestamp("ms")).as_py().isoformat(timespec="milliseconds") + "Z"
    return str(value).lower() if isinstance(value, bool) else str(value)


_WRITERS = {"Parquet": (parquet_of, ".parquet"), "ORC": (orc_of, ".orc"), "CSV": (csv_of, ".csv.gz")}
FORMATS = tuple(_WRITERS)


def inventory_of(
    form: str,
    *files: Sequence[Row],
    columns: Sequence[str] = tuple(_CSV_NAMES),
    bucket: str = "bucket",
    folder: str = FOLDER,
    manifest: str = MANIFEST,
    changed: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The objects of an inventory, by key; ``changed``: fields of the manifest."""
    write, ending = _WRITERS[form]
    objects = {f"{folder}data/part-{number}{ending}": write(rows, columns) for number, rows in enumerate(files)}
    schema = ", ".join(_CSV_NAMES[name] for name in columns) if form == "CSV" else "message s3.inventory { … }"
    fields = {
        "sourceBucket": bucket,
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": str(CREATED_MS),
        "fileFormat": form,
        "fileSchema": schema,
        "files": [
            {"key": key, "size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()}  # noqa: S324
            for key, content in objects.items()
        ],
        **(changed or {}),
    }
    text = json.dumps(fields).encode()
    checksum = hashlib.md5(text).hexdigest().encode()  # noqa: S324
    return {**objects, manifest: text, f"{manifest.removesuffix('json')}checksum": checksum + b"\n"}
