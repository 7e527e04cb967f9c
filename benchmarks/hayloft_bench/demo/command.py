"""The command ``hayloft demo``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from csi_driver.cli import complain
from hayloft_bench.demo import prerequisites
from hayloft_bench.demo.preset import DemoOptions, bench_options, dataset_bytes, failures
from hayloft_bench.errors import BenchError
from hayloft_bench.report.overview import overview_captions, overview_picture, overview_table
from hayloft_bench.report.plot_style import png
from hayloft_bench.results.files import to_document
from hayloft_bench.results.model import Results
from hayloft_bench.run.options import checked
from hayloft_bench.run.session import run_session

LOG_COLUMNS = 120
"""Where there is no terminal; the table needs 100."""
_DEFAULTS = DemoOptions()

app = typer.Typer(name="demo", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo(
    scale: Annotated[float, typer.Option(help="Size of the dataset; 1 is about 700 MB.")] = _DEFAULTS.scale,
    directory: Annotated[Path, typer.Option(help="Where to work.")] = _DEFAULTS.directory,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave the files where they are at the end.")] = False,
    json_path: Annotated[Path, typer.Option("--json", help="File for the results.")] = _DEFAULTS.json_path,
    picture_path: Annotated[Path, typer.Option("--picture", help="File for the picture.")] = _DEFAULTS.picture_path,
) -> int:
    """Make a dataset, start a store and the driver, read as training does, and show how fast it was."""
    return run_demo(DemoOptions(scale, directory, keep, json_path, picture_path))


def run_command(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        code: int | None = app(list(arguments), prog_name="hayloft demo", standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return 1
    return code or 0


def run_demo(demo_options: DemoOptions, console: Console | None = None) -> int:
    """Runs it and cleans up, however it ends. The exit code: 0; 1 when it failed or a figure does not count; 128 + the
    number of a signal."""
    console = console or Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    start_s = time.monotonic()
    try:
        options = bench_options(demo_options)
        outputs = [demo_options.json_path, demo_options.picture_path]
        prerequisites.check(options.directory, dataset_bytes(options), outputs)
        results, code = run_session(checked(options), console, command=["hayloft", "demo"])
    except BenchError as error:
        complain(error)
        return 1
    if code or results is None:
        return code or 1
    console.print(
        f"Everything is unmounted and stopped; it took {time.monotonic() - start_s:.0f} s.\n", highlight=False
    )
    return _report(results, demo_options, console)


def _report(results: Results, options: DemoOptions, console: Console) -> int:
    document = to_document(results)
    for row in document["measurements"]:
        del row["sample_latencies_s"]  # nine tenths of the file, and in no figure that is shown
    options.json_path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    options.picture_path.write_bytes(png(overview_picture(results)))
    console.print(overview_table(results))
    for caption in overview_captions(results):
        console.print(caption, highlight=False)
    failed = failures(results)
    if failed:
        complain(f"the demonstration failed: {'; '.join(failed)}")
        return 1
    console.print(
        "\nEvery byte was compared through the mount (CRC32C), and samples of each epoch. "
        f"{options.json_path} has all figures, {options.picture_path} is the picture.",
        highlight=False,
    )
    return 0
