"""What a volume is read for, in one word, and the defaults that follow from it (decision 30)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

ProfileName = Literal["training", "inference", "analytics"]
WholeFiles = Literal["none", "weights", "all"]

MIB = 1 << 20

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # Samples in random order, epoch after epoch: the defaults of the fields are made for it. No intent of complete
    # files, since the tokens of a language model are a ``.bin`` too, and are read in windows.
    "training": {},
    # A server loads a model once, through a memory map, and all of it. 128 MiB are 16 fetches of 8 MiB.
    "inference": {"warmup": "memory", "whole_files": "weights", "read_ahead_bytes": 128 * MIB},
    # Column chunks of Parquet files: what lies behind one is often another column, which nothing reads.
    "analytics": {"read_ahead_bytes": 8 * MIB},
}

PROFILES = tuple(_DEFAULTS)

PROFILE_FIELDS = frozenset(field for defaults in _DEFAULTS.values() for field in defaults)
"""The fields of ``VolumeParameters`` whose default depends on the profile."""


def defaults_of(profile: str) -> Mapping[str, Any]:
    """By field of ``VolumeParameters``, where the profile has another default than the field."""
    return _DEFAULTS[profile]
