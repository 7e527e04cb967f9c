"""The schema of ``results.parquet``: the fields of ``Measurement``, each with its meaning.

``python -m hayloft_bench.results.schema`` prints the table of ``docs/benchmark-results.md``.
"""

from __future__ import annotations

import sys
import types
import typing
from dataclasses import fields
from typing import Any, Literal, Union

import pyarrow as pa

from hayloft_bench.results.decoding import hints_of
from hayloft_bench.results.model import SCHEMA_VERSION, Measurement

MEANING = {
    "schema": f"version of this schema: {SCHEMA_VERSION}",
    "run_id": "the run that it belongs to",
    "workload": "what was read",
    "target": "through what",
    "phase": "state of the caches when the clock started: `cold`, `warm`, `hot`, `small-cache`, `restart`",
    "epoch": "number of the pass over the dataset, from 1",
    "repetition": "number of the repetition; within one, targets are measured one after the other",
    "rank": "number of the node or process that measured, from 0; -1 in the row for all of them",
    "ranks": "how many ran together",
    "readers": "reader processes of this rank",
    "valid": "whether the figures count",
    "reason": "why they do not count, or why there are none; empty otherwise",
    "started_at": "seconds since 1970",
    "dataset_id": "hash over paths, sizes and checksums of the dataset",
    "dataset_bytes": "size of the dataset",
    "seconds": "from the first start to the last end of a reader",
    "bytes": "bytes that the readers read",
    "samples": "samples that they read",
    "samples_per_s": "samples ÷ seconds",
    "bytes_per_s": "bytes ÷ seconds",
    "first_batch_s": "until the slowest reader had its first batch",
    "sample_p50_s": "median time of a sample",
    "sample_p95_s": "95th percentile",
    "sample_p99_s": "99th percentile",
    "batch_p50_s": "median time of a batch",
    "batch_p95_s": "95th percentile",
    "batch_p99_s": "99th percentile",
    "sample_latencies_s": "at most 200 quantiles of the time of a sample, evenly spaced",
    "accelerator": "the emulated accelerator; empty: none",
    "accelerators": "how many were emulated; null: none, as fast as it goes",
    "utilisation": "time that they computed ÷ time of the epoch",
    "cpu_reader_s": "processor time of the readers",
    "cpu_target_s": "processor time of the target's own processes",
    "cpu_s_per_gb": "processor time of both ÷ 1e9 bytes read",
    "peak_reader_bytes": "largest resident memory of one reader",
    "peak_target_bytes": "largest resident memory of the target's processes",
    "origin_bytes": "bytes that the store sent meanwhile, by its own counter",
    "origin_requests": "requests that it answered meanwhile",
    "read_amplification": "bytes from the store ÷ bytes that the epoch needs",
    "hit_ratio": "1 minus bytes from the store ÷ bytes read, at least 0",
    "money_per_epoch": "requests and bytes from the store at the price list, in its currency",
    "attack": "of the workload `tenants`: what another tenant did meanwhile, or `alone`; empty otherwise",
    "part": "of the workload `tenants`: which files were read (`small`, `large`), or `mount`; empty otherwise",
    "control": "of the workload `tenants`: whether the daemon was another one on the machine, which was not attacked",
    "mount_s": "slowest of a few mounts of a small volume",
    "unmount_s": "slowest of a few unmounts of it",
    "attack_calls_per_s": "in the row of `mount`: calls of the other tenant, and its connections to the metrics port",
    "attack_requests_per_s": "in the row of `mount`: requests that the driver sent to the other tenant's store",
}
"""Of every field, in its order. Times are in seconds, sizes in bytes."""

_ARROW: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """The Arrow type of a field of ``Measurement``, and whether it may be null."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not type(None))
        return arrow_type(inner)[0], True
    if origin is Literal:
        return pa.string(), False
    if origin is tuple:
        return pa.list_(arrow_type(arguments[0])[0]), False
    return _ARROW[hint], False


def parquet_schema() -> pa.Schema:
    """One field per field of ``Measurement``, with its meaning as the field's description."""
    hints = hints_of(Measurement)
    columns = []
    for field in fields(Measurement):
        kind, nullable = arrow_type(hints[field.name])
        columns.append(pa.field(field.name, kind, nullable, {"description": MEANING[field.name]}))
    return pa.schema(columns)


def markdown_table() -> str:
    """The columns as a table in Markdown."""
    lines = ["| column | type | null | what |", "|---|---|---|---|"]
    for field in parquet_schema():
        kind = "list of double" if pa.types.is_list(field.type) else str(field.type)
        lines.append(f"| `{field.name}` | {kind} | {'yes' if field.nullable else 'no'} | {MEANING[field.name]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
