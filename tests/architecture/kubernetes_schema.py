"""What an API server checks of an object, as far as it can be known without one.

Field names and types are those of the OpenAPI schema of Kubernetes (``kubernetes-validate``). That has no values, so
they are added to it here: enums from the Go types of the API (``kubernetes_enums.json``, by
``tools/kubernetes_enums.py``), and the forms of quantities, names, ports and paths. Rules between fields are functions.
Admission, defaults, and rules that no rule here repeats are left to a real server: ``kubectl apply
--dry-run=server``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by _validator: jsonschema takes more than a second, in each process that collects tests
    from jsonschema.validators import Draft202012Validator

KUBERNETES = "1.37"

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_LABEL_KEY = rf"({_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
_PORT_NAME = r"(?=[a-z0-9-]{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*"
_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)"
_QUANTITY = rf"{_NUMBER}([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?"

_CORE = "io.k8s.api.core.v1"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_QUANTITY_TYPE = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_PORT = {"minimum": 1, "maximum": 65535}


def _form(pattern: str) -> dict[str, Any]:
    return {"pattern": rf"\A(?:{pattern})\Z"}


_LABELS = {"propertyNames": _form(_LABEL_KEY), "additionalProperties": {"type": "string", **_form(_LABEL_VALUE)}}
_ABSOLUTE = _form(r"/[^:]*")

FORMS: dict[str, dict[str, dict[str, Any]]] = {
    f"{_META}.ObjectMeta": {
        "name": {**_form(_SUBDOMAIN), "maxLength": 253},
        "namespace": _form(_LABEL),
        "labels": _LABELS,
        "annotations": {"propertyNames": _form(_LABEL_KEY)},
    },
    f"{_META}.LabelSelector": {"matchLabels": _LABELS},
    f"{_META}.LabelSelectorRequirement": {"operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}},
    f"{_CORE}.PodSpec": {"nodeSelector": _LABELS, "subdomain": _form(_LABEL), "serviceAccountName": _form(_SUBDOMAIN)},
    f"{_CORE}.Container": {"name": _form(_LABEL), "image": {"minLength": 1}},
    f"{_CORE}.ContainerPort": {"containerPort": _PORT, "hostPort": _PORT, "name": _form(_PORT_NAME)},
    f"{_CORE}.ServicePort": {"port": _PORT, "name": _form(_LABEL)},
    f"{_CORE}.EnvVar": {"name": _form(r"[-._a-zA-Z][-._a-zA-Z0-9]*")},
    f"{_CORE}.Volume": {"name": _form(_LABEL)},
    f"{_CORE}.VolumeMount": {"mountPath": _form(r"[^:]+")},
    f"{_CORE}.HostPathVolumeSource": {"path": _ABSOLUTE},
    f"{_CORE}.HTTPGetAction": {"path": _ABSOLUTE},
    f"{_CORE}.ObjectFieldSelector": {
        "fieldPath": _form(
            r"metadata\.(name|namespace|uid)|metadata\.(labels|annotations)(\['[^']+'\])?"
            r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs)"
        )
    },
    f"{_CORE}.ConfigMap": {"data": {"propertyNames": _form(r"[-._a-zA-Z0-9]{1,253}")}},
    f"{_CORE}.Secret": {"stringData": {"propertyNames": _form(r"[-._a-zA-Z0-9]{1,253}")}},
    f"{_CORE}.Probe": {
        **{name: {"minimum": 1} for name in ("periodSeconds", "timeoutSeconds", "failureThreshold")},
        "initialDelaySeconds": {"minimum": 0},
    },
}
"""Of fields, by definition. JSON Schema applies each keyword to values of its type alone."""

API_RESOURCES = {
    "": {
        "configmaps",
        "events",
        "namespaces",
        "nodes",
        "nodes/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "persistentvolumes",
        "pods",
        "secrets",
    },
    "storage.k8s.io": {
        *("storageclasses", "csidrivers", "csinodes", "csistoragecapacities"),
        *("volumeattachments", "volumeattributesclasses"),
    },
    "coordination.k8s.io": {"leases"},
    "discovery.k8s.io": {"endpointslices"},
    "snapshot.storage.k8s.io": {
        *("volumesnapshots", "volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshotcontents/status"),
    },
    "groupsnapshot.storage.k8s.io": {
        *("volumegroupsnapshotclasses", "volumegroupsnapshotcontents", "volumegroupsnapshotcontents/status"),
    },
}
"""What a role may name. An API server accepts any text there: a name with a typo grants nothing."""

VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}


def violations(body: dict[str, Any]) -> list[str]:
    """What is wrong with an object, one line each."""
    found = [
        f"{error.json_path}: {error.message}"
        for error in _validator(body["apiVersion"], body["kind"]).iter_errors(body)
    ]
    return found or [line for rule in RULES for line in rule(body)]


def amount(quantity: object) -> Decimal:
    """The number that a quantity such as ``512Mi`` or ``20m`` means."""
    found = re.fullmatch(rf"({_NUMBER})(.*)", str(quantity))
    assert found is not None, quantity
    number, unit = Decimal(found[1]), found[found.re.groups]
    if re.fullmatch(r"[eE][+-]?\d+", unit):
        return number * Decimal(10) ** int(unit[1:])
    if unit.endswith("i"):
        return number * Decimal(1024) ** (1 + "KMGTPE".index(unit[0]))
    return (
        number
        * Decimal(10) ** {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}[unit]
    )


@cache
def _definitions() -> dict[str, Any]:
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    text = files("kubernetes_validate").joinpath(folder).joinpath("_definitions.json").read_text()
    document: dict[str, Any] = json.loads(text)
    definitions = document["$defs"]
    definitions[_QUANTITY_TYPE] = {"anyOf": [{"type": "number"}, {"type": "string", **_form(_QUANTITY)}]}
    for name, fields in enums().items():
        for field, values in fields.items():
            schema = definitions.get(name, {}).get("properties", {}).get(field)
            if schema is not None:
                schema.get("items", schema)["enum"] = [*values, None]
    for name, forms in FORMS.items():
        for field, form in forms.items():
            definitions[name]["properties"][field].update(form)
    return document


def enums() -> dict[str, dict[str, list[str]]]:
    """Values of fields, by definition."""
    table = json.loads((Path(__file__).parent / "kubernetes_enums.json").read_text())
    return dict(table["enums"])


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    from jsonschema.validators import Draft202012Validator
    from referencing import Registry, Resource

    group, _, version = api_version.rpartition("/")
    wanted = {"group": group, "kind": kind, "version": version}
    document = _definitions()
    (name,) = (
        name
        for name, schema in document["$defs"].items()
        if wanted in schema.get("x-kubernetes-group-version-kind", ())
    )
    registry: Registry[Any] = Resource.from_contents(document) @ Registry()
    return Draft202012Validator({"$ref": f"{document['$id']}#/$defs/{name}"}, registry=registry)


# -- rules between fields --


def _pod_spec(body: dict[str, Any]) -> dict[str, Any]:
    spec = body.get("spec", {})
    return dict(spec if body["kind"] == "Pod" else spec.get("template", {}).get("spec", {}))


def _containers(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = _pod_spec(body)
    for part in ("initContainers", "containers"):
        for container in spec.get(part, []):
            yield f"{part} {container['name']}", container


def _duplicates(values: list[Any]) -> set[Any]:
    return {value for value in values if values.count(value) > 1}


def _names_are_unique(body: dict[str, Any]) -> Iterator[str]:
    spec = _pod_spec(body)
    names = {"containers": [container["name"] for _, container in _containers(body)]}
    names["volumes"] = [volume["name"] for volume in spec.get("volumes", [])]
    for place, container in _containers(body):
        names[f"{place}: volumeMounts"] = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        names[f"{place}: ports"] = [port["name"] for port in container.get("ports", []) if "name" in port]
        names[f"{place}: env"] = [variable["name"] for variable in container.get("env", [])]
    for place, given in names.items():
        yield from (f"{place}: {name!r} twice" for name in _duplicates(given))


def _requests_are_within_limits(body: dict[str, Any]) -> Iterator[str]:
    for place, container in _containers(body):
        resources = container.get("resources", {})
        for name, limit in resources.get("limits", {}).items():
            if amount(resources.get("requests", {}).get(name, limit)) > amount(limit):
                yield f"{place}: requests more {name} than its limit"


def _one_of_several(body: dict[str, Any]) -> Iterator[str]:
    for volume in _pod_spec(body).get("volumes", []):
        if len(volume.keys() - {"name"}) != 1:
            yield f"volume {volume['name']}: needs one source"
    for place, container in _containers(body):
        for variable in container.get("env", []):
            if len(variable.keys() & {"value", "valueFrom"}) > 1 or len(variable.get("valueFrom", {"one": 1})) != 1:
                yield f"{place}: env {variable['name']} needs one value"
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            handlers = container.get(probe, {"exec": {}}).keys() & {"exec", "grpc", "httpGet", "tcpSocket"}
            if len(handlers) != 1:
                yield f"{place}: {probe} needs one handler"


def _ports_exist(body: dict[str, Any]) -> Iterator[str]:
    for place, container in _containers(body):
        names = {port.get("name") for port in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            for handler in ("httpGet", "tcpSocket"):
                port = container.get(probe, {}).get(handler, {}).get("port")
                if isinstance(port, str) and port not in names:
                    yield f"{place}: {probe}: no port is called {port!r}"


def _mounts_name_volumes(body: dict[str, Any]) -> Iterator[str]:
    names = {volume["name"] for volume in _pod_spec(body).get("volumes", [])}
    names |= {claim["metadata"]["name"] for claim in body.get("spec", {}).get("volumeClaimTemplates", [])}
    for place, container in _containers(body):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in names:
                yield f"{place}: no volume is called {mount['name']!r}"
            privileged = container.get("securityContext", {}).get("privileged")
            if mount.get("mountPropagation") == "Bidirectional" and not privileged:
                yield f"{place}: Bidirectional needs a privileged container"


def _privileges_agree(body: dict[str, Any]) -> Iterator[str]:
    for place, container in _containers(body):
        context = container.get("securityContext", {})
        if context.get("privileged") and context.get("allowPrivilegeEscalation") is False:
            yield f"{place}: privileged, and allowPrivilegeEscalation is false"


def _selector_selects_its_pods(body: dict[str, Any]) -> Iterator[str]:
    if body["kind"] in ("Deployment", "DaemonSet"):
        wanted = body["spec"]["selector"].get("matchLabels", {}).items()
        if not wanted <= body["spec"]["template"]["metadata"].get("labels", {}).items():
            yield "selector: does not match the labels of the template"


def _restart_policy_fits(body: dict[str, Any]) -> Iterator[str]:
    policy = _pod_spec(body).get("restartPolicy", "Always")
    if body["kind"] == "Job" and policy == "Always":
        yield "restartPolicy: a Job needs Never or OnFailure"
    if body["kind"] in ("Deployment", "DaemonSet") and policy != "Always":
        yield "restartPolicy: must be Always"


def _update_strategy_fits(body: dict[str, Any]) -> Iterator[str]:
    for field in ("strategy", "updateStrategy"):
        strategy = body.get("spec", {}).get(field)
        if isinstance(strategy, dict) and "rollingUpdate" in strategy and strategy.get("type") != "RollingUpdate":
            yield f"{field}: rollingUpdate is for the type RollingUpdate"


def _expressions_have_values(body: dict[str, Any]) -> Iterator[str]:
    for one in _walk(body):
        expressions = [*one.get("matchExpressions", ()), *one.get("matchFields", ())]
        for expression in expressions:
            if (expression["operator"] in ("In", "NotIn", "Gt", "Lt")) != bool(expression.get("values")):
                yield f"{expression}: the operator needs values, or must have none"
    for toleration in _pod_spec(body).get("tolerations", []):
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            yield f"{toleration}: Exists has no value"
        if "key" not in toleration and toleration.get("operator") != "Exists":
            yield f"{toleration}: needs a key, or the operator Exists"


def _roles_name_what_exists(body: dict[str, Any]) -> Iterator[str]:
    for rule in body.get("rules", []) if body["kind"] in ("Role", "ClusterRole") else []:
        known = set().union(*(API_RESOURCES.get(group, set()) for group in rule["apiGroups"]))
        yield from (f"rules: no resource {name!r} in {rule['apiGroups']}" for name in set(rule["resources"]) - known)
        yield from (f"rules: no verb {verb!r}" for verb in set(rule["verbs"]) - VERBS)


def _secrets_have_namespaces(body: dict[str, Any]) -> Iterator[str]:
    for one in _walk(body):
        for field in ("nodeStageSecretRef", "controllerPublishSecretRef", "controllerExpandSecretRef"):
            if field in one and not {"name", "namespace"} <= one[field].keys():
                yield f"{field}: needs name and namespace"
    parameters = body.get("parameters", {}) if body["kind"] == "StorageClass" else {}
    for name in parameters:
        half = re.fullmatch(r"csi\.storage\.k8s\.io/(.+)-secret-(name|namespace)", name)
        other = {"name": "namespace", "namespace": "name"}
        if half and f"csi.storage.k8s.io/{half[1]}-secret-{other[half[2]]}" not in parameters:
            yield f"parameters: {name} is half of a pair"


def _storage_is_positive(body: dict[str, Any]) -> Iterator[str]:
    for one in _walk(body):
        for field in ("capacity", "requests"):
            size = one[field].get("storage") if isinstance(one.get(field), dict) else None
            if size is not None and amount(size) <= 0:
                yield f"{field}: storage must be above 0"


RULES = (
    _names_are_unique,
    _requests_are_within_limits,
    _one_of_several,
    _ports_exist,
    _mounts_name_volumes,
    _privileges_agree,
    _selector_selects_its_pods,
    _restart_policy_fits,
    _update_strategy_fits,
    _expressions_have_values,
    _roles_name_what_exists,
    _secrets_have_namespaces,
    _storage_is_positive,
)


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in an object."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
