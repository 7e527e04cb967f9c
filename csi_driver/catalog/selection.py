"""Include and exclude globs, compiled once into two regular expressions and applied to a page of keys at a time.

A glob is matched against the path of the key below the dataset's prefix. ``*`` and ``?`` stay within a part, ``**``
as a whole part crosses parts, ``[...]`` is one character. A glob without a slash is matched against the last part,
in any directory; one that begins with a slash, or has one inside, is matched against the whole path; one that
ends in a slash selects everything below that directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import InvalidParameter

ALLOWED = "a glob such as train/**/*.jpg, *.parquet, /top/?.bin, shard-[0-9]*.tar or train/"

MAXIMUM_CROSSINGS = 4
"""How often ``**`` may occur: the time of a match grows by a power for each."""

_CROSSING = "(?:[^/]*/)*"
_ITEM = re.compile(r"\[(?P<negated>[!^]?)(?P<members>\]?[^\]]*)\]|(?P<star>\*+)|(?P<any>\?)|(?P<other>.)", re.DOTALL)

Matcher = Callable[[str], re.Match[str] | None]


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected keys of a dataset. ``include`` None: all; ``exclude`` None: none is excluded."""

    include: Matcher | None
    exclude: Matcher | None

    @classmethod
    def of(cls, dataset: Dataset) -> Selection:
        """Raises InvalidParameter, naming the glob."""
        return cls(_matcher("include", dataset.include), _matcher("exclude", dataset.exclude))

    @classmethod
    def including(cls, globs: Sequence[str], field: str = "include") -> Selection:
        """Selects the keys that match any of the globs; without globs all. ``field`` names the parameter in errors."""
        return cls(_matcher(field, globs), None)

    @property
    def selects_all(self) -> bool:
        return self.include is None and self.exclude is None

    def chosen(self, paths: Sequence[str]) -> list[int]:
        """Positions of the selected paths, in order."""
        positions: Sequence[int] = range(len(paths))
        if (include := self.include) is not None:
            positions = [position for position in positions if include(paths[position])]
        if (exclude := self.exclude) is not None:
            positions = [position for position in positions if not exclude(paths[position])]
        return list(positions)


def _matcher(field: str, globs: Sequence[str]) -> Matcher | None:
    if not globs:
        return None
    expressions = [_expression(field, glob) for glob in globs]
    return re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL).fullmatch


def _expression(field: str, glob: str) -> str:
    path = glob.removeprefix("/")
    if not path or "\0" in path or "//" in path:
        raise InvalidParameter(field, glob, ALLOWED)
    *directories, last = path.split("/")
    anchored = bool(directories) or glob.startswith("/")
    expression = "" if anchored else _CROSSING
    if directories.count("**") + (last == "**") + (not anchored) > MAXIMUM_CROSSINGS:
        raise InvalidParameter(field, glob, f"at most {MAXIMUM_CROSSINGS} times ** in a glob")
    for part in directories:
        expression += _CROSSING if part == "**" else _part_expression(field, glob, part) + "/"
    expression += ".*" if last in ("", "**") else _part_expression(field, glob, last)
    try:
        re.compile(expression)
    except re.error as error:
        raise InvalidParameter(field, glob, ALLOWED, f"It cannot be read: {error.msg}") from None
    return expression


def _part_expression(field: str, glob: str, part: str) -> str:
    """For one part of the path. Between two stars the first match is as good as any other, so all stars except the last
    are atomic groups: a glob with many stars cannot backtrack exponentially."""
    runs = [""]
    for item in _ITEM.finditer(part):
        if item["star"]:
            if len(item["star"]) > 1:
                raise InvalidParameter(field, glob, ALLOWED, "** must be a whole part of the path")
            runs.append("")
        else:
            runs[-1] += _item_expression(field, glob, item)
    if len(runs) == 1:
        return runs[0]
    middle = "".join(f"(?>[^/]*?{run})" for run in runs[1:-1])
    return f"{runs[0]}{middle}[^/]*{runs[-1]}"


def _item_expression(field: str, glob: str, item: re.Match[str]) -> str:
    if item["any"]:
        return "[^/]"
    if item["other"] == "[":
        raise InvalidParameter(field, glob, ALLOWED, "A [ has no ]; a [ itself is written [[]")
    if item["other"]:
        return re.escape(item["other"])
    if "--" in item["members"]:
        raise InvalidParameter(field, glob, ALLOWED, "A set cannot hold -- ; put a single - at its end")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", item["members"])
    if not members:
        raise InvalidParameter(field, glob, ALLOWED, "[] holds no character")
    return f"(?!/)[{'^' if item['negated'] else ''}{members}]"
