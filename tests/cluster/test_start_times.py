"""How long a pod takes from ``kubectl apply`` to its first byte."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.cluster.installation import Installation, claim, of_claim, pod, python

PODS = int(os.environ.get("HAYLOFT_START_PODS", "3"))
"""Of each kind; 20 for the table in docs/performance.md."""
FIRST_BYTE = python(
    "import time; begun = time.time(); open('/data/part-0/sample-00000.bin', 'rb').read(1); print(begun, time.time())"
)


class Start(NamedTuple):
    """Seconds from ``kubectl apply``."""

    process_s: float
    """Until the process of the pod has begun."""
    byte_s: float
    """Until it has read a byte."""


def start_of(hayloft: Installation, name: str, volume: dict[str, Any], *more: dict[str, Any]) -> Start:
    """Of a new pod, which is deleted then."""
    begun = time.time()
    hayloft.kubectl.apply(*more, pod(name, volume, FIRST_BYTE))
    hayloft.kubectl.wait_for_pod(name, "Succeeded")
    process, byte = (float(one) - begun for one in hayloft.kubectl("logs", name).split())
    hayloft.kubectl.delete("pod", name, now=True)
    return Start(process, byte)


def test_from_apply_to_the_first_byte(hayloft: Installation, measured: Callable[[str], None]) -> None:
    """By turns, so that what else the machine does concerns all of them."""
    directory = hayloft.cluster.node.root / "var/lib/local/part-0"
    directory.mkdir(parents=True)
    (directory / "sample-00000.bin").write_bytes(b"x")
    hayloft.kubectl.apply(claim("known", "train"))
    kinds: dict[str, Callable[[int], Start]] = {
        "hostPath": lambda number: start_of(hayloft, f"local-{number}", {"hostPath": {"path": "/var/lib/local"}}),
        "known claim": lambda number: start_of(hayloft, f"known-{number}", of_claim("known")),
        "new claim": lambda number: start_of(
            hayloft, f"new-{number}", of_claim(f"new-{number}"), claim(f"new-{number}", "train")
        ),
    }
    taken: dict[str, list[Start]] = {kind: [] for kind in kinds}
    for number in range(PODS):
        for kind, start in kinds.items():
            taken[kind].append(start(number))
    for number in range(PODS):
        hayloft.kubectl.delete("pvc", f"new-{number}", wait=False)
    hayloft.kubectl.delete("pvc", "known")
    for kind, starts in taken.items():
        times = sorted(one.byte_s for one in starts)
        high = times[math.ceil(0.95 * PODS) - 1]  # of few pods the highest
        processes = statistics.median(one.process_s for one in starts)
        measured(
            f"apply to first byte, {kind}: p50 {statistics.median(times):.2f} s, p95 {high:.2f} s, {times[0]:.2f} to "
            f"{times[-1]:.2f} s of {PODS} pods; until the process begins: p50 {processes:.2f} s"
        )
