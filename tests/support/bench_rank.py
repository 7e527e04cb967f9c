"""One rank of a made-up run: ``python -m tests.support.bench_rank OUT [BEHAVIOUR]``, with torchrun's environment.

``die``: ends itself by SIGKILL after the first barrier. ``wait``: waits a minute before the second barrier. ``slow``:
its figures are those of a straggler. ``broken``: reports an obstacle. ``withdraw``: withdraws from one barrier.
``other``: was started with another seed. ``short``: times out early.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from hayloft_bench.distributed.gang import Rank, join
from hayloft_bench.errors import RankError, Withdrawn
from hayloft_bench.report import report
from hayloft_bench.results import files as results
from tests.support.bench_results import measurement, results_of, with_ranks

ROWS = [measurement(), measurement(phase="warm"), measurement("juicefs")]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(out: Path, behaviour: str) -> int:
    rank = Rank.from_environment()
    try:
        seed, timeout_s = 2 if behaviour == "other" else 1, 5 if behaviour == "short" else 60
        with join(rank, agreed={"seed": seed}, timeout_s=timeout_s) as gang:
            found = gang.barrier("first", obstacle="made up: no disk" if behaviour == "broken" else "")
            say(f"obstacles {found}")
            if behaviour == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if behaviour == "wait":
                time.sleep(60)
            if behaviour == "withdraw":
                gang.withdraw("target/", "made up: it did not start")
            else:
                try:
                    gang.barrier("target/1", timeout_s=5)
                except Withdrawn as withdrawn:
                    say(f"withdrawn {withdrawn}")
            gang.barrier("second", timeout_s=30)
            mine = with_ranks(results_of(ROWS), rank.ranks, rank.rank, 1.5 if behaviour == "slow" else 1.0)
            merged = gang.gather(mine)
            if merged is not None:
                results.write(merged, out)
                report.write_html(merged, out / "report.html")
    except RankError as error:
        say(f"error {error}")
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
