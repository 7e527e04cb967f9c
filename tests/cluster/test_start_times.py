"""How long a pod takes from ``kubectl apply`` to its first byte."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.cluster.installation import Installation, claim, of_claim, pod, python

PODS = int(os.environ.get("HAYLOFT_START_PODS", "3"))
"""Of each kind; 20 for the table in docs/performance.md."""
FIRST_BYTE = python(
    "import time; open('/data/part-0/sample-00000.bin', 'rb').read(1); print(time.time())",
)


def first_byte_s(hayloft: Installation, name: str, volume: dict[str, Any], *more: dict[str, Any]) -> float:
    """Seconds until a new pod has read a byte, and its deletion."""
    begun = time.time()
    hayloft.kubectl.apply(*more, pod(name, volume, FIRST_BYTE))
    hayloft.kubectl.wait_for_pod(name, "Succeeded")
    taken = float(hayloft.kubectl("logs", name)) - begun
    hayloft.kubectl.delete("pod", name, now=True)
    return taken


def test_from_apply_to_the_first_byte(hayloft: Installation, measured: Callable[[str], None]) -> None:
    """By turns, so that what else the machine does concerns all of them."""
    directory = hayloft.cluster.node.root / "var/lib/local/part-0"
    directory.mkdir(parents=True)
    (directory / "sample-00000.bin").write_bytes(b"x")
    hayloft.kubectl.apply(claim("known", "train"))
    kinds: dict[str, Callable[[int], float]] = {
        "hostPath": lambda number: first_byte_s(hayloft, f"local-{number}", {"hostPath": {"path": "/var/lib/local"}}),
        "known claim": lambda number: first_byte_s(hayloft, f"known-{number}", of_claim("known")),
        "new claim": lambda number: first_byte_s(
            hayloft, f"new-{number}", of_claim(f"new-{number}"), claim(f"new-{number}", "train")
        ),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(PODS):
        for kind, start in kinds.items():
            taken[kind].append(start(number))
    for number in range(PODS):
        hayloft.kubectl.delete("pvc", f"new-{number}", wait=False)
    hayloft.kubectl.delete("pvc", "known")
    for kind, times in taken.items():
        times.sort()
        # Of few pods, the highest.
        high = times[math.ceil(0.95 * PODS) - 1]
        measured(
            f"apply to first byte, {kind}: p50 {statistics.median(times):.2f} s, p95 {high:.2f} s, "
            f"{times[0]:.2f} to {times[-1]:.2f} s of {PODS} pods"
        )
