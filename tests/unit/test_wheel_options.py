"""With which options pip installs the packages of an image for another processor."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tools.wheel_options import options

INTO = Path("/opt/hayloft/lib/python3.11/site-packages")


@pytest.mark.parametrize(
    ("architecture", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64"), ("", "aarch64"), ("", "s390x")]
)
def test_pip_knows_the_processor_that_it_runs_on(architecture: str, machine: str) -> None:
    assert options(architecture, machine, "glibc 2.36", INTO) == []


def test_wheels_of_another_processor_are_those_that_its_c_library_can_load() -> None:
    words = options("arm64", "x86_64", "glibc 2.19", INTO)
    platforms = [word for option, word in itertools.pairwise(words) if option == "--platform"]
    assert platforms == [
        *("manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
    ]
    assert words[-3:] == ["--only-binary=:all:", "--target", str(INTO)]
    assert not any(word.isspace() or '"' in word for word in words), "they are words of a shell"


def test_the_other_way_round() -> None:
    assert "manylinux_2_36_x86_64" in options("amd64", "aarch64", "glibc 2.36", INTO)


@pytest.mark.parametrize(
    ("architecture", "c_library", "reason"),
    [
        ("arm", "glibc 2.36", "arm: the image is built for amd64 and arm64 alone"),
        ("s390x", "glibc 2.36", "s390x: "),
        ("arm64", "no glibc", "need the GNU C library 2"),
        ("arm64", "glibc 3.0", "need the GNU C library 2"),
        ("arm64", "glibc", "need the GNU C library 2"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture: str, c_library: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        options(architecture, "x86_64", c_library, INTO)
