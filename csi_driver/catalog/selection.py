"""Include and exclude globs, compiled once and applied to a page of keys at a time.

A glob is matched against the path of the key below the dataset's prefix. ``*`` and ``?`` stay within a part, ``**``
as a whole part crosses parts, ``[...]`` is one character. A glob without a slash is matched against the last part,
in any directory; one that begins with a slash, or has one inside, is matched against the whole path; one that
ends in a slash selects everything below that directory.

Globs and keys come from strangers, and ``re`` holds the interpreter while it matches: no glob may make it backtrack.
Time grows at most with the length of the path times that of the glob, for these reasons:

- A part of a glob matches a part of a path in at most one way. Its end is fixed, so the last star of the part has one
  possible length; the other stars are atomic groups and take the first match, which is as good as any other.
- A glob with one ``**``, and perhaps another at its end, is a regular expression that tries the parts after it at each
  part of the path. What matches ``**`` at the end is never tried in another way.
- A glob with more of them would try all combinations. It is matched in steps: what stands between two ``**`` is taken
  where it matches first, and no earlier step is repeated (``_Crossings``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import InvalidParameter

ALLOWED = "a glob such as train/**/*.jpg, *.parquet, /top/?.bin, shard-[0-9]*.tar or train/"

MAXIMUM_CROSSINGS = 4
"""How often ``**`` may occur. More of them have no use."""

MOST_GLOBS = 256
MOST_CHARACTERS = 8_192
"""Of all globs of a volume, or of one warmup, together. Each key is matched with each glob."""

_CROSSING = "(?:[^/]*/)*"
_ITEM = re.compile(r"\[(?P<negated>[!^]?)(?P<members>\]?[^\]]*)\]|(?P<star>\*+)|(?P<any>\?)|(?P<other>.)", re.DOTALL)

Matcher = Callable[[str], object]
"""Whether a path matches, as a truth value."""

PartMatcher = Callable[[str], object]


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


def check_number_of_globs(**globs_by_field: Sequence[str]) -> None:
    """Raises InvalidParameter if these are more, or longer, than a volume or a warmup may have together."""
    count = characters = 0
    for field, globs in globs_by_field.items():
        count += len(globs)
        characters += sum(map(len, globs))
        if count > MOST_GLOBS or characters > MOST_CHARACTERS:
            allowed = (
                f"at most {MOST_GLOBS} globs of {MOST_CHARACTERS} characters, {', '.join(globs_by_field)} together"
            )
            remedy = "Select by directories and patterns instead of naming files"
            raise InvalidParameter(field, f"{count} globs of {characters} characters", allowed, remedy)


def _matcher(field: str, globs: Sequence[str]) -> Matcher | None:
    if not globs:
        return None
    expressions: list[str] = []
    crossings: list[_Crossings] = []
    for glob in globs:
        parts = _parts(field, glob)
        if parts[:-1].count("**") > 1:
            crossings.append(_Crossings.of(field, glob, parts))
        else:
            expressions.append(_expression(field, glob, parts))
    expression = re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL).fullmatch
    if not crossings:
        return expression
    steps = [crossing.matches for crossing in crossings]
    if not expressions:
        return steps[0] if len(steps) == 1 else lambda path: any(matches(path) for matches in steps)
    return lambda path: expression(path) or any(matches(path) for matches in steps)


def _parts(field: str, glob: str) -> list[str]:
    """The parts of the glob as it is matched with a whole path: the last one may be ``**``, for anything below a
    directory. Raises InvalidParameter."""
    path = glob.removeprefix("/")
    if not path or "\0" in path or "//" in path:
        raise InvalidParameter(field, glob, ALLOWED)
    parts = path.split("/")
    if len(parts) == 1 and not glob.startswith("/"):
        parts.insert(0, "**")
    parts[-1] = parts[-1] or "**"
    if parts.count("**") - (glob[-1] == "/") > MAXIMUM_CROSSINGS:
        raise InvalidParameter(field, glob, f"at most {MAXIMUM_CROSSINGS} times ** in a glob")
    return parts


def _expression(field: str, glob: str, parts: Sequence[str]) -> str:
    """For a glob with at most one ``**`` before its end."""
    *directories, last = (part if part == "**" else _part_expression(field, glob, part) for part in parts)
    expression = "".join(_CROSSING if directory == "**" else f"{directory}/" for directory in directories)
    return expression + (".*" if last == "**" else last)


@dataclass(frozen=True, slots=True)
class _Crossings:
    """A glob with several ``**``. Each step is a function of one part of the path, compiled."""

    first: Sequence[PartMatcher]
    """Before the first ``**``: the first parts of the path."""
    between: Sequence[Sequence[PartMatcher]]
    """Between two ``**``: neighbouring parts anywhere."""
    last: Sequence[PartMatcher]
    """After the last ``**``: the last parts of the path."""
    below: bool
    """The glob ends in ``**``, which takes at least one part: a path that ends at a directory is not below it."""

    @classmethod
    def of(cls, field: str, glob: str, parts: Sequence[str]) -> _Crossings:
        runs: list[list[PartMatcher]] = [[]]
        for part in parts:
            if part == "**":
                runs.append([])
            else:
                runs[-1].append(re.compile(_part_expression(field, glob, part), re.DOTALL).fullmatch)
        return cls(runs[0], runs[1:-1], runs[-1], below=parts[-1] == "**")

    def matches(self, path: str) -> bool:
        """Each run between two ``**`` is taken where it first matches: that leaves the most parts to the others."""
        parts = path.split("/")
        start, stop = len(self.first), len(parts) - (1 if self.below else len(self.last))
        if start > stop or not _match_at(self.first, parts, 0) or not _match_at(self.last, parts, stop):
            return False
        for run in self.between:
            while not _match_at(run, parts, start):
                start += 1
                if start + len(run) > stop:
                    return False
            start += len(run)
        return start <= stop


def _match_at(run: Sequence[PartMatcher], parts: Sequence[str], start: int) -> bool:
    """Whether the parts from ``start`` on match the run."""
    return len(parts) - start >= len(run) and all(matches(parts[start + offset]) for offset, matches in enumerate(run))


def _part_expression(field: str, glob: str, part: str) -> str:
    """For one part of the path, in time that grows with its length times that of the pattern (see above)."""
    runs = [""]
    for item in _ITEM.finditer(part):
        if item["star"]:
            if len(item["star"]) > 1:
                raise InvalidParameter(field, glob, ALLOWED, "** must be a whole part of the path")
            runs.append("")
        else:
            runs[-1] += _item_expression(field, glob, item)
    middle = "".join(f"(?>[^/]*?{run})" for run in runs[1:-1])
    expression = runs[0] if len(runs) == 1 else f"{runs[0]}{middle}[^/]*{runs[-1]}"
    try:
        re.compile(expression)
    except re.error as error:
        raise InvalidParameter(field, glob, ALLOWED, f"It cannot be read: {error.msg}") from None
    return expression


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
