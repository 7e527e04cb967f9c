"""The goals of the data path, where nothing but plain reads is measured (``workloads/plain_reads.py``), and of the
workloads that bring a dataset onto a node, or a model into a program (``workloads/on_a_node.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from hayloft_bench.results.model import Phase


@dataclass(frozen=True, slots=True)
class Aim:
    """Hayloft's speed ÷ that of another target, at least."""

    workload: str
    phase: Phase
    other: str
    bound: float
    wording: str


_SEQUENTIAL = "0.75 of obstore alone, which writes the same ranges into a file"
_AHEAD = "ahead of the peers when cold"
_SMALL = "0.65 of plain GETs by obstore in 8 threads"
_FILES = "0.9 of obstore, which writes into files"
_FROM_C = "1.1 times as fast as a copy from a server in C"
_TWICE = "twice as fast as the peers on small files"

AIMS = (
    Aim("long", "hot", "plain", 0.95, "0.95 of the plain file"),
    Aim("long", "cold", "obstore", 0.75, _SEQUENTIAL),
    Aim("long", "cold", "juicefs", 1.0, _AHEAD),
    Aim("long", "cold", "rclone", 1.0, _AHEAD),
    Aim("shards", "cold", "obstore", 0.75, _SEQUENTIAL),
    Aim("shards", "cold", "juicefs", 1.0, _AHEAD),
    Aim("shards", "cold", "rclone", 1.0, _AHEAD),
    Aim("small", "cold", "obstore", 0.65, _SMALL),
    Aim("small", "cold", "juicefs", 2.0, _TWICE),
    Aim("small", "cold", "rclone", 2.0, _TWICE),
    Aim("small", "hot", "juicefs", 2.0, _TWICE),
)
NODE_AIMS = (
    Aim("warm", "cold", "rclone-copy", 1.25, "a warmup 1.25 times as fast as a copy"),
    Aim("warm", "cold", "obstore-files", 0.9, _FILES),
    Aim("warm-large", "cold", "rclone-copy", 1.25, "a warmup of large files 1.25 times as fast as a copy"),
    Aim("warm-large", "cold", "obstore-files", 0.9, _FILES),
    Aim("warm-small", "cold", "rclone-copy", 1.5, "a warmup of small files 1.5 times as fast as a copy"),
    Aim("web-large", "cold", "rclone-copy", 1.1, _FROM_C),
    Aim("web-small", "cold", "rclone-copy", 1.1, _FROM_C),
    Aim("model-load", "cold", "runai-s3", 1.0, "a cold model at least as fast as Run:ai's streamer from the store"),
    Aim("model-load", "hot", "plain-mmap", 0.95, "0.95 of the plain files"),
)
RAW = frozenset({"long", "shards", "small", "shared"})
"""Workloads that are judged by these aims instead of the goals of training."""
ON_A_NODE = frozenset(aim.workload for aim in NODE_AIMS)
"""The same, of those whose targets are of their own rounds."""
