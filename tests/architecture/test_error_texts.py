"""No message quotes the text of an exception that Hayloft did not compose: it may hold a secret."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from csi_driver.model import errors
from tests.architecture.source_tree import modules

_OWN = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"ProtocolError", "ChildFailed"}
_TEXT_FUNCTIONS = {"str", "repr", "format"}


def _names(expression: ast.expr | None) -> set[str]:
    if expression is None:
        return {"BaseException"}
    return {node.id if isinstance(node, ast.Name) else node.attr for node in _classes(expression)}


def _classes(expression: ast.expr) -> Iterator[ast.Name | ast.Attribute]:
    if isinstance(expression, ast.Tuple):
        for element in expression.elts:
            yield from _classes(element)
    elif isinstance(expression, ast.Name | ast.Attribute):
        yield expression


def _quotes(handler: ast.ExceptHandler) -> Iterator[int]:
    """Lines where the handler turns its exception into text."""

    def is_error(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == handler.name

    for node in (node for statement in handler.body for node in ast.walk(statement)):
        if isinstance(node, ast.FormattedValue) and is_error(node.value):
            yield node.lineno
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in _TEXT_FUNCTIONS and isinstance(node, ast.Call) and any(map(is_error, node.args)):
            yield node.lineno


def test_no_handler_of_a_foreign_exception_quotes_it() -> None:
    found = [
        f"{module}:{line}"
        for module in modules()
        for handler in ast.walk(module.tree)
        if isinstance(handler, ast.ExceptHandler) and handler.name and not _names(handler.type) <= _OWN
        for line in _quotes(handler)
    ]
    assert found == [], "use tracebacks.summary"
