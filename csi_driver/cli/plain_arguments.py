"""Reads command lines without typer, which takes 0.1 s and 10 MB with what it imports: pydantic too.

Only those of the usual form. For all others, and for help and errors, typer reads the same flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from csi_driver.cli.flag import Flag

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
_NUMBER = re.compile(r"-?[0-9]+\Z", re.ASCII)


class _Unusual(Exception):
    """For typer to read."""


class _Argument(NamedTuple):
    name: str
    flag: Flag | None
    """None: positional."""
    kind: Any
    """The type of a value, or of each value."""
    repeats: bool
    default: Any


def plain_arguments(
    command: Callable[..., Any], words: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """The arguments to call the function with, by name. None: typer has to read the words."""
    try:
        arguments = list(_arguments_of(command))
        given = _given(arguments, words)
        return {argument.name: _value(argument, given, environment) for argument in arguments}
    except _Unusual:
        return None


def _arguments_of(command: Callable[..., Any]) -> Iterator[_Argument]:
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        hint = hints[name]
        if get_origin(hint) is not Annotated:
            raise _Unusual
        kind, declared = get_args(hint)
        if isinstance(kind, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
        repeats = get_origin(kind) is list
        if repeats:
            (kind,) = get_args(kind)
        yield _Argument(name, declared if isinstance(declared, Flag) else None, kind, repeats, parameter.default)


def _given(arguments: Sequence[_Argument], words: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each argument that is on the command line."""
    by_word = {word: argument for argument in arguments if argument.flag for word in argument.flag.names.split("/")}
    places = [argument for argument in arguments if argument.flag is None]
    given: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        if not word.startswith("-"):
            if not places:
                raise _Unusual
            given[places.pop(0).name] = [word + equals + text]
            continue
        argument = by_word.get(word)
        if argument is None or (argument.kind is bool and equals):
            raise _Unusual
        if argument.kind is bool:
            text = "false" if word.startswith("--no-") else "true"
        elif not equals:
            if not rest or rest[0].startswith("-"):
                raise _Unusual
            text = rest.pop(0)
        given.setdefault(argument.name, []).append(text)
    return given


def _value(argument: _Argument, given: Mapping[str, list[str]], environment: Mapping[str, str]) -> Any:
    texts = given.get(argument.name)
    if texts is None and argument.flag is not None and argument.flag.variable is not None:
        text = environment.get(argument.flag.variable)
        texts = None if not text else text.split() if argument.repeats else [text]
    if texts is None:
        if argument.default is Parameter.empty:
            raise _Unusual
        return argument.default
    values = [_parse(argument.kind, text) for text in texts]
    return values if argument.repeats else values[-1]


def _parse(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if kind is Path:
        return Path(text)
    if kind is int and _NUMBER.match(text):
        return int(text)
    if kind is bool and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    raise _Unusual
