"""Listings of synthetic datasets: any number of objects, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator

from csi_driver.model.snapshot import ObjectPage

PREFIX = "imagenet/"
LAYOUTS = ("classes", "flat", "shuffled")
"""``classes``: 1,300 files in a directory, as in ImageNet. ``flat``: all files in one directory. ``shuffled``: as
``classes``, listed in no order."""

PAGE_OBJECTS = 1_000
"""S3's page."""

FILES_PER_CLASS = 1_300
_STRIDE = 7_368_787
"""A prime: its multiples, modulo the number of objects, are in no order."""


def key_of(number: int, layout: str) -> str:
    if layout == "flat":
        return f"{PREFIX}train/ILSVRC2012_{number:010d}.JPEG"
    return f"{PREFIX}train/n{number // FILES_PER_CLASS:08d}/ILSVRC2012_{number:010d}.JPEG"


def size_of(number: int) -> int:
    return 80_000 + number * 31 % 60_000


def etag_of(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def pages(objects: int, layout: str) -> Iterator[ObjectPage]:
    for start in range(0, objects, PAGE_OBJECTS):
        numbers: range | list[int] = range(start, min(start + PAGE_OBJECTS, objects))
        if layout == "shuffled":
            numbers = [number * _STRIDE % objects for number in numbers]
        yield ObjectPage(
            [key_of(number, layout) for number in numbers],
            [size_of(number) for number in numbers],
            [etag_of(number) for number in numbers],
            [1_767_323_045_000_000_000] * len(numbers),
        )
