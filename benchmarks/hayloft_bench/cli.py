"""The commands of ``hayloft bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from csi_driver.cli import INTERRUPTED, complain
from hayloft_bench.distributed.gang import Rank
from hayloft_bench.errors import BenchError, RankError
from hayloft_bench.report import markdown, plots, tables
from hayloft_bench.report import report as html_report
from hayloft_bench.report.overview import overview_picture
from hayloft_bench.report.plot_style import png
from hayloft_bench.results import comparison, files
from hayloft_bench.results.merging import merge as merged
from hayloft_bench.results.model import PHASES, Sizes
from hayloft_bench.run import availability as listing
from hayloft_bench.run.options import (
    SEARCH,
    Options,
    WronglyAsked,
    attack_names,
    checked,
    named,
    parse_accelerators,
    phase_names,
    target_names,
    workload_names,
)
from hayloft_bench.run.quick import quick
from hayloft_bench.run.session import run_session

LOG_COLUMNS = 140
"""Where there is no terminal."""
REGRESSED = 3
"""Not 1 or 2, the codes for runs that cannot be compared."""
REPORT_NAME = "report.html"
PICTURE_DPI = 110
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
Saved = Annotated[Path, typer.Argument(help="A directory that --out has filled, or its results.parquet.")]


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
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
    """``--targets plain hayloft`` is what people write; typer needs the flag before each name."""
    split: list[str] = []
    flag = ""
    for argument in arguments:
        if argument.startswith("-"):
            flag = argument if argument in ("--workloads", "--workload", "--targets", "--phases", "--attacks") else ""
            split.append(argument)
        elif flag and split[-1] != flag:
            split += [flag, argument]
        else:
            split.append(argument)
    return split


@app.command()
def run(
    workloads: Annotated[
        list[str] | None,
        typer.Option("--workloads", "--workload", metavar="NAMES", help="Separated by commas; all for everything."),
    ] = None,
    targets: Names = None,
    phases: Names = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Of the workload tenants; each without it. all is the others together."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of each warm and hot phase.")] = _DEFAULTS.epochs,
    repetitions: Annotated[int, typer.Option(help="Turns of all targets; 3 or more show how far figures vary.")] = 3,
    scale: Annotated[float, typer.Option(help="Size of the datasets; 1 is full for one node.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the datasets and of the order in which they are read.")] = 2024,
    readers: Annotated[int | None, typer.Option(help="Reader processes, instead of what each workload has.")] = None,
    quick_run: Annotated[bool, typer.Option("--quick", help="A useful subset in less than five minutes.")] = False,
    network: Annotated[str | None, typer.Option(help="The path to the store, such as 25gbit,5ms.")] = None,
    path: Annotated[Path | None, typer.Option(help="A directory that is mounted already: the target path.")] = None,
    out: Annotated[Path | None, typer.Option(help="A directory for results.parquet.")] = None,
    with_report: Annotated[bool, typer.Option("--report", help="Write report.html beside it.")] = False,
    directory: Annotated[Path, typer.Option(help="Where to work; on the disk to be measured.")] = _DEFAULTS.directory,
    accelerators: Annotated[
        str | None, typer.Option(help="How many accelerators to emulate; search: as many as can be fed.")
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
    chosen = workload_names(workloads or [])
    chosen_targets, own_targets = target_names(targets or [], chosen, path)
    options = Options(
        workloads=chosen,
        targets=chosen_targets,
        own_targets=own_targets,
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
        attacks=attack_names(attacks or []),
    )
    if quick_run:
        options = quick(options, workloads=bool(workloads), targets=bool(targets), phases=bool(phases))
    return _run(checked(options), console, with_report=with_report)


def _run(options: Options, console: Console, *, with_report: bool) -> int:
    """0 when everything was tried, whatever the figures say; the rows that were measured before a stop are kept."""
    rank = Rank.from_environment()
    if rank.ranks > 1 and options.accelerators == SEARCH:
        raise WronglyAsked("--accelerators search is for one rank; give a number where several run together")
    if rank.rank:
        console = Console(stderr=True, quiet=True)
    found, code = run_session(options, console, command=[Path(sys.argv[0]).name, *sys.argv[1:]], rank=rank)
    if found is None:
        return code  # rank 0 shows the results of all
    if found.measurements:
        console.print()
        tables.show(found, console)
        if options.out is not None:
            written = [files.write(found, options.out)]
            if with_report:
                written.append(html_report.write_html(found, options.out / REPORT_NAME))
            for path in written:
                console.print(path, highlight=False)
    return code if code or any(row.valid for row in found.measurements) else 1


@app.command()
def cluster(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Nodes that read at the same time.")] = 4,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Replicas of the cluster's cache.")] = 3,
    size: Annotated[int, typer.Option(min=32, help="Size of the dataset in MiB.")] = 256,
    network: Annotated[str | None, typer.Option(help="The path to the bucket, such as 1gbit,5ms.")] = None,
    directory: Annotated[Path, typer.Option(help="Where to work; on a real disk.")] = _DEFAULTS.directory,
    out: Annotated[Path | None, typer.Option(help="A directory for cluster.json.")] = None,
    seed: Annotated[int, typer.Option(help="Of the dataset and the orders in which it is read.")] = 2024,
    slow: Annotated[int, typer.Option(min=0, help="Pass requests to one replica on so many ms later, at last.")] = 0,
) -> int:
    """Measure what several nodes cost the bucket, with and without the cluster's cache."""
    from hayloft_bench.cluster import command

    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    options = command.Options(nodes, replicas, size, network, directory.absolute(), seed, slow)
    epochs = command.run(options, console)
    console.print(command.table(epochs))
    if out is not None:
        console.print(command.write(epochs, options, out), highlight=False)
    return 0


@app.command()
def compare(
    before: Saved,
    after: Saved,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with 3 if anything became worse beyond noise.")
    ] = False,
) -> int:
    """Show what changed between two runs beyond noise."""
    first, second = files.read(before), files.read(after)
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    compared = comparison.comparison(first, second)
    console.print(comparison.changes_table(compared, (str(before), str(after))))
    return REGRESSED if fail_on_regression and compared.regressions else 0


@app.command()
def report(
    saved: Saved,
    out: Annotated[Path | None, typer.Option(help="A directory for report.html; that of the run without it.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write one PNG of all workloads instead.")] = None,
    table: Annotated[
        str | None, typer.Option(help=f"Print a Markdown table instead: {', '.join(markdown.TABLES)}.")
    ] = None,
    phases: Names = None,
) -> int:
    """Make the report of a run, or one picture or table of it."""
    found = files.read(saved)
    wanted = named("--phases", phases or [], PHASES, PHASES)
    found = replace(found, measurements=tuple(row for row in found.measurements if row.phase in wanted))
    if table is not None:
        typer.echo(markdown.table(found, table), nl=False)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png(overview_picture(found), dots_per_inch=PICTURE_DPI))
        typer.echo(picture)
    if table is None and picture is None:
        typer.echo(html_report.write_html(found, (out or _directory_of(saved)) / REPORT_NAME))
    return 0


@app.command()
def plot(
    saved: Saved,
    out: Annotated[Path | None, typer.Option(help="A directory for the plots; that of the run without it.")] = None,
) -> int:
    """Draw every plot of a run as SVG and PNG."""
    for path in plots.write(files.read(saved), out or _directory_of(saved)):
        typer.echo(path)
    return 0


def _directory_of(saved: Path) -> Path:
    return saved if saved.is_dir() else saved.parent


@app.command()
def merge(
    saved: Annotated[list[Path], typer.Argument(help="Results of the ranks of one run, rank 0 first.")],
    out: Annotated[Path, typer.Option(help="A directory for the merged results.")],
) -> int:
    """Merge the results that the ranks of one run have written one by one."""
    typer.echo(files.write(merged([files.read(path) for path in saved]), out))
    return 0
