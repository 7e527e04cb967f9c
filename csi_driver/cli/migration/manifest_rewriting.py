"""Finds the volumes of other drivers in manifests and rewrites them in place; all else stays as it is.

A volume that cannot be one of ours stays unchanged as a whole, and the report says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csi_driver.cli.migration.gcsfuse_rules import ANNOTATIONS
from csi_driver.cli.migration.gcsfuse_rules import DRIVER as GCSFUSE
from csi_driver.cli.migration.secret_rewriting import SecretKey, SecretsOfFile
from csi_driver.cli.migration.server_fields import drop_server_fields
from csi_driver.cli.migration.translation_rules import READ_ONLY, Outcome
from csi_driver.cli.migration.volume_translation import (
    PEERS,
    Refused,
    Row,
    Source,
    Supplement,
    Translation,
    translate,
)
from csi_driver.cli.migration.yaml_documents import mapping_of, scalar_text
from csi_driver.model.driver_name import DRIVER_NAME

_SIDECAR_PREFIX = "csi.storage.k8s.io/"
_NO_SIDECAR = ("controller-publish-secret", "controller-expand-secret", "node-expand-secret", "fstype")
_NO_REFERENCE = ("controllerPublishSecretRef", "controllerExpandSecretRef", "nodeExpandSecretRef", "fsType")


@dataclass
class Report:
    """What happened to one object."""

    title: str
    """Such as ``PersistentVolume/tokens``."""
    product: str = ""
    rows: list[Row] = field(default_factory=list)
    refusal: str = ""
    """Not empty: it is unchanged."""


@dataclass
class Rewriting:
    """Of all documents of a file."""

    supplement: Supplement
    reports: list[Report] = field(default_factory=list)
    _classes: set[str] = field(default_factory=set)
    _volumes: set[str] = field(default_factory=set)
    _claims: set[tuple[str, str]] = field(default_factory=set)
    _secrets: SecretsOfFile = field(default_factory=SecretsOfFile)

    def rewrite(self, documents: Sequence[Any]) -> None:
        """Changes the documents. Classes and volumes come before claims, and claims before pods, wherever they are."""
        objects = [one for document in documents for one in _objects(document)]
        self._secrets = SecretsOfFile.of(objects)
        for one in objects:
            if one.get("kind") == "StorageClass":
                self._rewrite_class(one)
            elif one.get("kind") == "PersistentVolume":
                self._rewrite_volume(one)
        for one in objects:
            if one.get("kind") == "PersistentVolumeClaim":
                self._rewrite_claim(one)
        for one in objects:
            if one.get("kind") not in ("StorageClass", "PersistentVolume", "PersistentVolumeClaim", "Secret"):
                self._rewrite_pods(one)
        for body, rows in self._secrets.rewrite():
            report = Report(_title(body), rows=rows)
            _drop_fields_of_the_server(body, report)
            self.reports.append(report)

    # -- classes and volumes -------------------------------------------------------------------------------------------

    def _rewrite_class(self, body: MutableMapping[str, Any]) -> None:
        driver = scalar_text(body.get("provisioner"))
        parameters = mapping_of(body, "parameters")
        if driver not in PEERS:
            return
        report = self._report(body, driver)
        reference = SecretKey.of_class(parameters)
        source = Source(
            driver,
            {key: scalar_text(value) for key, value in parameters.items() if not _is_sidecar(key)},
            _texts(body.get("mountOptions")),
            has_secret=reference is not None,
        )
        result = self._translated(report, source, reference)
        if result is None:
            return
        kept = {str(key): scalar_text(value) for key, value in parameters.items() if _is_sidecar(key)}
        for key in [key for key in kept if key.removeprefix(_SIDECAR_PREFIX).startswith(_NO_SIDECAR)]:
            del kept[key]
            report.rows.append(Row(str(key), Outcome.DROPPED, "the driver has no such call"))
        if reference is not None:
            for call in ("provisioner", "node-stage", "node-publish"):
                kept[f"{_SIDECAR_PREFIX}{call}-secret-name"] = reference.name
                kept[f"{_SIDECAR_PREFIX}{call}-secret-namespace"] = reference.namespace
        _drop_fields_of_the_server(body, report)
        body["provisioner"] = DRIVER_NAME
        body["parameters"] = _replaced(parameters, {**result.parameters, **kept}, result.origins)
        _set_mount_options(body, result)
        self._classes.add(_name(body))

    def _rewrite_volume(self, body: MutableMapping[str, Any]) -> None:
        spec = mapping_of(body, "spec")
        csi = mapping_of(spec, "csi")
        driver = scalar_text(csi.get("driver"))
        if driver not in PEERS:
            return
        report = self._report(body, driver)
        reference = SecretKey.of_volume(csi, "default")
        attributes = mapping_of(csi, "volumeAttributes")
        source = Source(
            driver,
            {str(key): scalar_text(value) for key, value in attributes.items()},
            _texts(spec.get("mountOptions")),
            handle=scalar_text(csi.get("volumeHandle")),
            has_secret=reference is not None,
        )
        result = self._translated(report, source, reference)
        if result is None:
            return
        self._volumes.add(_name(body))
        claim = mapping_of(spec, "claimRef")
        if claim:
            self._claims.add((scalar_text(claim.get("namespace")) or "default", scalar_text(claim.get("name"))))
        _drop_fields_of_the_server(body, report)
        csi["driver"] = DRIVER_NAME
        csi["volumeAttributes"] = _replaced(attributes, result.parameters, result.origins)
        for name in [name for name in _NO_REFERENCE if name in csi]:
            del csi[name]
            report.rows.append(Row(name, Outcome.DROPPED, "the driver has no such call"))
        if reference is not None:
            for name in ("nodeStageSecretRef", "nodePublishSecretRef"):
                csi.setdefault(name, {"name": reference.name, "namespace": reference.namespace})
        _set_mount_options(spec, result)
        _set_access_modes(spec, report)

    def _rewrite_claim(self, body: MutableMapping[str, Any]) -> None:
        spec = mapping_of(body, "spec")
        key = (_namespace(body), _name(body))
        ours = (
            key in self._claims
            or scalar_text(spec.get("volumeName")) in self._volumes
            or scalar_text(spec.get("storageClassName")) in self._classes
        )
        if not ours:
            return
        self._claims.add(key)
        report = Report(_title(body))
        _drop_fields_of_the_server(body, report)
        _set_access_modes(spec, report)
        if report.rows:
            self.reports.append(report)

    # -- pods ----------------------------------------------------------------------------------------------------------

    def _rewrite_pods(self, body: MutableMapping[str, Any]) -> None:
        """Pods, and all that makes pods of a template, custom resources included: what has ``spec`` with containers."""
        namespace = _namespace(body)
        for holder in list(_pod_holders(body)):
            report = Report(_title(body))
            spec = holder["spec"]
            left = 0
            for volume in spec.get("volumes") or []:
                if isinstance(volume, MutableMapping):
                    left += self._rewrite_volume_of_pod(volume, namespace, report, body)
            if left == 0:
                _drop_annotations(holder, report)
            if report.rows:
                _drop_fields_of_the_server(body, report)
                self.reports.append(report)
        for template in list(_claim_templates(body)):
            spec = mapping_of(template, "spec")
            if scalar_text(spec.get("storageClassName")) in self._classes:
                report = Report(_title(body))
                _set_access_modes(spec, report)
                if report.rows:
                    self.reports.append(report)

    def _rewrite_volume_of_pod(
        self, volume: MutableMapping[str, Any], namespace: str, report: Report, body: Mapping[str, Any]
    ) -> int:
        """1 if the volume is still one of Cloud Storage FUSE, whose annotations the pod then needs."""
        claim = mapping_of(volume, "persistentVolumeClaim")
        ours = (namespace, scalar_text(claim.get("claimName"))) in self._claims
        if ours and claim.get("readOnly") is not True:
            claim["readOnly"] = True
            text = "readOnly: true, with which a completely cached volume can be plain files"
            report.rows.append(Row(f"volume {scalar_text(volume.get('name'))}", Outcome.PARAMETER, text))
        csi = mapping_of(volume, "csi")
        driver = scalar_text(csi.get("driver"))
        if driver not in PEERS:
            return 0
        inner = self._report(body, driver, f" volume {scalar_text(volume.get('name'))}")
        attributes = mapping_of(csi, "volumeAttributes")
        reference = SecretKey.of_volume(csi, namespace)
        source = Source(
            driver,
            {str(key): scalar_text(value) for key, value in attributes.items()},
            inline=True,
            has_secret=reference is not None,
        )
        result = self._translated(inner, source, reference)
        if result is None:
            return int(driver == GCSFUSE)
        given = dict(result.parameters)
        if result.mount_options:
            given["mountOptions"] = ",".join(result.mount_options)
        csi["driver"] = DRIVER_NAME
        if "fsType" in csi:
            del csi["fsType"]
            inner.rows.append(Row("fsType", Outcome.DROPPED, "there is no file system to be made"))
        if csi.get("readOnly") is not True:
            csi["readOnly"] = True
            inner.rows.append(Row("readOnly", Outcome.PARAMETER, "readOnly: true"))
        csi["volumeAttributes"] = _replaced(attributes, given, result.origins)
        return 0

    # -- both ----------------------------------------------------------------------------------------------------------

    def _report(self, body: Mapping[str, Any], driver: str, rest: str = "") -> Report:
        report = Report(_title(body) + rest, PEERS[driver])
        self.reports.append(report)
        return report

    def _translated(self, report: Report, source: Source, reference: SecretKey | None) -> Translation | None:
        """None, with the reason in the report, if the volume stays what it is."""
        endpoint, region = self._secrets.service(reference)
        supplement = Supplement(
            self.supplement.endpoint or endpoint,
            self.supplement.region or region,
            self.supplement.google_workload_provider,
        )
        try:
            result = translate(source, supplement)
        except Refused as error:
            report.refusal = error.reason
            return None
        report.rows += result.rows
        if reference is not None:
            self._secrets.used(reference)
        return result


def _objects(document: Any) -> Iterator[MutableMapping[str, Any]]:
    """The objects of a document; those of a List one by one."""
    if not isinstance(document, MutableMapping):
        return
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        for item in items:
            if isinstance(item, MutableMapping):
                yield item
    else:
        yield document


def _pod_holders(body: Any) -> Iterator[MutableMapping[str, Any]]:
    """All mappings whose ``spec`` is that of a pod. A part that YAML's anchors name twice is looked at once."""
    return (one for one in _mappings(body) if isinstance(one.get("spec"), MutableMapping) and _is_pod(one["spec"]))


def _claim_templates(body: Any) -> Iterator[MutableMapping[str, Any]]:
    for one in _mappings(body):
        templates = one.get("volumeClaimTemplates")
        if isinstance(templates, list):
            yield from (template for template in templates if isinstance(template, MutableMapping))
        if isinstance(one.get("volumeClaimTemplate"), MutableMapping):
            yield one["volumeClaimTemplate"]


def _mappings(body: Any) -> Iterator[MutableMapping[str, Any]]:
    seen: set[int] = set()
    waiting = [body]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, MutableMapping):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _is_pod(spec: Mapping[str, Any]) -> bool:
    return isinstance(spec.get("containers"), list) and isinstance(spec.get("volumes"), list)


def _drop_annotations(holder: MutableMapping[str, Any], report: Report) -> None:
    metadata = mapping_of(holder, "metadata")
    annotations = mapping_of(metadata, "annotations")
    for name in [name for name in annotations if str(name).startswith(ANNOTATIONS)]:
        del annotations[name]
        report.rows.append(Row(f"annotation {name}", Outcome.DROPPED, "pods have no sidecar container for volumes"))
    if report.rows and "annotations" in metadata and not annotations:
        del metadata["annotations"]


def _drop_fields_of_the_server(body: MutableMapping[str, Any], report: Report) -> None:
    dropped = drop_server_fields(body)
    if dropped:
        report.rows.append(Row(", ".join(dropped), Outcome.DROPPED, "the API server sets them"))


def _set_access_modes(spec: MutableMapping[str, Any], report: Report) -> None:
    modes = _texts(spec.get("accessModes"))
    if modes and modes != ["ReadOnlyMany"]:
        _set_list(spec, "accessModes", ["ReadOnlyMany"])
        reason = f"accessModes: [ReadOnlyMany]. {READ_ONLY}"
        report.rows.append(Row("accessModes", Outcome.PARAMETER, reason))


def _set_mount_options(body: MutableMapping[str, Any], result: Translation) -> None:
    if result.mount_options:
        _set_list(body, "mountOptions", result.mount_options)
    else:
        body.pop("mountOptions", None)


def _set_list(body: MutableMapping[str, Any], name: str, values: Sequence[str]) -> None:
    """In the style, flow or block, of the list that is there."""
    old = body.get(name)
    if isinstance(old, list) and old:
        del old[len(values) :]
        for at, value in enumerate(values):
            if at < len(old):
                old[at] = value
            else:
                old.append(value)
    else:
        body[name] = list(values)


def _replaced(old: Mapping[str, Any], new: Mapping[str, str], origins: Mapping[str, str]) -> Any:
    """A mapping like the old one, with its comments where the key, or the one that it was made of, had some."""
    made: Any = type(old)()
    for name, value in new.items():
        made[name] = value
    comments = getattr(getattr(old, "ca", None), "items", None)
    if comments:
        for name in new:
            comment = comments.get(origins.get(name, name))
            if comment is not None:
                made.ca.items[name] = comment
    return made


def _is_sidecar(key: object) -> bool:
    return str(key).startswith(_SIDECAR_PREFIX)


def _texts(value: Any) -> list[str]:
    return [scalar_text(one) for one in value] if isinstance(value, list) else []


def _name(body: Mapping[str, Any]) -> str:
    return scalar_text(mapping_of(body, "metadata").get("name"))


def _namespace(body: Mapping[str, Any]) -> str:
    return scalar_text(mapping_of(body, "metadata").get("namespace")) or "default"


def _title(body: Mapping[str, Any]) -> str:
    return f"{scalar_text(body.get('kind')) or 'object'}/{_name(body)}"
