from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.selection import PartMatcher, Selection, _Crossings, _parts
from csi_driver.model.errors import InvalidParameter
from tests.support.datasets import dataset
from tests.support.examples import examples

PATHS = [
    "top.jpg",
    "readme.txt",
    "train/a.jpg",
    "train/b.png",
    "train/deep/c.jpg",
    "train/deep/er/d.jpg",
    "val/a.jpg",
    "val/.hidden",
    "odd[1].jpg",
    "new\nline.jpg",
    "training/x.jpg",
]


def chosen(include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), paths: list[str] = PATHS) -> list[str]:
    return [paths[position] for position in Selection.of(dataset(include, exclude)).chosen(paths)]


def test_without_globs_everything_is_selected() -> None:
    assert chosen() == PATHS
    assert Selection.of(dataset()).selects_all


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.jpg", [path for path in PATHS if path.endswith(".jpg")]),
        ("/*.jpg", ["top.jpg", "odd[1].jpg", "new\nline.jpg"]),
        ("train/*.jpg", ["train/a.jpg"]),
        ("train/*", ["train/a.jpg", "train/b.png"]),
        ("train/**/*.jpg", ["train/a.jpg", "train/deep/c.jpg", "train/deep/er/d.jpg"]),
        ("**/deep/*", ["train/deep/c.jpg"]),
        ("**/a.jpg", ["train/a.jpg", "val/a.jpg"]),
        ("**/top.jpg", ["top.jpg"]),
        ("train/**", ["train/a.jpg", "train/b.png", "train/deep/c.jpg", "train/deep/er/d.jpg"]),
        ("train/", ["train/a.jpg", "train/b.png", "train/deep/c.jpg", "train/deep/er/d.jpg"]),
        ("/train/", ["train/a.jpg", "train/b.png", "train/deep/c.jpg", "train/deep/er/d.jpg"]),
        ("?.jpg", ["train/a.jpg", "train/deep/c.jpg", "train/deep/er/d.jpg", "val/a.jpg", "training/x.jpg"]),
        ("[a-c].*", ["train/a.jpg", "train/b.png", "train/deep/c.jpg", "val/a.jpg"]),
        ("[!a-c].jpg", ["train/deep/er/d.jpg", "training/x.jpg"]),
        ("odd[[]1].jpg", ["odd[1].jpg"]),
        ("**", PATHS),
        ("train", []),
        ("val/[.]*", ["val/.hidden"]),
        ("val?a.jpg", []),
        ("val[!x]a.jpg", []),
    ],
)
def test_glob_selects(glob: str, expected: list[str]) -> None:
    assert chosen(include=(glob,)) == expected


def test_exclude_wins_over_include() -> None:
    assert chosen(include=("*.jpg",), exclude=("train/", "new*")) == [
        "top.jpg",
        "val/a.jpg",
        "odd[1].jpg",
        "training/x.jpg",
    ]


def test_several_includes_are_combined() -> None:
    assert chosen(include=("*.png", "*.txt")) == ["readme.txt", "train/b.png"]


@pytest.mark.parametrize(
    "glob",
    [
        "",
        "/",
        "a//b",
        "[abc",
        "x[",
        "[]",
        "[z-a]",
        "a**",
        "**b/c",
        "a/***/b",
        "n\0",
        "**/" * 5 + "x",
        "[a--]",
        "val[/]a",
    ],
)
def test_an_invalid_glob_is_rejected_by_field_and_value(glob: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Selection.of(dataset(exclude=(glob,)))
    assert caught.value.field == "exclude"
    assert caught.value.value == glob


def test_many_stars_do_not_backtrack_exponentially() -> None:
    """With plain backtracking this would not end in any test: 20 stars over 900 letters."""
    assert chosen(include=("*a" * 20 + "*b",), paths=["a" * 900]) == []
    assert chosen(include=("*a" * 20 + "*b",), paths=["a" * 900 + "b"]) == ["a" * 900 + "b"]


# -- time of a match --------------------------------------------------------------------------------------------------


def naive(glob: str, path: str) -> bool:
    """The definition, by recursion over parts and characters."""
    anchored = "/" in glob
    parts = glob.removeprefix("/").split("/")
    if not anchored:
        parts.insert(0, "**")
    parts[-1] = parts[-1] or "**"
    return _naive_parts(parts, path.split("/"))


def _naive_parts(glob: list[str], path: list[str]) -> bool:
    if not glob:
        return not path
    if glob[0] == "**":
        if len(glob) == 1:
            return bool(path)
        return any(_naive_parts(glob[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and _naive_part(glob[0], path[0]) and _naive_parts(glob[1:], path[1:])


def _naive_part(glob: str, part: str) -> bool:
    if not glob:
        return not part
    if glob[0] == "*":
        return any(_naive_part(glob[1:], part[start:]) for start in range(len(part) + 1))
    if glob[0] == "[":
        negated, members = glob[1] == "!", glob[1 : glob.index("]")].removeprefix("!")
        rest = glob[glob.index("]") + 1 :]
        return bool(part) and (part[0] in members) != negated and _naive_part(rest, part[1:])
    return bool(part) and glob[0] in ("?", part[0]) and _naive_part(glob[1:], part[1:])


_PART = (
    st.lists(st.sampled_from(["a", "b", "*", "?", "[a]", "[!a]"]), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda part: "**" not in part)
)
_GLOB = st.builds(
    lambda parts, first, last: first + "/".join(parts) + last,
    st.lists(st.one_of(st.just("**"), _PART), min_size=1, max_size=6),
    st.sampled_from(["", "/"]),
    st.sampled_from(["", "/"]),
).filter(lambda glob: glob.split("/").count("**") <= 3)
_PATHS = st.lists(st.text("ab/", max_size=12), max_size=12)


@examples(1000)
@given(st.lists(_GLOB, min_size=1, max_size=3), _PATHS)
def test_globs_select_what_their_definition_says(globs: list[str], paths: list[str]) -> None:
    expected = [path for path in paths if any(naive(glob, path) for glob in globs)]
    assert chosen(include=tuple(globs), paths=paths) == expected


@pytest.mark.promise("S155")
@pytest.mark.parametrize("glob", ["/a/**/a/**/a/**/b", "**/a/**/a/a/**/b", "/a/**/a/**/a/**/b/"])
def test_the_steps_of_a_match_are_at_most_parts_times_pattern(glob: str) -> None:
    """With backtracking, three ``**`` over 500 parts take 20 million steps, and four 2,600 million."""
    steps = 0

    def counted(matches: PartMatcher) -> PartMatcher:
        def match(part: str) -> object:
            nonlocal steps
            steps += 1
            return matches(part)

        return match

    path = "/".join(["a"] * 500 + ["c"])
    parts = _parts("include", glob)
    built = _Crossings.of("include", glob, parts)
    crossings = _Crossings(
        [counted(one) for one in built.first],
        [[counted(one) for one in run] for run in built.between],
        [counted(one) for one in built.last],
        built.below,
    )
    assert not crossings.matches(path)
    assert steps <= len(path.split("/")) * len(parts)


@pytest.mark.promise("S155")
@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("/a/**/a/**/a/**/b", "a/" * 500 + "c"),
        ("**/" * 4 + "b", "a/" * 500 + "c"),
        ("/a/**/" + "a/" * 200 + "b", "a/" * 500 + "c"),
        ("*a" * 100 + "*b", "a" * 1000),
        ("**/" + "*a" * 100 + "*b/c", ("a" * 500 + "/") * 2 + "c"),
        ("?*" * 100 + "b", "a" * 1000),
        ("[ab]*" * 100 + "c/**/x", "a" * 1000 + "/x"),
        ("*" + "a" * 250 + "b*" + "a" * 250 + "c", "a" * 1000),
    ],
)
def test_the_worst_globs_end_at_once(glob: str, path: str) -> None:
    """Without a bound on backtracking each of these takes minutes at least; the test would time out."""
    for _ in range(20):
        assert chosen(include=(glob,), paths=[path]) == []
