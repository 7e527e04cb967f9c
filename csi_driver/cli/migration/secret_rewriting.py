"""Secrets of volumes that were rewritten: keys under the names of ours, without what belongs to the volume."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from csi_driver.cli.migration.translation_rules import Outcome
from csi_driver.cli.migration.volume_translation import Row
from csi_driver.cli.migration.yaml_documents import scalar_text
from csi_driver.model.errors import HayloftError
from csi_driver.objects.credentials import parse_secret

_RENAMED = {
    "accessKeyID": "access_key_id",
    "secretAccessKey": "secret_access_key",
    "key_id": "access_key_id",
    "access_key": "secret_access_key",
}
_OF_THE_VOLUME = ("endpoint", "region")
_CALLS = ("node-stage", "node-publish", "provisioner")


@dataclass(frozen=True, slots=True)
class SecretKey:
    """Which Secret."""

    namespace: str
    name: str

    @classmethod
    def of_class(cls, parameters: Mapping[str, Any]) -> Self | None:
        """The one that a StorageClass names; None: none."""
        for call in _CALLS:
            name = scalar_text(parameters.get(f"csi.storage.k8s.io/{call}-secret-name"))
            if name:
                namespace = scalar_text(parameters.get(f"csi.storage.k8s.io/{call}-secret-namespace"))
                return cls(namespace or "default", name)
        return None

    @classmethod
    def of_volume(cls, csi: Mapping[str, Any], namespace: str) -> Self | None:
        """The one of a volume; in its pod's namespace if it names none."""
        for field_name in ("nodeStageSecretRef", "nodePublishSecretRef"):
            reference = csi.get(field_name)
            if isinstance(reference, Mapping) and scalar_text(reference.get("name")):
                return cls(scalar_text(reference.get("namespace")) or namespace, scalar_text(reference["name"]))
        return None


@dataclass
class SecretsOfFile:
    """Those that a file has, and those of them that volumes of ours use from now on."""

    _bodies: dict[SecretKey, MutableMapping[str, Any]] = field(default_factory=dict)
    _used: list[SecretKey] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Sequence[MutableMapping[str, Any]]) -> Self:
        found = cls()
        for one in objects:
            metadata = one.get("metadata")
            if one.get("kind") == "Secret" and isinstance(metadata, Mapping):
                namespace = scalar_text(metadata.get("namespace")) or "default"
                found._bodies[SecretKey(namespace, scalar_text(metadata.get("name")))] = one
        return found

    def used(self, key: SecretKey) -> None:
        """Has it rewritten, if the file has it."""
        if key in self._bodies and key not in self._used:
            self._used.append(key)

    def service(self, key: SecretKey | None) -> tuple[str, str]:
        """Endpoint and region that the Secret names; empty: none."""
        values = _values(self._bodies.get(key, {})) if key is not None else {}
        return values.get("endpoint", ""), values.get("region", "")

    def rewrite(self) -> list[tuple[MutableMapping[str, Any], list[Row]]]:
        """Changes them in place. Each with what happened to its keys, without any value."""
        return [(self._bodies[key], _rewritten(self._bodies[key])) for key in self._used]


def _rewritten(body: MutableMapping[str, Any]) -> list[Row]:
    rows = []
    for part in ("stringData", "data"):
        values = body.get(part)
        if not isinstance(values, MutableMapping):
            continue
        for name in list(values):
            if str(name) in _OF_THE_VOLUME:
                del values[name]
                text = "it is a parameter now; give this Secret another name if the other driver still reads it"
                rows.append(Row(str(name), Outcome.DROPPED, text))
            elif str(name) in _RENAMED and _RENAMED[str(name)] not in values:
                _rename(values, str(name))
                rows.append(Row(str(name), Outcome.PARAMETER, _RENAMED[str(name)]))
    try:
        parse_secret(_values(body))
    except HayloftError as error:
        rows.append(Row("its keys", Outcome.IMPOSSIBLE, str(error)))
    return rows


def _rename(values: MutableMapping[str, Any], name: str) -> None:
    """In its place, with its comment."""
    new, value, at = _RENAMED[name], values[name], list(values).index(name)
    comments = getattr(getattr(values, "ca", None), "items", {})
    comment = comments.get(name)
    del values[name]
    insert = getattr(values, "insert", None)
    if insert is None:
        values[new] = value
    else:
        insert(at, new, value)
    if comment is not None:
        comments[new] = comment


def _values(body: Mapping[str, Any]) -> dict[str, str]:
    """The plain texts of a Secret; what is no base64 of a text is left out."""
    found: dict[str, str] = {}
    data, plain = body.get("data"), body.get("stringData")
    if isinstance(data, Mapping):
        for name, value in data.items():
            try:
                found[str(name)] = base64.b64decode(scalar_text(value), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError, ValueError):
                continue
    if isinstance(plain, Mapping):
        found.update({str(name): scalar_text(value) for name, value in plain.items()})
    return found
