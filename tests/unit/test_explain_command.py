"""``hayloft explain`` knows every errno, code, error and condition of the driver."""

from __future__ import annotations

import errno
import json
import os

import pytest

from csi_driver.cli.application import run_command
from csi_driver.cli.explain_command import explanations
from csi_driver.fuse.errnos import ERRNOS
from csi_driver.model import conditions
from csi_driver.model.errors import HayloftError
from csi_driver.rpc.statuses import STATUS_OF

pytestmark = pytest.mark.promise("S589")


@pytest.mark.parametrize("condition", conditions.ALL, ids=lambda condition: condition.reason)
def test_a_condition_is_explained_by_its_reason_and_by_its_message(condition: conditions.Condition) -> None:
    for question in (condition.reason, condition.reason.lower(), condition.message, f"event: {condition.sentence}"):
        assert condition in [found for one in explanations(question) for found in one.conditions], question


@pytest.mark.parametrize("number", sorted(set(ERRNOS.values())))
def test_an_errno_is_explained_by_name_number_and_text(number: int) -> None:
    classes = {cls.__name__ for cls, has in ERRNOS.items() if has == number}
    name = errno.errorcode[number]
    for question in (name, name.lower(), str(number), f"-{number}", f"OSError: [Errno {number}] {os.strerror(number)}"):
        found = {error for one in explanations(question) for error, _ in one.errors}
        assert classes <= found, question


@pytest.mark.parametrize("code", sorted({code.name for code in STATUS_OF.values()}))
def test_a_code_of_grpc_is_explained(code: str) -> None:
    (found,) = explanations(code)
    assert {name for name, _ in found.errors} == {cls.__name__ for cls, has in STATUS_OF.items() if has.name == code}


@pytest.mark.parametrize("cls", [*ERRNOS])
def test_every_error_has_a_meaning(cls: type[HayloftError]) -> None:
    found = explanations(cls.__name__)[0]
    assert errno.errorcode[ERRNOS[cls]] in found.text
    assert len(found.text) > 40


def test_a_stale_file_leads_to_what_to_do() -> None:
    (found,) = explanations("ESTALE")
    assert {conditions.OBJECTS_CHANGED, conditions.OBJECTS_GONE} <= set(found.conditions)


def test_what_the_kernel_says_of_a_dead_mount_is_known() -> None:
    assert conditions.MOUNT_DEAD in explanations("Transport endpoint is not connected")[0].conditions


def test_an_unknown_text_is_said_to_be_unknown(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["explain", "nothing of ours"]) == 6
    assert "docs/troubleshooting.md" in capfd.readouterr().err


def test_text_and_json_have_the_remedy(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run_command(["explain", "ObjectsChanged"]) == 0
    assert conditions.OBJECTS_CHANGED.remedy in capfd.readouterr().out
    assert run_command(["explain", "ObjectsChanged", "--json"]) == 0
    (document,) = json.loads(capfd.readouterr().out)
    assert document["conditions"][0]["remedy"] == conditions.OBJECTS_CHANGED.remedy
