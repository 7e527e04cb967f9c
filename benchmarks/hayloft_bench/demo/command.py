"""The command ``hayloft demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hayloft_bench.demo.options import DemoOptions
from hayloft_bench.demo.run import run_demo

app = typer.Typer(name="demo", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo(
    scale: Annotated[float, typer.Option(help="Size of the dataset; 1 is about 700 MB.")] = 1.0,
    directory: Annotated[Path | None, typer.Option(help="Where to make everything; default: /var/tmp.")] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave the files where they are at the end.")] = False,
    json: Annotated[Path, typer.Option(help="File for the results.")] = Path("demo-results.json"),
    picture: Annotated[Path, typer.Option(help="File for the picture.")] = Path("demo-results.png"),
) -> int:
    """Make a dataset, start a store and the driver, read as training does, and show how fast it was."""
    return run_demo(DemoOptions(scale=scale, directory=directory, keep=keep, json_path=json, picture_path=picture))


def run_command(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        code: int | None = app(list(arguments), prog_name="hayloft demo", standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return 1
    return code or 0
