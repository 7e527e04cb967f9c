"""``results.json`` and ``results.parquet``: the same results, written and read back.

JSON holds everything as one object. Parquet holds one row per measurement, and the rest (machine, versions, settings,
sizes) as JSON in the metadata of its schema, under the key ``hayloft_bench``.
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

JSON_NAME, PARQUET_NAME = "results.json", "results.parquet"
METADATA_KEY = b"hayloft_bench"


def write(results: Results, directory: Path) -> list[Path]:
    """Both files, each replaced at once; the directory is made. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    document = _finite(asdict(results))
    with _replacing(directory / JSON_NAME) as path:
        path.write_text(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = document.pop("measurements")
    around = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    with _replacing(directory / PARQUET_NAME) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=parquet_schema({METADATA_KEY: around})), path)
    return [directory / JSON_NAME, directory / PARQUET_NAME]


def read(path: Path) -> Results:
    """From a directory (its JSON, else its Parquet) or one of the two files. Raises ResultsError."""
    if path.is_dir():
        found = next((path / name for name in (JSON_NAME, PARQUET_NAME) if (path / name).is_file()), None)
        if found is None:
            raise ResultsError(f"{path}: holds neither {JSON_NAME} nor {PARQUET_NAME}")
        path = found
    if not path.is_file():
        raise ResultsError(f"{path}: no such file or directory")
    try:
        document = _from_parquet(path) if path.suffix == ".parquet" else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # pyarrow's errors about content are ValueErrors
        raise ResultsError(f"{path}: cannot be read: {error}") from error
    return from_document(document, str(path))


def from_document(document: object, where: str) -> Results:
    """What ``results.json`` holds, checked field by field. ``where`` begins every error. Raises ResultsError."""
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
    """What ``results.json`` holds; figures that are no numbers become null."""
    document: dict[str, Any] = _finite(asdict(results))
    return document


def _from_parquet(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    around = (table.schema.metadata or {}).get(METADATA_KEY)
    if around is None:
        raise ResultsError(f"{path}: these are no results of hayloft bench")
    document = json.loads(around)
    return {**document, "measurements": table.to_pylist()} if isinstance(document, dict) else {}


def _finite(value: Any) -> Any:
    """JSON has no infinity: a rate of a clock that saw no time pass becomes null, as if it was not measured."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside the wanted one, renamed to it when all is written."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
