"""The cost of a manifest from an inventory: time, memory, size, the time until a mount of it answers, and lookups.

Run it as ``python -m hayloft_bench.micro.inventory_scale --objects 10000000``, and as root for the mount. It writes an
inventory as S3 does, in files of a million rows, to a directory of the disk, which is the store. Every step runs in a
process of its own, so that its peak memory is its own; the rows of the inventory are in no order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hayloft_bench.micro.catalog_scale import lookup_step, memory_mb, mount_step
from hayloft_bench.micro.synthetic_listing import PREFIX

FILE_ROWS = 1_000_000
FORMATS = ("Parquet", "ORC", "CSV")
BUCKET = "scale"
_LAYOUT = "classes"
_STRIDE = 7_368_787


def write_inventory(home: Path, objects: int, form: str) -> Path:
    """Returns the path of the manifest. A file at a time is in memory."""
    folder = home / "inventories" / BUCKET / "daily"
    manifest = folder / "2026-11-28T01-00Z" / "manifest.json"
    (folder / "data").mkdir(parents=True)
    manifest.parent.mkdir()
    files = []
    for start in range(0, objects, FILE_ROWS):
        path = folder / "data" / f"{start}.{form.lower()}"
        _write(path, range(start, min(start + FILE_ROWS, objects)), objects, form)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        files.append({"key": str(path).lstrip("/"), "size": path.stat().st_size, "MD5checksum": digest})
    names = "Bucket, Key, Size, LastModifiedDate, ETag, StorageClass"
    fields = {"sourceBucket": BUCKET, "fileFormat": form, "fileSchema": names, "creationTimestamp": "1795827600000"}
    manifest.write_text(json.dumps({**fields, "files": files}))
    return manifest


def _write(path: Path, rows: range, objects: int, form: str) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.orc
    import pyarrow.parquet

    from hayloft_bench.micro.synthetic_columns import etags_of, keys_of, sizes_of

    count = len(rows)
    numbers = np.arange(rows.start, rows.stop, dtype=np.int64) * _STRIDE % objects
    columns = {
        "bucket": pa.repeat(pa.scalar(BUCKET), count),
        "key": keys_of(numbers),
        "size": sizes_of(numbers),
        "last_modified_date": pa.repeat(pa.scalar(1_767_323_045_000, pa.timestamp("ms", "UTC")), count),
        "e_tag": etags_of(numbers),
        "storage_class": pa.repeat(pa.scalar("STANDARD"), count),
    }
    if form == "CSV":
        columns["last_modified_date"] = pa.repeat(pa.scalar("2026-01-02T03:04:05.000Z"), count)
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
        with pa.CompressedOutputStream(str(path), "gzip") as sink:
            pyarrow.csv.write_csv(pa.table(columns), sink, options)
    elif form == "ORC":
        pyarrow.orc.write_table(pa.table(columns), path, compression="zlib")
    else:
        # Keys and ETags are all different: a dictionary of them would only cost time.
        repeated = ["bucket", "storage_class"]
        pyarrow.parquet.write_table(
            pa.table(columns), path, compression="snappy", row_group_size=100_000, use_dictionary=repeated
        )


def import_step(manifest: Path, target: Path, objects: int) -> dict[str, Any]:
    """Builds the manifest of the dataset from the inventory."""
    from csi_driver.catalog.inventory_import import build_from_inventory
    from csi_driver.model.dataset import Dataset, DatasetUrl
    from csi_driver.model.inventory_url import InventoryUrl
    from csi_driver.objects.local_file_store import FileStore

    began, cpu_began = time.perf_counter(), time.process_time()
    location = InventoryUrl.parse(f"file://{manifest}")
    dataset = Dataset(DatasetUrl.parse(f"s3://{BUCKET}/{PREFIX}"))
    built = build_from_inventory(FileStore("/"), location, dataset, target)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    assert built.file_count == objects
    return {
        "import_s": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "objects_per_cpu_s": round(objects / cpu_s),
        "file_mb": round(target.stat().st_size / 1e6, 1),
        **memory_mb(),
    }


def _run(objects: int, form: str, directory: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hayloft-inventory-", dir=directory) as home:
        began = time.perf_counter()
        manifest, target = write_inventory(Path(home), objects, form), Path(home) / "manifest.arrow"
        size_mb = sum(path.stat().st_size for path in Path(home).rglob("*") if path.is_file()) / 1e6
        load = os.getloadavg()[0]
        print(
            f"{objects} rows in {form}: {size_mb:.0f} MB, written in {time.perf_counter() - began:.0f} s, load {load}"
        )
        steps = ("import", "lookup", "mount") if os.geteuid() == 0 else ("import", "lookup")
        for step in steps:
            child = [sys.executable, "-m", "hayloft_bench.micro.inventory_scale", "--objects", str(objects)]
            child += ["--step", step, "--manifest", str(manifest), "--target", str(target)]
            done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
            print(f"{form} {step}: {done.stdout.strip()}, load {os.getloadavg()[0]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=10_000_000)
    parser.add_argument("--format", choices=FORMATS, default="Parquet")
    parser.add_argument("--directory", type=Path, default=Path.home(), help="with 200 bytes an object free")
    parser.add_argument("--step", choices=("import", "lookup", "mount"), help=argparse.SUPPRESS)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "import":
        print(json.dumps(import_step(arguments.manifest, arguments.target, arguments.objects)))
    elif arguments.step == "lookup":
        print(json.dumps(lookup_step(arguments.target, arguments.objects, _LAYOUT, None)))
    elif arguments.step == "mount":
        print(json.dumps(mount_step(arguments.target, arguments.objects, _LAYOUT, None)))
    else:
        _run(arguments.objects, arguments.format, arguments.directory)


if __name__ == "__main__":
    main()
