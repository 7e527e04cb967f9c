"""``results.parquet``: the one file of a run, written and read back.

One row per measurement; the rest (machine, versions, settings, sizes, notes) is JSON in the metadata of the file,
under the key ``hayloft_bench``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hayloft_bench.errors import ResultsError
from hayloft_bench.results.decoding import decode
from hayloft_bench.results.model import SCHEMA_VERSION, Results
from hayloft_bench.results.schema import parquet_schema

NAME = "results.parquet"
METADATA_KEY = b"hayloft_bench"
_COMPRESSION_LEVEL = 19


def write(results: Results, directory: Path) -> Path:
    """Replaces the file in one step; makes the directory. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    document = to_document(results)
    rows = document.pop("measurements")
    around = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    table = pa.Table.from_pylist(rows, schema=parquet_schema())
    # Nine tenths of the file are quantiles of latencies: doubles of similar magnitude, all different. Split by byte
    # position and without a dictionary they compress to three quarters.
    encoding = {
        "compression": "zstd",
        "compression_level": _COMPRESSION_LEVEL,
        "use_dictionary": [field.name for field in table.schema if pa.types.is_string(field.type)],
        "column_encoding": {"sample_latencies_s.list.element": "BYTE_STREAM_SPLIT"},
        "write_statistics": False,  # of one row group, which is read as a whole: 2 to 4 kB for nothing
    }
    with _replacing(directory / NAME) as path, pq.ParquetWriter(path, table.schema, **encoding) as writer:
        writer.write_table(table)
        # Metadata of the schema would be in the file twice, the second time in base64.
        writer.add_key_value_metadata({METADATA_KEY: around})
    return directory / NAME


def read(path: Path) -> Results:
    """From a file, or from ``results.parquet`` in a directory. Raises ResultsError."""
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(f"{path}: holds no {NAME}" if path.is_dir() else f"{path}: no such file or directory")
    try:
        with pq.ParquetFile(file) as opened:
            around = (opened.metadata.metadata or {}).get(METADATA_KEY)
            table = opened.read()
    except (OSError, ValueError) as error:  # pyarrow's errors about content are ValueErrors
        raise ResultsError(f"{file}: cannot be read: {error}") from error
    document = json.loads(around) if around else None
    if not isinstance(document, dict):
        raise ResultsError(f"{file}: these are no results of hayloft bench")
    return from_document({**document, "measurements": table.to_pylist()}, str(file))


def from_document(document: object, where: str) -> Results:
    """From what ``to_document`` gives, checked field by field. ``where`` begins every error. Raises ResultsError."""
    if not isinstance(document, dict) or "schema" not in document or "measurements" not in document:
        raise ResultsError(f"{where}: these are no results of hayloft bench")
    if document["schema"] != SCHEMA_VERSION:
        raise ResultsError(
            f"{where}: schema {document['schema']!r}; this version of hayloft bench reads schema {SCHEMA_VERSION}"
        )
    results = decode(Results, document, where)
    for index, row in enumerate(results.measurements):
        if row.schema != SCHEMA_VERSION:
            raise ResultsError(f"{where}.measurements[{index}].schema: {row.schema}, not {SCHEMA_VERSION}")
    return results


def to_document(results: Results) -> dict[str, Any]:
    """The results as JSON has them; figures that are no numbers become null."""
    document: dict[str, Any] = _finite(asdict(results))
    return document


def _finite(value: Any) -> Any:
    """JSON has no infinity: a rate over a time of 0 becomes null, as if it was not measured."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside the wanted one, renamed to it when it is complete."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
