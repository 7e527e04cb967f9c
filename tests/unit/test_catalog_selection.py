from __future__ import annotations

import pytest

from csi_driver.catalog.selection import Selection
from csi_driver.model.errors import InvalidParameter
from tests.support.datasets import dataset

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
