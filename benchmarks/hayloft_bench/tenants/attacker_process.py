"""The attacker's process: ``python -m hayloft_bench.tenants.attacker_process``.

It takes a specification as one line of JSON, reports as one line of JSON that the attacks are in force, and attacks
until its standard input is closed. Each further line that it gets is answered with what it has done so far. Nothing is
unmounted at its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from hayloft_bench.tenants.attacks import MANIFEST_KEYS, Attacker, begin
from hayloft_bench.tenants.hostile_stores import HostileStores
from hayloft_lab.emulated_kubelet import EmulatedKubelet

_PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # What the attacker's client and its store take of the processors is not the driver's doing (the store is another
    # machine): they run where the driver and the victim leave a core idle.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    wanted = json.loads(sys.stdin.readline())
    scale = float(wanted["scale"])
    attacker = Attacker(
        EmulatedKubelet(wanted["endpoint"], Path(wanted["kubelet_directory"])),
        HostileStores(max(1000, round(MANIFEST_KEYS * min(1.0, scale)))),
        wanted["metrics_port"],
        wanted["cache_limit_bytes"],
        scale,
    )
    begin(attacker, wanted["attacks"])
    print(json.dumps({"refused": attacker.refused}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"calls": attacker.calls.count, "requests": attacker.stores.requests.count}), flush=True)
    os._exit(0)  # without waiting for the threads that read and call


if __name__ == "__main__":
    main()
