"""A program that makes a dataset with files of the libraries in docs/loaders.md: python loader_files.py DIRECTORY"""

from __future__ import annotations

import io
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

import datasets
import duckdb
import h5py
import lmdb
import numpy
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import zarr


def make(root: Path, scratch: Path) -> None:
    (root / "text").mkdir()
    (root / "text" / "a.txt").write_text("a\n")
    (root / "text" / "train.csv").write_text("x\n1\n2\n")
    _numpy_files(root)
    _lmdb_files(root)
    _sqlite_files(root, scratch)
    with duckdb.connect(str(root / "t.duckdb")) as database:
        database.execute("create table t as select range x from range(10)")
    with h5py.File(root / "a.h5", "w") as file:
        file["x"] = numpy.arange(10)
    array = zarr.create_array(str(root / "a.zarr"), shape=(10,), chunks=(5,), dtype="i4")
    array[:] = numpy.arange(10)
    _arrow_files(root)
    safetensors.numpy.save_file({"w": numpy.ones(10, "f4")}, root / "a.safetensors")
    with tarfile.open(root / "0.tar", "w") as shard:
        for number in range(4):
            for name, content in ((f"{number}.jpg", b"image"), (f"{number}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def _numpy_files(root: Path) -> None:
    numpy.arange(1000, dtype="f4").tofile(root / "a.bin")
    numpy.save(root / "a.npy", numpy.arange(1000))


def _lmdb_files(root: Path) -> None:
    for path, subdir in ((root / "lmdb", True), (root / "a.lmdb", False)):
        with lmdb.open(str(path), subdir=subdir, map_size=1 << 20) as environment, environment.begin(write=True) as put:
            put.put(b"key", b"value")
    assert (root / "lmdb" / "lock.mdb").exists()
    assert (root / "a.lmdb-lock").exists()


def _sqlite_files(root: Path, scratch: Path) -> None:
    for mode in ("delete", "wal"):
        database = sqlite3.connect(root / f"{mode}.sqlite")
        _fill(database, mode)
        database.close()  # the last connection that closes moves the write-ahead log into the file
    database = sqlite3.connect(scratch / "open.sqlite")
    _fill(database, "wal")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(scratch / f"open.sqlite{suffix}", root / f"open.sqlite{suffix}")
    for suffix in ("", "-wal"):
        shutil.copy(scratch / f"open.sqlite{suffix}", root / f"no-shm.sqlite{suffix}")
    database.close()


def _fill(database: sqlite3.Connection, journal_mode: str) -> None:
    database.execute(f"pragma journal_mode={journal_mode}")
    database.execute("create table t(x)")
    database.execute("insert into t values(1)")
    database.commit()


def _arrow_files(root: Path) -> None:
    table = pyarrow.table({"x": list(range(100))})
    pyarrow.parquet.write_table(table, root / "a.parquet")
    with pyarrow.OSFile(str(root / "a.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"x": list(range(100))}).save_to_disk(str(root / "hf"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(sys.argv[1]), Path(scratch))
