"""``hayloft explain``: what an errno, a gRPC code, a condition or a message means, and what to do.

Everything is looked up in the tables that the driver itself uses: ``model/conditions.py``, ``fuse/errnos.py``,
``rpc/statuses.py``, and which error puts a volume into which condition (``daemon/read_errors.py``).
"""

from __future__ import annotations

import errno
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from csi_driver.cli import complain
from csi_driver.cli import options as flags
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.text_tables import labelled, terminal_width, write, write_json
from csi_driver.daemon.read_errors import conditions_of
from csi_driver.fuse.errnos import ERRNOS
from csi_driver.model import conditions
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import HayloftError
from csi_driver.rpc.statuses import STATUS_OF

_WORD = re.compile(r"[A-Za-z][A-Za-z_]+")

_OF_THE_KERNEL = {
    "ENOTCONN": (conditions.MOUNT_DEAD,),
    "ECONNABORTED": (conditions.MOUNT_DEAD, conditions.KERNEL_TIMEOUT_SHORT),
    "ENFILE": (conditions.TOO_MANY_OPEN_FILES,),
}
"""What the kernel answers by itself, or for the daemon."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One answer."""

    name: str
    text: str
    errors: tuple[tuple[str, str], ...] = ()
    """Classes of the driver's errors that have this errno or code, and what they mean."""
    conditions: tuple[Condition, ...] = ()


def explain(question: flags.Question, json: flags.Json = False) -> int:
    """Say what an error means, and what to do.

    An errno (ESTALE, 116), a gRPC code, a condition, or a message of Hayloft."""
    found = explanations(question)
    if json:
        write_json([_document(one) for one in found])
    elif found:
        width = terminal_width()
        blocks = [explanation_lines(one, width) for one in found]
        write([line for number, block in enumerate(blocks) for line in ([""] if number else []) + block])
    else:
        complain(
            f"{question!r} is no errno, gRPC code, condition or error of Hayloft, and contains none; "
            "docs/troubleshooting.md lists symptoms"
        )
    return ExitCode.SUCCESS if found else ExitCode.FINDINGS


def explanations(question: str) -> list[Explanation]:
    """Of a name or number; of a text, of all names that it contains. Empty: nothing is known of it."""
    question = question.strip()
    exact = _exactly(question)
    if exact:
        return exact
    found = {(one.name, one.text): one for one in _in_text(question)}
    return list(found.values())


def _exactly(word: str) -> list[Explanation]:
    """Of a word that is a name or number of the tables: mostly one, and both for a condition that has the name of an
    error."""
    if word.lstrip("-").isdigit():
        name = errno.errorcode.get(abs(int(word)))
        return [_of_errno(name)] if name else []
    upper = word.upper()
    if upper in errno.errorcode.values():
        return [_of_errno(upper)]
    code = upper.replace(" ", "_")
    if code in {one.name for one in STATUS_OF.values()}:
        return [_of_code(code)]
    return [
        *(_of_error(cls) for cls in ERRNOS if cls.__name__.lower() == word.lower()),
        *(_of_condition(condition) for condition in conditions.ALL if condition.reason.lower() == word.lower()),
    ]


def _in_text(text: str) -> Iterator[Explanation]:
    lower = text.lower()
    for condition in conditions.ALL:
        if condition.reason.lower() in lower or condition.sentence.lower() in lower or lower in _whole(condition):
            yield _of_condition(condition)
    for word in _WORD.findall(text):
        if word[:1].isupper():
            yield from _exactly(word)
    for number in sorted(set(ERRNOS.values())):
        if os.strerror(number).lower() in lower:
            yield _of_errno(errno.errorcode[number])


def _whole(condition: Condition) -> str:
    return condition.message.lower()


def _of_errno(name: str) -> Explanation:
    number = next(number for number, known in errno.errorcode.items() if known == name)
    classes = [cls for cls, has in ERRNOS.items() if has == number]
    found = [*_OF_THE_KERNEL.get(name, ())]
    for cls in classes:
        found.extend(conditions_of(cls))
    text = f"errno {number}, {os.strerror(number)}"
    if not classes and not found:
        text += "; no error of Hayloft has it: it is of the kernel, or of another program"
    return Explanation(name, text, _described(classes), conditions.distinct(found))


def _of_code(name: str) -> Explanation:
    classes = [cls for cls, code in STATUS_OF.items() if code.name == name]
    found = [condition for cls in classes for condition in conditions_of(cls)]
    return Explanation(
        name, "a gRPC code, in events of kubelet and the sidecars", _described(classes), conditions.distinct(found)
    )


def _of_error(cls: type[HayloftError]) -> Explanation:
    number = errno.errorcode[ERRNOS[cls]]
    text = f"{_meaning(cls)} To a reader {number}, to a caller of CSI {STATUS_OF[cls].name}."
    return Explanation(cls.__name__, text, (), conditions.distinct(conditions_of(cls)))


def _of_condition(condition: Condition) -> Explanation:
    return Explanation(condition.reason, f"a condition of a volume or node ({condition.severity})", (), (condition,))


def _described(classes: list[type[HayloftError]]) -> tuple[tuple[str, str], ...]:
    return tuple((cls.__name__, _meaning(cls)) for cls in classes)


def _meaning(cls: type[HayloftError]) -> str:
    """The first paragraph of its docstring, which is what the class promises."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def explanation_lines(one: Explanation, width: int) -> list[str]:
    """For a terminal of this width; 0: any."""
    lines = labelled(one.name, one.text, width, len(one.name) + 2)
    for name, meaning in one.errors:
        lines += labelled("  error", f"{name}: {meaning}", width)
    for condition in one.conditions:
        lines += labelled("  means", f"{condition.sentence}. ({condition.reason}, {condition.severity})", width)
        lines += labelled("  do", f"{condition.remedy}.", width)
    return lines


def _document(one: Explanation) -> dict[str, Any]:
    return {
        "name": one.name,
        "text": one.text,
        "errors": [{"name": name, "meaning": meaning} for name, meaning in one.errors],
        "conditions": [
            {
                "reason": condition.reason,
                "severity": str(condition.severity),
                "sentence": condition.sentence,
                "remedy": condition.remedy,
            }
            for condition in one.conditions
        ],
    }
