"""The same command on many nodes: who this rank is, a start that all ranks share, and one place for all results.

Rank 0 listens; every rank, itself included, connects to it and stays connected for the whole run (``rendezvous.py``).
Before each measurement all ranks meet at a barrier, so that they read at the same time. A rank that ends, or does not
come within the timeout, ends the run of all, with a sentence that names it.

Environment, as torchrun sets it: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``; the port
is torchrun's own, so ours is the one after it. In an Indexed Job of Kubernetes: ``JOB_COMPLETION_INDEX``, and from the
manifest ``HAYLOFT_BENCH_RANKS`` and ``HAYLOFT_BENCH_ADDRESS`` (the name of the pod with index 0 in its headless
Service). ``HAYLOFT_BENCH_PORT`` sets the port in both cases, ``HAYLOFT_BENCH_TOKEN`` the word that ranks of one run
know each other by.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from hayloft_bench.distributed import coordinator as rendezvous
from hayloft_bench.errors import RankError, Withdrawn
from hayloft_bench.results.files import from_document, to_document
from hayloft_bench.results.merging import merge
from hayloft_bench.results.model import Results

__all__ = ["Gang", "Rank", "join", "merge"]

PORT = 29777
"""Free in the registry of IANA, below the range that Linux takes ports of outgoing connections from."""
JOIN_S = 600.0
"""Pods of one Job may have to wait for images and nodes."""
BARRIER_S = 3600.0
"""A rank that still fills its cache keeps the others waiting; the slowest full dataset takes minutes."""


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those that run together. ``address`` and ``port``: where rank 0 listens."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    """Number on its node: only 0 may do what concerns the whole node, such as dropping the page cache."""
    address: str = "127.0.0.1"
    port: int = PORT
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Rank:
        """Rank 0 of 1 where nothing says otherwise. Raises RankError, which names the variable."""
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
    """All ranks of a run, as one of them sees them. Alone it does nothing: a run of one rank needs no other code.

    Not for several threads. Every method blocks, and raises RankError when the run cannot go on."""

    def __init__(self, rank: Rank, member: rendezvous.Member | None) -> None:
        self.rank = rank
        self._member = member

    def barrier(self, name: str, *, obstacle: str = "", timeout_s: float = BARRIER_S) -> dict[int, str]:
        """Returns when all ranks are at the barrier of that name: the obstacles that ranks named, by rank. Where there
        is one, no rank should go on with what the barrier is for. Raises Withdrawn when a rank will not come."""
        if self._member is None:
            return {0: obstacle} if obstacle else {}
        answer = self._member.ask({"barrier": name, "obstacle": obstacle, "timeout_s": timeout_s}, timeout_s)
        if "withdrawn" in answer:
            raise Withdrawn("; ".join(f"rank {rank}: {reason}" for rank, reason in answer["withdrawn"].items()))
        return {int(rank): text for rank, text in answer["obstacles"].items()}

    def withdraw(self, beginning: str, reason: str) -> None:
        """Says that this rank comes to no barrier whose name begins so: whoever waits there gets
        ``Withdrawn``. So a target that fails on one node is left out on all of them, and the run goes on."""
        if self._member is not None:
            self._member.ask({"withdraw": beginning, "reason": reason}, BARRIER_S)

    def gather(self, results: Results, *, timeout_s: float = BARRIER_S) -> Results | None:
        """At the end: the merged results at rank 0, None at the others. Nothing may follow it."""
        if self._member is None:
            return results
        answer = self._member.ask({"results": to_document(results), "timeout_s": timeout_s}, timeout_s)
        if self.rank.rank:
            return None
        every = answer["results"]
        return merge([from_document(every[str(rank)], f"results of rank {rank}") for rank in range(self.rank.ranks)])


@contextmanager
def join(rank: Rank, *, agreed: Mapping[str, object], timeout_s: float = JOIN_S) -> Iterator[Gang]:
    """Meets the other ranks. ``agreed``: what must be the same for all of them, such as workloads, targets, scale and
    seed. Raises RankError when a rank does not come, differs, or is refused."""
    if rank.ranks == 1:
        yield Gang(rank, None)
        return
    with ExitStack() as stack:
        if rank.rank == 0:
            stack.enter_context(rendezvous.coordinating(rank.address, rank.port, rank.ranks, rank.token))
        member = rendezvous.member(rank.address, rank.port, rank.rank, rank.ranks, rank.token, agreed, timeout_s)
        gang = Gang(rank, stack.enter_context(member))
        gang.barrier("join", timeout_s=timeout_s)
        yield gang
