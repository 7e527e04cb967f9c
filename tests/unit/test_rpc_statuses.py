"""Errors survive the transfer in a status."""

from __future__ import annotations

import pytest

from csi_driver.model.errors import HayloftError, InvalidParameter, TransientStoreError
from csi_driver.rpc.statuses import error_from, leaves, message_of


@pytest.mark.parametrize("leaf", sorted(leaves(), key=str))
def test_an_error_is_reconstructed_from_its_class_name_and_text(leaf: type[HayloftError]) -> None:
    error = error_from(leaf.__name__, "what was said")
    assert type(error) is leaf
    assert str(error) == "what was said"


def test_no_error_is_reconstructed_from_an_unknown_class_name() -> None:
    assert error_from("KeyError", "text") is None
    assert error_from("HayloftError", "text") is None
    assert error_from(None, "text") is None


def test_the_text_of_a_composed_message_is_preserved() -> None:
    error = InvalidParameter("url", "ftp//", "scheme://bucket", "Mend it")
    assert message_of(error) == "url: 'ftp//' is not allowed; allowed: scheme://bucket. Mend it"
    assert str(error_from("InvalidParameter", message_of(error))) == message_of(error)


def test_a_message_is_truncated_to_the_limit_of_a_status() -> None:
    text = message_of(TransientStoreError("é" * 50_000))
    assert len(text) < 3000
    assert text.endswith("…")


def test_bytes_that_are_not_utf8_are_escaped() -> None:
    assert message_of(HayloftError(b"key-\xff".decode("utf-8", "surrogateescape"))) == "key-\\udcff"
