"""Loads all tensors of a model in a process of its own. As ``python -m hayloft_bench.models.loader_process``; a line of
JSON on standard input says how and from where, one on standard output how long it took.

The clock runs from the first open to the last tensor in private memory; imports are not part of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import crc32c

Tensors = Iterator[tuple[str, Any]]
"""Names and bytes."""


def mmap(paths: list[str]) -> Callable[[], Tensors]:
    """safetensors: the file is mapped, and each tensor copied out of the map."""
    from safetensors import safe_open

    def tensors() -> Tensors:
        for path in paths:
            with safe_open(path, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118  # no mapping
                    yield name, shard.get_tensor(name)

    return tensors


def runai(paths: list[str]) -> Callable[[], Tensors]:
    """Run:ai's streamer, with its defaults: from files or, for ``s3://``, from the store."""
    from runai_model_streamer import SafetensorsStreamer

    def tensors() -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths)
            for name, tensor in streamer.get_tensors():
                # The streamer uses its buffer again.
                yield name, tensor.clone().numpy()

    return tensors


def fastsafetensors(paths: list[str]) -> Callable[[], Tensors]:
    """fastsafetensors without a GPU: reads into host memory."""
    from fastsafetensors import fastsafe_open

    def tensors() -> Tensors:
        with fastsafe_open(filenames=paths, nogds=True, device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                yield name, opened.get_tensor(name).clone().numpy()

    return tensors


LOADERS: dict[str, tuple[Callable[[list[str]], Callable[[], Tensors]], tuple[str, ...]]] = {
    "mmap": (mmap, ("safetensors",)),
    "runai": (runai, ("runai_model_streamer", "torch")),
    "fastsafetensors": (fastsafetensors, ("fastsafetensors", "torch")),
}
"""By name: the loader, and the packages that it needs."""


def missing(loader: str, *more: str) -> str:
    """Why the loader cannot be used here; empty if it can."""
    absent = [name for name in (*LOADERS[loader][1], *more) if importlib.util.find_spec(name) is None]
    return f"it needs {', '.join(absent)}: pip install 'hayloft-bench[models]'" if absent else ""


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    tensors = LOADERS[wanted["loader"]][0](wanted["paths"])
    used = os.times()
    began_s = time.perf_counter()
    count_bytes, sums = 0, {}
    first: dict[str, Any] = {}
    for name, tensor in tensors():
        count_bytes += tensor.nbytes
        if name.endswith(wanted["checked"]):
            first[name] = tensor
    seconds = time.perf_counter() - began_s
    now = os.times()
    sums = {name: crc32c.crc32c(memoryview(tensor).cast("B")) for name, tensor in first.items()}
    cpu_s = now.user + now.system - used.user - used.system
    print(json.dumps({"seconds": seconds, "bytes": count_bytes, "cpu_s": cpu_s, "sums": sums}))


if __name__ == "__main__":
    main()
