"""The same command on many nodes: the rank of this process, a common start of all ranks, and the merged results. As in
gang scheduling, all ranks run or none does.

Rank 0 listens; every rank, itself included, connects to it and stays connected for the whole run (``coordinator.py``).
Before each measurement all ranks wait at a barrier, so that they read at the same time. A rank that ends, or does not
reach a barrier within the timeout, ends the run on all ranks with a message that names it.

Environment, as torchrun sets it: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``; torchrun
uses that port itself, so the benchmark uses the next one. In an Indexed Job of Kubernetes: ``JOB_COMPLETION_INDEX``,
and from the manifest ``HAYLOFT_BENCH_RANKS`` and ``HAYLOFT_BENCH_ADDRESS`` (the name of the pod with index 0 in its
headless Service). ``HAYLOFT_BENCH_PORT`` sets the port in both cases; ``HAYLOFT_BENCH_TOKEN`` is the secret by which
ranks of one run recognise each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from hayloft_bench.distributed import coordinator
from hayloft_bench.errors import RankError, Withdrawn
from hayloft_bench.results.files import from_document, to_document
from hayloft_bench.results.merging import merge
from hayloft_bench.results.model import Results

__all__ = ["Gang", "Rank", "join", "merge"]

PORT = 29777
"""Unassigned at IANA, and below Linux's range of ports for outgoing connections."""
JOIN_S = 600.0
"""Pods of one Job may wait for images and nodes."""
BARRIER_S = 3600.0
"""A rank that is still filling its cache keeps the others waiting; the slowest full dataset takes minutes."""


@dataclass(frozen=True, slots=True)
class Rank:
    """The place of this process in the run. Rank 0 listens at ``address`` and ``port``."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    """Its number on its node. Only local rank 0 changes the state of the node, such as dropping the page cache."""
    address: str = "127.0.0.1"
    port: int = PORT
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Rank:
        """Rank 0 of 1 if no variable is set. Raises RankError, which names the variable."""
        given = os.environ if environment is None else environment
        if "WORLD_SIZE" in given or "RANK" in given:
            return cls._checked(given, "RANK", "WORLD_SIZE", "MASTER_ADDR", _number(given, "MASTER_PORT", 1, 65534) + 1)
        if "JOB_COMPLETION_INDEX" in given and given.get("HAYLOFT_BENCH_RANKS", "1") != "1":
            return cls._checked(given, "JOB_COMPLETION_INDEX", "HAYLOFT_BENCH_RANKS", "HAYLOFT_BENCH_ADDRESS", PORT)
        return cls()

    @classmethod
    def _checked(cls, given: Mapping[str, str], rank: str, ranks: str, address: str, port: int) -> Rank:
        count = _number(given, ranks, 1, 100_000)
        if not given.get(address):
            raise RankError(f"{address} is not set: the address of rank 0 is needed where {ranks} is set")
        return cls(
            rank=_number(given, rank, 0, count - 1),
            ranks=count,
            local_rank=_number(given, "LOCAL_RANK", 0, 100_000) if "LOCAL_RANK" in given else 0,
            address=given[address],
            port=_number(given, "HAYLOFT_BENCH_PORT", 1, 65535) if "HAYLOFT_BENCH_PORT" in given else port,
            token=given.get("HAYLOFT_BENCH_TOKEN") or given.get("TORCHELASTIC_RUN_ID", ""),
        )


def _number(given: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = given.get(name)
    if text is None:
        raise RankError(f"{name} is not set")
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise RankError(f"{name}: {text!r} is not a whole number from {least} to {most}")
    return int(text)


class Gang:
    """All ranks of a run, from the view of one of them. With a single rank every method is a no-op, so that such a run
    needs no other code.

    Not for several threads. Every method blocks, and raises RankError if the run cannot continue."""

    def __init__(self, rank: Rank, member: coordinator.Member | None) -> None:
        self.rank = rank
        self._member = member

    def barrier(self, name: str, *, obstacle: str = "", timeout_s: float = BARRIER_S) -> dict[int, str]:
        """Blocks until all ranks are at the barrier of that name, and returns their obstacles by rank. If there is any,
        no rank should begin what the barrier guards. Raises Withdrawn if a rank has withdrawn from the barrier."""
        if self._member is None:
            return {0: obstacle} if obstacle else {}
        answer = self._member.request({"barrier": name, "obstacle": obstacle, "timeout_s": timeout_s}, timeout_s)
        if "withdrawn" in answer:
            raise Withdrawn("; ".join(f"rank {rank}: {reason}" for rank, reason in answer["withdrawn"].items()))
        return {int(rank): text for rank, text in answer["obstacles"].items()}

    def withdraw(self, prefix: str, reason: str) -> None:
        """Withdraws this rank from every barrier whose name starts with ``prefix``: ranks that wait there get
        ``Withdrawn``. A target that fails on one node is thus left out on all nodes, and the run continues."""
        if self._member is not None:
            self._member.request({"withdraw": prefix, "reason": reason}, BARRIER_S)

    def gather(self, results: Results, *, timeout_s: float = BARRIER_S) -> Results | None:
        """Ends the run: the merged results at rank 0, None at the others. No call may follow."""
        if self._member is None:
            return results
        answer = self._member.request({"results": to_document(results), "timeout_s": timeout_s}, timeout_s)
        if self.rank.rank:
            return None
        every = answer["results"]
        return merge([from_document(every[str(rank)], f"results of rank {rank}") for rank in range(self.rank.ranks)])


@contextmanager
def join(rank: Rank, *, agreed: Mapping[str, object], timeout_s: float = JOIN_S) -> Iterator[Gang]:
    """Connects to the other ranks. ``agreed`` holds what must be equal on all ranks, such as workloads, targets, scale
    and seed. Raises RankError if a rank is missing, differs, or is refused."""
    if rank.ranks == 1:
        yield Gang(rank, None)
        return
    with ExitStack() as stack:
        if rank.rank == 0:
            stack.enter_context(coordinator.coordinating(rank.address, rank.port, rank.ranks, rank.token))
        member = coordinator.member(rank.address, rank.port, rank.rank, rank.ranks, rank.token, agreed, timeout_s)
        gang = Gang(rank, stack.enter_context(member))
        gang.barrier("join", timeout_s=timeout_s)
        yield gang
