"""Dataclasses from parsed JSON: every field is checked, and an error has the path of the value."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

from hayloft_bench.errors import ResultsError

T = TypeVar("T")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of each field."""
    return typing.get_type_hints(cls)


def decode(cls: type[T], value: object, where: str) -> T:
    """A dataclass from a mapping. Raises ResultsError for what is missing, unknown or of another type."""
    if not is_dataclass(cls):
        raise TypeError(f"{cls} is no dataclass")
    if not isinstance(value, Mapping):
        raise ResultsError(f"{where}: an object is expected, not {_shown(value)}")
    known = {field.name: field for field in fields(cls)}
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ResultsError(f"{where}.{unknown[0]}: this version does not know the field")
    missing = [
        name
        for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ResultsError(f"{where}.{missing[0]}: missing")
    hints = hints_of(cls)
    return typing.cast(T, cls(**{name: _value(hints[name], one, f"{where}.{name}") for name, one in value.items()}))


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (one for one in arguments if one is not type(None))
        return _value(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ResultsError(f"{where}: one of {', '.join(map(str, arguments))} is expected, not {_shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ResultsError(f"{where}: a list is expected, not {_shown(value)}")
        return tuple(_value(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ResultsError(f"{where}: an object is expected, not {_shown(value)}")
        return {str(key): _value(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    return _plain(hint, value, where)


def _plain(hint: Any, value: object, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ResultsError(f"{where}: {hint.__name__} is expected, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
