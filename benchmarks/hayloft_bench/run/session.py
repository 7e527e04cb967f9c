"""One run from its start to the end of its clean-up, with SIGINT and SIGTERM handled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from rich.console import Console

from csi_driver.cli import complain
from csi_driver.model.errors import HayloftError
from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.distributed.gang import Rank, join
from hayloft_bench.errors import BenchError, RankError, Stopped
from hayloft_bench.results.model import Results
from hayloft_bench.run.options import Options
from hayloft_bench.run.runner import Runner
from hayloft_bench.run.stopping import Stopping
from hayloft_lab.driver import DriverFailed


def run_session(
    options: Options, console: Console, *, command: Sequence[str], rank: Rank | None = None
) -> tuple[Results | None, int]:
    """The results and the exit code: 0 when everything was tried, 1 after an error, 128 + the number of a signal. An
    error is reported on standard error; the rows that were measured before it are returned. None: nothing was measured,
    or another rank has the results of all."""
    rank = rank or Rank()
    agreed = {name: getattr(options, name) for name in ("workloads", "targets", "phases", "epochs", "repetitions")}
    agreed |= {"scale": options.sizes.scale, "seed": options.sizes.seed, "accelerators": options.accelerators}
    stopping, code = Stopping(), 0
    runner: Runner | None = None
    found: Results | None = None
    with stopping.watching():
        try:
            with contextlib.ExitStack() as stack, _uninterrupted_end(stopping):
                gang = stack.enter_context(join(rank, agreed=agreed))
                runner = Runner(options, console, stopping, stack, command=command, barrier=Barrier(gang))
                found = gang.gather(runner.run())
        except Stopped as stopped:
            console.print("stopped: everything is unmounted and ended")
            code = 128 + stopped.signal_number
        except (BenchError, DriverFailed, HayloftError, RankError, OSError) as error:
            complain(error)
            code = 1
    if code and runner is not None:
        found = runner.results()
    return found, code


@contextlib.contextmanager
def _uninterrupted_end(stopping: Stopping) -> Iterator[None]:
    """Ignores signals after the block: the clean-up that they would request is what follows."""
    try:
        yield
    finally:
        stopping.stop_listening()
