"""Command lines of the usual form are read without typer, and with the same result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from csi_driver.cli import commands, dataset_commands
from csi_driver.cli.node_command import node
from csi_driver.cli.plain_arguments import plain_arguments
from csi_driver.cli.typer_application import _for_typer

COMMANDS: dict[str, Callable[..., Any]] = {
    "controller": commands.controller,
    "node": node,
    "cache": commands.cache,
    "all-in-one": commands.all_in_one,
    "inspect": dataset_commands.inspect,
    "warm": dataset_commands.warm,
}

CACHE = ["cache", "--socket=/s", "--state-dir=/d", "--cache-dir=/c", "--registry=/r"]


def by_typer(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Any:
    """What typer would call the function with."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    function = _for_typer(COMMANDS[name])

    @functools.wraps(function)  # typer reads the signature of the function behind it
    def values_of(**values: object) -> dict[str, object]:
        return values

    application = typer.Typer()
    application.command(name)(values_of)
    command: Any = typer.main.get_command(application)
    # As it calls the function: before 0.29 the values in its context are not converted yet.
    return command.main(list(words), prog_name=name, standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (CACHE, {}),
        ([*CACHE, "--no-passthrough", "--fuse-threads", "3", "--allowed-endpoint=https://a"], {}),
        ([*CACHE, "--allowed-endpoint=https://a", "--allowed-endpoint", "https://b"], {}),
        (CACHE, {"HAYLOFT_ALLOWED_ENDPOINT": "https://a https://b", "HAYLOFT_OPENLESS": "no", "HAYLOFT_SOCKET": "/x"}),
        (CACHE[:1], {f"HAYLOFT_{name}": "/x" for name in ("SOCKET", "STATE_DIR", "CACHE_DIR", "REGISTRY")}),
        (["inspect", "s3://b/p", "--include=*.jpg", "--include", "a,b", "--anonymous", "--backend=s3fs"], {}),
        (["inspect", "--region", "x", "s3://b/p?a=b"], {"HAYLOFT_REGION": "", "HAYLOFT_LOG_LEVEL": "debug"}),
        (["warm", "--volume=v", "--no-wait", "--concurrency=4", "--cancel"], {}),
        (["node", "--endpoint=unix:///e", "--node-id=a=b", "--daemon-socket=/d"], {"HAYLOFT_KUBELET_DIR": "/k"}),
        (["controller", "--endpoint=e", "--registry=r", "--listings=4", "--listings=5", "--allow-file-urls"], {}),
        (["all-in-one", "--endpoint=e", "--registry=r", "--cache-dir=c", "--no-allow-file-urls"], {}),
    ],
)
def test_the_values_are_those_that_typer_reads(
    words: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *rest = words
    found = plain_arguments(COMMANDS[name], rest, environment)
    assert found is not None
    expected = by_typer(name, rest, monkeypatch, environment)
    assert {key: value or None for key, value in found.items()} == {
        key: value or None for key, value in expected.items()
    }
    assert {key for key, value in found.items() if isinstance(value, Path)} == {
        key for key, value in expected.items() if isinstance(value, Path)
    }


@pytest.mark.parametrize(
    "words",
    [
        ["node", "--help"],
        ["node", "--endpoint=e"],  # others are required
        ["cache", "--bogus"],
        [*CACHE, "--fuse-threads=two"],
        [*CACHE, "--passthrough=yes"],
        [*CACHE, "--log-level=loud"],
        [*CACHE, "positional"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "--", "a"],
        ["warm", "--volume"],
        ["warm", "--volume", "--wait"],
    ],
)
def test_a_command_line_of_another_form_is_left_to_typer(words: list[str]) -> None:
    assert plain_arguments(COMMANDS[words[0]], words[1:], {}) is None


def test_a_variable_of_another_form_is_left_to_typer() -> None:
    assert plain_arguments(commands.cache, CACHE[1:], {"HAYLOFT_PASSTHROUGH": "perhaps"}) is None
    assert plain_arguments(commands.cache, CACHE[1:], {"HAYLOFT_FUSE_THREADS": "1e3"}) is None
