"""All commands as an application of typer, for help, for errors, and for command lines of an unusual form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from csi_driver.cli import INTERRUPTED, commands, complain, dataset_commands, node_commands
from csi_driver.cli.doctor_command import doctor
from csi_driver.cli.explain_command import explain
from csi_driver.cli.extension_commands import EXTENSIONS, run_extension
from csi_driver.cli.flag import Flag
from csi_driver.cli.migrate_command import migrate
from csi_driver.cli.node_command import node
from csi_driver.cli.tier_command import tier_config
from csi_driver.cli.top_command import top
from csi_driver.cli.version_command import version

PROGRAM = "hayloft"

_PASS_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""A command of another distribution parses its own arguments, ``--help`` included."""

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def hayloft(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Shows datasets in object stores as directories in pods, at the speed of the node's own disk.

    Every flag can be set in the environment too: --cache-dir is HAYLOFT_CACHE_DIR.
    """
    if show_version:
        version()
        raise typer.Exit


def run_typer(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code of the process. Raises what the command raises."""
    if not arguments:
        app(["--help"], prog_name=PROGRAM, standalone_mode=False)
        return 2
    try:
        result = app(list(arguments), prog_name=PROGRAM, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        usage = _usage_message(error)
        if usage is None:
            raise
        complain(usage)
        return 2


def _usage_message(error: Exception) -> str | None:
    """typer's message about wrong arguments; None for any other exception. typer contains a copy of click whose
    exceptions have no public name, so they are recognised by their attributes."""
    exit_code, format_message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
    if exit_code != 2 or format_message is None:
        return None
    context = getattr(error, "ctx", None)
    hint = f"; `{context.command_path} --help` lists what is allowed" if context is not None else ""
    return f"{format_message().rstrip('.')}{hint}"


def _for_typer(command: Callable[..., Any]) -> Callable[..., Any]:
    """The function with typer's declarations in place of ours."""
    hints = get_type_hints(command, include_extras=True)
    typed = {name: _declared(hint) for name, hint in hints.items()}
    plain = inspect.signature(command)
    parameters = [parameter.replace(annotation=typed[name]) for name, parameter in plain.parameters.items()]

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        return command(**values)

    run.__annotations__ = typed
    run.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return run


def _declared(hint: Any) -> Any:
    if get_origin(hint) is not Annotated:
        return hint
    kind, flag = get_args(hint)
    if isinstance(flag, Flag):
        return Annotated[
            kind,
            typer.Option(
                flag.names,
                envvar=flag.variable,
                help=flag.text,
                rich_help_panel=flag.panel,
                show_envvar=False,
                hidden=flag.hidden,
            ),
        ]
    return Annotated[kind, typer.Argument(help=flag.text)]


def _add_extension(name: str, summary: str) -> None:
    def run(context: typer.Context) -> int:
        return run_extension(name, context.args)

    run.__doc__ = f"See `hayloft {name} --help`."
    app.command(name, context_settings=_PASS_ARGUMENTS, short_help=summary)(run)


for _name, _command in (
    ("controller", commands.controller),
    ("node", node),
    ("cache", commands.cache),
    ("keeper", commands.keeper),
    ("all-in-one", commands.all_in_one),
    ("inspect", dataset_commands.inspect),
    ("status", node_commands.status),
    ("volumes", node_commands.volumes),
    ("ls", node_commands.ls),
    ("warm", dataset_commands.warm),
    ("trace", dataset_commands.trace),
    ("evict", node_commands.evict),
    ("pin", node_commands.pin),
    ("unpin", node_commands.unpin),
    ("verify", node_commands.verify),
    ("top", top),
    ("doctor", doctor),
    ("explain", explain),
    ("migrate", migrate),
    ("tier-config", tier_config),
):
    app.command(_name)(_for_typer(_command))
for _name, _summary in EXTENSIONS.items():
    _add_extension(_name, _summary)
app.command()(version)
