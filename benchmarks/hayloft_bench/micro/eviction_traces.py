"""Recorded opens: the file and dataset of each, in the order in which the readers opened them.

A trace is compressed text: first the size of each file, then the opens, with a line at the end of each epoch. The
traces in ``traces/`` are package data, recorded by ``python -m hayloft_bench.micro.record_opens``.

    size 0 17 110592        dataset 0, file 17, bytes
    open 0 17
    epoch
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = Path(__file__).parent / "traces"


@dataclass
class Trace:
    """Epochs of opens, each (dataset, file)."""

    name: str
    sizes_bytes: dict[tuple[int, int], int] = field(default_factory=dict)
    epochs: list[list[tuple[int, int]]] = field(default_factory=list)

    def bytes_of(self, epoch: int) -> int:
        """Bytes of all files that are opened in an epoch; each file counts once."""
        return sum(self.sizes_bytes[file] for file in set(self.epochs[epoch]))

    def dataset_bytes(self) -> dict[int, int]:
        """The complete size of each dataset."""
        found: dict[int, int] = {}
        for (dataset, _), size_bytes in self.sizes_bytes.items():
            found[dataset] = found.get(dataset, 0) + size_bytes
        return found


def save(trace: Trace, directory: Path = DIRECTORY) -> Path:
    """Writes the trace; the same trace gives the same bytes."""
    lines = [f"size {dataset} {file} {size}" for (dataset, file), size in sorted(trace.sizes_bytes.items())]
    for epoch in trace.epochs:
        lines += [f"open {dataset} {file}" for dataset, file in epoch]
        lines.append("epoch")
    path = directory / f"{trace.name}.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    return path


def load(path: Path) -> Trace:
    trace = Trace(path.name.removesuffix(".txt.gz"), {}, [[]])
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        kind, *numbers = line.split()
        if kind == "size":
            dataset, file, size_bytes = map(int, numbers)
            trace.sizes_bytes[dataset, file] = size_bytes
        elif kind == "open":
            dataset, file = map(int, numbers)
            trace.epochs[-1].append((dataset, file))
        else:
            trace.epochs.append([])
    trace.epochs.pop()
    return trace


def recorded() -> list[Trace]:
    """All traces of the package, in the order of their names."""
    return [load(path) for path in sorted(DIRECTORY.glob("*.txt.gz"))]
