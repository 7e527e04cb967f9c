"""The commands of ``hayloft bench``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from csi_driver.cli import INTERRUPTED, complain
from csi_driver.model.errors import HayloftError
from hayloft_bench.demo.errors import DemoFailed, Stopped
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.distributed.gang import Rank, join
from hayloft_bench.errors import BenchError, RankError
from hayloft_bench.report import plots, report
from hayloft_bench.report import tables as table
from hayloft_bench.results import comparison as comparing
from hayloft_bench.results import files as results
from hayloft_bench.results.merging import merge as merged
from hayloft_bench.results.model import Results, Sizes
from hayloft_bench.run import availability as listing
from hayloft_bench.run.options import (
    SEARCH,
    Options,
    WronglyAsked,
    checked,
    parse_accelerators,
    phase_names,
    target_names,
    workload_names,
)
from hayloft_bench.run.quick import quick
from hayloft_bench.run.runner import Runner

LOG_COLUMNS = 140
"""Where there is no terminal."""
REGRESSED = 3
"""Not 1 or 2, which say that nothing could be compared."""
_PROGRAM = "hayloft bench"
_DEFAULTS = Options((), (), (), Sizes(1.0, 0))

app = typer.Typer(
    name="bench",
    help="Measures how fast training reads a dataset: cold and warm, with Hayloft and with what one could use instead.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Names = Annotated[list[str] | None, typer.Option(metavar="NAMES", help="Separated by commas; all for everything.")]
Saved = Annotated[Path, typer.Argument(help="A directory that --out has filled, or one of its results files.")]


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; gives the exit code."""
    try:
        code = app(_split(arguments), prog_name=_PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except WronglyAsked as error:
        complain(error)
        return 2
    except (BenchError, RankError) as error:
        complain(error)
        return 1
    except typer.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


def _split(arguments: Sequence[str]) -> list[str]:
    """``--targets plain hayloft`` is what people write; typer wants the flag again before each of them."""
    split: list[str] = []
    flag = ""
    for argument in arguments:
        if argument.startswith("-"):
            flag = argument if argument in ("--workloads", "--targets", "--phases") else ""
            split.append(argument)
        elif flag and split[-1] != flag:
            split += [flag, argument]
        else:
            split.append(argument)
    return split


@app.command()
def run(
    workloads: Names = None,
    targets: Names = None,
    phases: Names = None,
    epochs: Annotated[int, typer.Option(help="Epochs of each warm and hot phase.")] = _DEFAULTS.epochs,
    repetitions: Annotated[int, typer.Option(help="Turns of all targets; 3 or more tell how far figures vary.")] = 3,
    scale: Annotated[float, typer.Option(help="Size of the datasets; 1 is full for one node.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the datasets and of the order in which they are read.")] = 2024,
    readers: Annotated[int | None, typer.Option(help="Reader processes, instead of what each workload has.")] = None,
    quick_run: Annotated[bool, typer.Option("--quick", help="A useful subset in less than five minutes.")] = False,
    network: Annotated[str | None, typer.Option(help="The path to the store, such as 25gbit,5ms.")] = None,
    path: Annotated[Path | None, typer.Option(help="Something that is mounted already: the target path.")] = None,
    out: Annotated[Path | None, typer.Option(help="A directory for the results and their report.")] = None,
    directory: Annotated[Path, typer.Option(help="Where to work; on the disk to be measured.")] = _DEFAULTS.directory,
    accelerators: Annotated[
        str | None, typer.Option(help="Emulate so many accelerators; search: as many as can be fed.")
    ] = None,
    prices: Annotated[str | None, typer.Option(help="A price list: a built-in one, or a .toml or .json file.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare every byte once through each target.")] = True,
    show_list: Annotated[bool, typer.Option("--list", help="List workloads, targets and phases; run nothing.")] = False,
) -> int:
    """Measure workloads on targets."""
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    if show_list:
        listing.show(console)
        return 0
    options = Options(
        workloads=workload_names(workloads or []),
        targets=target_names(targets or [], path),
        phases=phase_names(phases or []),
        sizes=Sizes(scale, seed, readers),
        epochs=epochs,
        repetitions=repetitions,
        directory=directory.absolute(),
        out=out,
        path=None if path is None else path.absolute(),
        network=network,
        accelerators=parse_accelerators(accelerators),
        prices=prices,
        verify=verify,
    )
    if quick_run:
        options = quick(options, workloads=bool(workloads), targets=bool(targets), phases=bool(phases))
    return _run(checked(options), console)


def _run(options: Options, console: Console) -> int:
    """0 when everything was tried, whatever the figures say; what was measured before it was stopped is kept."""
    rank = Rank.from_environment()
    if rank.ranks > 1 and options.accelerators == SEARCH:
        raise WronglyAsked("--accelerators search is for one rank; give a number where several run together")
    if rank.rank:
        console = Console(stderr=True, quiet=True)
    agreed = {name: getattr(options, name) for name in ("workloads", "targets", "phases", "epochs", "repetitions")}
    agreed |= {"scale": options.sizes.scale, "seed": options.sizes.seed, "accelerators": options.accelerators}
    stopping, code = Stopping(), 0
    runner: Runner | None = None
    found: Results | None = None
    with stopping.watching():
        try:
            with contextlib.ExitStack() as stack, _not_again(stopping):
                gang = stack.enter_context(join(rank, agreed=agreed))
                command = [Path(sys.argv[0]).name, *sys.argv[1:]]
                runner = Runner(options, console, stopping, stack, command=command, meeting=Barrier(gang))
                found = gang.gather(runner.run())
        except Stopped as stopped:
            console.print("stopped: everything is unmounted and ended")
            code = 128 + stopped.signal_number
        except (DemoFailed, HayloftError, RankError, OSError) as error:
            complain(error)
            code = 1
    if code and runner is not None:
        found = runner.results()
    if found is None:
        return code  # rank 0 tells
    _tell(found, options, console)
    return code if code or any(row.valid for row in found.measurements) else 1


@contextlib.contextmanager
def _not_again(stopping: Stopping) -> Iterator[None]:
    """After the block signals are ignored: what follows is the cleaning up that they would ask for."""
    try:
        yield
    finally:
        stopping.stop_listening()


def _tell(found: Results, options: Options, console: Console) -> None:
    if not found.measurements:
        return
    console.print()
    table.show(found, console)
    if options.out is not None:
        results.write(found, options.out)
        report.write_html(found, options.out / "report.html")
        console.print(f"{options.out} has results.json, results.parquet and report.html", highlight=False)


@app.command()
def compare(
    before: Saved,
    after: Saved,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with 3 if anything became worse beyond noise.")
    ] = False,
) -> int:
    """Show what changed between two runs beyond noise."""
    first, second = results.read(before), results.read(after)
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    compared = comparing.comparison(first, second)
    console.print(comparing.changes_table(compared, (str(before), str(after))))
    return REGRESSED if fail_on_regression and compared.regressions else 0


@app.command()
def plot(
    saved: Saved,
    out: Annotated[Path | None, typer.Option(help="A directory for the pictures; the same one without it.")] = None,
) -> int:
    """Draw the plots of a run again, and its report."""
    found = results.read(saved)
    directory = out or (saved if saved.is_dir() else saved.parent)
    written = [*plots.write(found, directory), report.write_html(found, directory / "report.html")]
    for path in written:
        typer.echo(path)
    return 0


@app.command()
def merge(
    saved: Annotated[list[Path], typer.Argument(help="Results of the ranks of one run, rank 0 first.")],
    out: Annotated[Path, typer.Option(help="A directory for the merged results and their report.")],
) -> int:
    """Make one report of results that ranks have written one by one."""
    found = merged([results.read(path) for path in saved])
    results.write(found, out)
    typer.echo(report.write_html(found, out / "report.html"))
    return 0
