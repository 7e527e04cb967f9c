"""Errors survive the way through a status."""

from __future__ import annotations

import pytest

from csi_driver.model.errors import HayloftError, InvalidParameter, TransientStoreError
from csi_driver.rpc.statuses import error_from, leaves, message_of


@pytest.mark.parametrize("leaf", sorted(leaves(), key=lambda cls: cls.__name__))
def test_an_error_is_made_again_from_its_name_and_text(leaf: type[HayloftError]) -> None:
    error = error_from(leaf.__name__, "what was said")
    assert type(error) is leaf
    assert str(error) == "what was said"


def test_no_error_is_made_from_a_name_that_is_not_ours() -> None:
    assert error_from("KeyError", "text") is None
    assert error_from("HayloftError", "text") is None
    assert error_from(None, "text") is None


def test_the_text_of_a_composed_message_is_kept() -> None:
    error = InvalidParameter("url", "ftp//", "scheme://bucket", "Mend it")
    assert message_of(error) == "url: 'ftp//' is not allowed; allowed: scheme://bucket. Mend it"
    assert str(error_from("InvalidParameter", message_of(error))) == message_of(error)


def test_a_message_is_cut_to_what_a_status_may_carry() -> None:
    text = message_of(TransientStoreError("é" * 50_000))
    assert len(text) < 3000
    assert text.endswith("…")


def test_bytes_that_are_no_text_become_readable() -> None:
    assert message_of(HayloftError(b"key-\xff".decode("utf-8", "surrogateescape"))) == "key-\\udcff"
