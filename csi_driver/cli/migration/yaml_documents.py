"""Reads and writes YAML so that comments, order and quotes stay. Only here is ruamel.yaml imported, and when it is
used."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from io import StringIO
from typing import Any

from csi_driver.model.errors import InvalidParameter

MOST_BYTES = 16 << 20
_TEMPLATE = re.compile(
    r"\{\{-?\s*(?:\.|\$|/\*|(?:include|template|tpl|if|else|end|range|with|define|block|toYaml|required|default|printf)\b)"
)
_INDENTED_LIST = re.compile(r"^( *)[^\s#-][^\n]*:[ ]*(?:#[^\n]*)?\n\1  - ", re.MULTILINE)


def read_documents(name: str, data: bytes) -> list[Any]:
    """All documents of a file. Raises InvalidParameter with the line of a mistake; ImportError without ruamel.yaml."""
    from ruamel.yaml.error import YAMLError

    if len(data) > MOST_BYTES:
        raise InvalidParameter("FILE", name, f"a file of at most {MOST_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidParameter("FILE", name, "text in UTF-8") from None
    found = _TEMPLATE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        remedy = "Render it first: helm template RELEASE CHART | hayloft migrate -"
        raise InvalidParameter("FILE", name, f"manifests of Kubernetes; line {line} is a template of Helm", remedy)
    try:
        return list(_round_trip(text).load_all(text))
    except (YAMLError, ValueError) as error:
        raise InvalidParameter("FILE", name, "manifests of Kubernetes in YAML", _place(error)) from None
    except RecursionError:
        raise InvalidParameter("FILE", name, "manifests of Kubernetes in YAML", "It is nested too deep") from None


def written(documents: list[Any], like: str) -> str:
    """The documents as text, with lists indented as in the text that they were read from."""
    stream = StringIO()
    _round_trip(like).dump_all(documents, stream)
    return stream.getvalue()


def scalar_text(value: Any) -> str:
    """As Kubernetes reads it: true and false in small letters; empty for nothing, and for what is no scalar."""
    if value is None or isinstance(value, Mapping | list | set):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def mapping_of(body: Mapping[str, Any], name: str) -> Any:
    """The mapping of that name; an empty one if there is none, or something else."""
    value = body.get(name)
    return value if isinstance(value, MutableMapping) else {}


def _round_trip(text: str) -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    if _INDENTED_LIST.search(text):
        yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.explicit_start = text.lstrip().startswith("---")
    return yaml


def _place(error: Exception) -> str:
    """Line and problem. Not the text of the exception: that of a key that is there twice has both values."""
    problem = (
        "a key is there twice" if type(error).__name__.startswith("DuplicateKey") else getattr(error, "problem", "")
    )
    mark = getattr(error, "problem_mark", None)
    place = f"Line {mark.line + 1}: " if mark is not None else ""
    return f"{place}{problem or 'it cannot be read'}"
