"""Log lines, and the secrets that are redacted from them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from csi_driver import telemetry


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("csi_driver")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], root.level, ours.level = before


def test_a_text_line_holds_time_level_process_message_and_fields() -> None:
    out = io.StringIO()
    telemetry.set_up_logging("node", "info", "text", out)
    logging.getLogger("csi_driver.x").info("done", extra=telemetry.fields(volume_id="v 1", code="OK", nothing=None))
    (line,) = out.getvalue().splitlines()
    assert line[10] == "T"
    assert line.endswith('Z INFO node csi_driver.x done volume_id="v 1" code=OK')


def test_a_json_line_is_one_object() -> None:
    out = io.StringIO()
    telemetry.set_up_logging("cache", "debug", "json", out)
    logging.getLogger("csi_driver.x").debug("a %s", "b\nc", extra=telemetry.fields(size_bytes=5))
    entry = json.loads(out.getvalue())
    assert (entry["level"], entry["process"], entry["message"], entry["size_bytes"]) == ("DEBUG", "cache", "a b\nc", 5)


def test_a_message_cannot_forge_a_second_line() -> None:
    out = io.StringIO()
    telemetry.set_up_logging("node", "info", "text", out)
    logging.getLogger("csi_driver.x").info("first\n2026 INFO second", extra=telemetry.fields(name="a\nb"))
    assert len(out.getvalue().splitlines()) == 1


def test_a_traceback_follows_indented() -> None:
    out = io.StringIO()
    telemetry.set_up_logging("node", "info", "text", out)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("csi_driver.x").exception("oh")
    first, *rest = out.getvalue().splitlines()
    assert first.endswith("oh")
    assert rest[-1].strip() == "ValueError", "what it says is not shown"
    assert f"{__file__}:" in rest[0]
    assert all(line.startswith("    ") for line in rest)


def test_the_level_is_for_this_package_and_other_libraries_log_from_warning_on() -> None:
    out = io.StringIO()
    telemetry.set_up_logging("node", "warning", "text", out)
    logging.getLogger("csi_driver.x").info("quiet")
    logging.getLogger("botocore").info("chatter")
    logging.getLogger("botocore").warning("heard")
    assert [line.split()[-1] for line in out.getvalue().splitlines()] == ["heard"]


@pytest.mark.parametrize(
    "name",
    [
        "access_key",
        "secretAccessKey",
        "AWS_SESSION_TOKEN",
        "csi.storage.k8s.io/serviceAccount.tokens",
        "key_id",
        "password",
        "azureAccountKey",
        "sas-token",
    ],
)
def test_values_of_secret_names_are_redacted(name: str) -> None:
    assert telemetry.redact({name: "x"}) == {name: "***"}


@pytest.mark.parametrize("name", ["url", "endpoint", "include", "uid", "fileMode", "dataset", "caBundle"])
def test_values_of_other_names_are_kept(name: str) -> None:
    assert telemetry.redact({name: "x"}) == {name: "x"}


def test_urls_lose_user_and_query_and_long_values_are_cut() -> None:
    shown = telemetry.redact({"url": "https://user:pw@host/path?sig=abc", "x": "y" * 1000, "z": "BEGIN PRIVATE KEY"})
    assert shown["url"] == "https://host/path"
    assert len(shown["x"]) < 300
    assert shown["z"] == "***"
