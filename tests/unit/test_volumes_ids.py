"""Volume ids, and file names for ids of any characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.volumes.volume_ids import (
    check_id,
    dynamic_volume_id,
    file_name,
    is_dynamic_volume_id,
    readable_part,
)

_NAME = "pvc-0f3c9a1e-5a0e-4c0e-8f1a-3a6f1d2b4c5d"
_names = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f"), min_size=1, max_size=300)


def test_the_same_name_gives_the_same_readable_id() -> None:
    assert dynamic_volume_id(_NAME) == dynamic_volume_id(_NAME)
    assert _NAME in dynamic_volume_id(_NAME)
    assert readable_part(dynamic_volume_id(_NAME)) == _NAME
    assert readable_part("of-another-form") == "of-another-form"


def test_similar_names_give_different_ids() -> None:
    names = ["a b", "a-b", "A b", "a_b", "a" * 200, "a" * 201]
    assert len({dynamic_volume_id(name) for name in names}) == len(names)


@given(_names)
def test_every_dynamic_id_is_short_recognised_and_its_own_file_name(name: str) -> None:
    volume_id = dynamic_volume_id(name)
    assert len(volume_id.encode()) <= 128
    assert is_dynamic_volume_id(volume_id)
    assert "/" not in file_name(volume_id)


def test_the_id_of_a_static_volume_is_not_recognised_as_a_dynamic_one() -> None:
    assert not is_dynamic_volume_id("my-dataset")
    assert not is_dynamic_volume_id(_NAME)


@given(_names)
def test_no_id_escapes_its_directory_or_hides(volume_id: str) -> None:
    name = file_name(volume_id)
    assert name
    assert name[0] != "."
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    assert len(name) <= 100


@pytest.mark.parametrize("volume_id", ["..", ".", "../x", "/etc/passwd", "a/../../b", "a\\b", ".hidden", "CON", "é"])
def test_ids_with_special_characters_become_one_plain_file_name(volume_id: str) -> None:
    assert file_name(volume_id).startswith("_")


def test_ids_that_differ_only_in_case_have_different_file_names_even_without_case() -> None:
    names = [file_name(volume_id) for volume_id in ("data", "Data", "DATA", "_data")]
    assert len({name.lower() for name in names}) == 4


@given(st.sets(_names, min_size=2, max_size=20))
def test_different_ids_never_share_a_file_name(volume_ids: set[str]) -> None:
    assert len({file_name(volume_id) for volume_id in volume_ids}) == len(volume_ids)


def test_an_invalid_id_is_refused_with_the_name_of_its_field() -> None:
    with pytest.raises(MissingParameter, match="volume id"):
        check_id("volume id", "")
    with pytest.raises(InvalidParameter, match="volume id"):
        check_id("volume id", "a\nb")
    with pytest.raises(InvalidParameter, match="4096"):
        check_id("volume id", "x" * 5000)
    check_id("volume id", "x" * 200)
