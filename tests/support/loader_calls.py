"""A program that runs Python code on mounts, as a user other than root, and says how each piece ended.

    python -P loader_calls.py UID

Standard input is a JSON list of objects: ``code``, with the paths /data and /scratch, ``data`` and ``scratch``, the
directories that stand for them. Standard output has a line for each: "ok", or the error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import datasets
import duckdb
import h5py
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy
import webdataset
import zarr

_PR_SET_KEEPCAPS = 8
_CAP_DAC_READ_SEARCH = 1 << 2
_CAPABILITY_VERSION = 0x20080522

NAMES: dict[str, Any] = {
    module.__name__: module
    for module in (
        datasets, duckdb, h5py, lmdb, mmap, os, safetensors, shutil, sqlite3, subprocess, tempfile, webdataset, zarr
    )
} | {"np": np, "pa": pa, "pq": pq}  # fmt: skip


def become(user: int) -> None:
    """Not root any more, but permitted to read every file: modules are imported late, from where only root may look."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    kept = (ctypes.c_uint32 * 6)(_CAP_DAC_READ_SEARCH, _CAP_DAC_READ_SEARCH, 0, 0, 0, 0)
    assert libc.capset(header, kept) == 0


def run(code: str, data: str, scratch: str) -> str:
    placed = code.replace("/data", data).replace("/scratch", scratch)
    try:
        exec(placed, dict(NAMES))  # noqa: S102  # the code of our own documentation
    except Exception as error:  # noqa: BLE001  # the outcome
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    finally:
        gc.collect()  # LMDB refuses a second environment of one path in a process
        datasets.enable_caching()
    return "ok"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    become(int(sys.argv[1]))
    for call in json.load(sys.stdin):
        sys.stdout.write(run(call["code"], call["data"], call["scratch"]) + "\n")
