"""Templates in StorageClass parameters: ``url: s3://data/${pvc.namespace}/${pvc.metadata.annotations['team']}``.

The author of a claim chooses its name and its annotations, and an administrator wrote the class around them. So a
value that is put in is one plain word: it can be a part of a path, and add none; it can neither be nor end the name of
a host, a scheme, a list or an option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from csi_driver.model.errors import InvalidParameter

_METADATA_PREFIX = "csi.storage.k8s.io/"
_CLAIM_NAME, _CLAIM_NAMESPACE = "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace"

_SOURCES = {
    "pvc.name": _CLAIM_NAME,
    "pvc.metadata.name": _CLAIM_NAME,
    "pvc.namespace": _CLAIM_NAMESPACE,
    "pvc.metadata.namespace": _CLAIM_NAMESPACE,
    "pv.name": "csi.storage.k8s.io/pv/name",
    "pv.metadata.name": "csi.storage.k8s.io/pv/name",
}
"""The keys that external-provisioner adds with --extra-create-metadata: these three, and no annotations (6.4)."""

_HOST_SOURCES = ("pvc.namespace", "pvc.metadata.namespace")
"""What may be part of a host's name: namespaces have no dots, and are made by administrators. A name with dots could be
a host of its own, which the author of the claim would choose."""

_HOST = re.compile(r"(?:https?|ftp|sftp|ssh|hdfs|webhdfs)://([^/]*)", re.IGNORECASE)
_MARK = "\0"
"""In place of a template."""

_TEMPLATE = re.compile(r"\$\{([^}]*)\}")
_ANNOTATION = re.compile(
    r"pvc(?:\.metadata)?\.annotations\[(['\"])((?:[a-z0-9][a-z0-9.-]{0,252}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62})\1\]"
)
_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
"""One part of a path: neither ``.`` nor ``..``, and no character that has a meaning in a URL, a glob or a list."""

_WORDS_ALLOWED = "letters, digits and ._- between them, at most 253: one part of a path"

Annotations = Callable[[str, str], Mapping[str, str]]
"""Of a claim, by namespace and name. Asked only for a template that needs them, and once for a call. Blocks for
seconds; raises InvalidParameter, KubernetesUnavailable."""


def expand_templates(parameters: Mapping[str, str], annotations: Annotations | None = None) -> dict[str, str]:
    """The parameters with their templates replaced, without those that Kubernetes added. Raises InvalidParameter, and
    as ``annotations``."""
    given = _Given(parameters, annotations)
    for key, value in parameters.items():
        _check_place(key, value.strip())
    return {
        key: _TEMPLATE.sub(lambda match, key=key: given.value(key, match[1]), value)  # type: ignore[misc]
        for key, value in parameters.items()
        if not key.startswith(_METADATA_PREFIX)
    }


def _check_place(key: str, value: str) -> None:
    if key == "mirrors":
        _check_mirrors(value)
        return
    names = _TEMPLATE.findall(value)
    marked = _TEMPLATE.sub(_MARK, value)  # names of annotations have slashes
    if _MARK in marked.partition("://")[0] and "://" in marked:
        raise InvalidParameter(key, value, "no template before ://")
    host = _HOST.match(marked)
    for name in names[: host[0].count(_MARK)] if host else ():
        if name not in _HOST_SOURCES:
            raise InvalidParameter(key, f"${{{name}}}", "${pvc.namespace} in the name of a host")


def _check_mirrors(value: str) -> None:
    """Several URLs, none of which begins with a host; those of endpoints are in their options."""
    marked = _TEMPLATE.sub(_MARK, value)
    for mirror in re.split(r"[,\n]", marked):
        place, _, options = mirror.partition("?")
        if _MARK in options or _MARK in place.partition("://")[0]:
            raise InvalidParameter("mirrors", value, "templates in buckets and prefixes only")


class _Given:
    """What is known of the claim in one call."""

    def __init__(self, parameters: Mapping[str, str], annotations: Annotations | None) -> None:
        self._parameters, self._annotations = parameters, annotations
        self._found: Mapping[str, str] | None = None

    def value(self, parameter: str, name: str) -> str:
        """Raises InvalidParameter, and as ``Annotations``."""
        template = f"${{{name}}}"
        annotation = _ANNOTATION.fullmatch(name)
        if annotation is not None:
            value = self._annotation(parameter, template, annotation[2])
        elif name in _SOURCES:
            value = self._metadata(parameter, template, _SOURCES[name])
        else:
            known = ", ".join(f"${{{known}}}" for known in (*_SOURCES, "pvc.metadata.annotations['NAME']"))
            raise InvalidParameter(parameter, template, f"the templates {known}")
        if not _WORD.fullmatch(value):
            shown = value if len(value) <= 64 else f"{value[:64]}…"
            raise InvalidParameter(parameter, shown, f"for {template} {_WORDS_ALLOWED}")
        return value

    def _metadata(self, parameter: str, template: str, source: str) -> str:
        value = self._parameters.get(source, "")
        if not value:
            remedy = "Start external-provisioner with --extra-create-metadata, which passes these names to the driver"
            raise InvalidParameter(parameter, template, "a template whose name is known", remedy)
        return value

    def _annotation(self, parameter: str, template: str, annotation: str) -> str:
        namespace = self._metadata(parameter, template, _CLAIM_NAMESPACE)
        claim = self._metadata(parameter, template, _CLAIM_NAME)
        if self._annotations is None:
            remedy = "This process has no access to the claims of a cluster"
            raise InvalidParameter(parameter, template, "a template of names", remedy)
        if self._found is None:
            self._found = self._annotations(namespace, claim)
        value = self._found.get(annotation, "").strip()
        if not value:
            remedy = f"kubectl -n {namespace} annotate pvc {claim} {annotation}=VALUE; the StorageClass asks for it"
            raise InvalidParameter(parameter, template, f"an annotation that the claim {namespace}/{claim} has", remedy)
        return value
