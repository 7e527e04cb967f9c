"""The options of one volume of another driver as parameters of ours, checked by the driver's own parser."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from csi_driver.cli.migration import csi_s3_rules, gcsfuse_rules, mountpoint_rules
from csi_driver.cli.migration.translation_rules import (
    BUCKET,
    MOUNT_OPTION,
    PREFIX,
    NotTranslatable,
    Outcome,
    Rule,
    find_rule,
    is_on,
)
from csi_driver.model.errors import HayloftError
from csi_driver.volumes.parameter_text import MountOptions
from csi_driver.volumes.parameters import VolumeParameters

JUICEFS = "csi.juicefs.com"

PEERS = {
    mountpoint_rules.DRIVER: "Mountpoint for Amazon S3",
    gcsfuse_rules.DRIVER: "Cloud Storage FUSE",
    csi_s3_rules.CTROX: "csi-s3 of ctrox",
    csi_s3_rules.YANDEX: "csi-s3 of Yandex",
    JUICEFS: "JuiceFS",
}
"""By the name of the driver."""

_CSI_S3 = (csi_s3_rules.CTROX, csi_s3_rules.YANDEX)

_KUBERNETES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")

_NO_DATASET = {
    JUICEFS: (
        "a file system of JuiceFS is no set of plain objects: its files are blocks in the bucket, and their names are "
        "in a database. Copy the files to a bucket (`juicefs sync`), and make a volume with the URL of that"
    ),
    "s3backer": (
        "s3backer keeps a block device in the bucket, and no plain objects. Mount it once more with csi-s3, copy the "
        "files to a bucket, and make a volume with the URL of that"
    ),
}


class Refused(Exception):
    """The volume cannot be one of ours; the reason says what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. ``text`` holds no value of an option that is not a parameter of ours."""

    option: str
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """A volume, or a class of volumes, of another driver."""

    driver: str
    attributes: Mapping[str, str]
    mount_options: Sequence[str] = ()
    handle: str | None = None
    """``volumeHandle`` of a PersistentVolume."""
    inline: bool = False
    has_secret: bool = False


@dataclass(frozen=True, slots=True)
class Supplement:
    """What the manifest of a volume does not say, from its Secret or from the command line. Endpoint and region are for
    csi-s3, the provider of identities for inline volumes of Cloud Storage FUSE."""

    endpoint: str = ""
    region: str = ""
    google_workload_provider: str = ""


@dataclass
class Translation:
    """The result: parameters and mount options of ours."""

    parameters: dict[str, str] = field(default_factory=dict)
    mount_options: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    """By parameter: the attribute that it was made of, whose comment it inherits."""


@dataclass(frozen=True, slots=True)
class _Option:
    label: str
    name: str
    value: str
    rules: Sequence[Rule]


def translate(source: Source, supplement: Supplement) -> Translation:
    """Raises Refused."""
    if source.driver == JUICEFS:
        raise Refused(_NO_DATASET[JUICEFS])
    result = Translation()
    values: dict[str, str] = {}
    for option in _options(source):
        _apply(option, values, result)
    _complete(source, supplement, values, result)
    bucket, prefix = _dataset(source, values)
    scheme = "gs" if source.driver == gcsfuse_rules.DRIVER else "s3"
    url = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    values = {"url": url, **{name: value for name, value in values.items() if name not in (BUCKET, PREFIX)}}
    result.parameters = values
    result.rows.insert(0, Row("the dataset", Outcome.PARAMETER, f"url: {url}"))
    try:
        VolumeParameters.parse(values)
        MountOptions.parse(result.mount_options)
    except HayloftError as error:
        raise Refused(f"the driver refuses what would become of it: {error}") from None
    return result


def _options(source: Source) -> Iterator[_Option]:
    """Everything that is set, attributes first."""
    attributes, options = _tables(source)
    for name, value in source.attributes.items():
        if name.startswith(_KUBERNETES):
            continue
        if name == "mountOptions" and source.driver == gcsfuse_rules.DRIVER:
            for flag in filter(None, (part.strip() for part in value.split(","))):
                yield _gcsfuse_option(flag, options)
        elif name == "options" and source.driver in _CSI_S3:
            yield from _mounter_options(value, options)
        else:
            yield _Option(name, name, value, attributes)
    for flag in source.mount_options:
        if source.driver == gcsfuse_rules.DRIVER:
            yield _gcsfuse_option(flag.strip(), options)
        else:
            name, value = _name_and_value(flag.strip().lstrip("-"))
            yield _Option(f"mountOptions: {name}", name, value, options)


def _tables(source: Source) -> tuple[Sequence[Rule], Sequence[Rule]]:
    if source.driver == mountpoint_rules.DRIVER:
        return mountpoint_rules.ATTRIBUTES, mountpoint_rules.OPTIONS
    if source.driver == gcsfuse_rules.DRIVER:
        return gcsfuse_rules.ATTRIBUTES, gcsfuse_rules.OPTIONS
    mounter = source.attributes.get("mounter") or csi_s3_rules.DEFAULT_MOUNTER[source.driver]
    if mounter == "s3backer":
        raise Refused(_NO_DATASET["s3backer"])
    return csi_s3_rules.ATTRIBUTES, csi_s3_rules.MOUNTERS.get(mounter, csi_s3_rules.GEESEFS)


def _gcsfuse_option(flag: str, rules: Sequence[Rule]) -> _Option:
    """``only-dir=x``, or ``file-cache:max-size-mb:-1`` as in the configuration file."""
    if "=" not in flag and ":" in flag:
        name, _, value = flag.rpartition(":")
    else:
        name, _, value = flag.lstrip("-").partition("=")
    if name == "o":
        name, _, value = value.partition("=")
    return _Option(f"mountOptions: {name}", name, value, rules)


def _mounter_options(text: str, rules: Sequence[Rule]) -> Iterator[_Option]:
    """The words of a command line. A word without dashes is the value of the flag before it."""
    try:
        words = shlex.split(text)
    except ValueError:
        yield _Option("options", "", "", ())
        return
    while words:
        word = words.pop(0)
        has_value = bool(words) and not words[0].startswith("-")
        if not word.startswith("-"):
            yield _Option("options: (a word without a flag)", "", "", ())
        elif word == "-o" and has_value:
            for part in filter(None, words.pop(0).split(",")):
                name, _, value = part.partition("=")
                yield _Option(f"options: {name}", name, value, rules)
        else:
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and has_value:
                value = words.pop(0)
            yield _Option(f"options: {name}", name, value, rules)


def _name_and_value(flag: str) -> tuple[str, str]:
    """``region us-east-1``, ``region=us-east-1`` or ``allow-delete``: the first of blank and ``=`` separates."""
    at = min((place for place in (flag.find(" "), flag.find("=")) if place >= 0), default=len(flag))
    return flag[:at], flag[at + 1 :].strip()


def _apply(option: _Option, values: dict[str, str], result: Translation) -> None:
    rule = find_rule(option.rules, option.name)
    if rule is None:
        text = "this option is not known to `hayloft migrate`, and nothing has become of it"
        result.rows.append(Row(option.label, Outcome.UNKNOWN, text))
        return
    if rule.convert is None:
        result.rows.append(Row(option.label, rule.outcome, rule.text))
        return
    try:
        made = rule.convert(option.value)
    except NotTranslatable as error:
        result.rows.append(Row(option.label, Outcome.IMPOSSIBLE, error.reason))
        return
    if not made:
        result.rows.append(Row(option.label, Outcome.DROPPED, "it is off, or the default of ours"))
    for name, value in made.items():
        if name == MOUNT_OPTION:
            result.mount_options.append(value)
            result.rows.append(Row(option.label, Outcome.PARAMETER, f"mountOptions: {value}"))
        else:
            values[name] = value
            result.origins["url" if name in (BUCKET, PREFIX) else name] = option.label
            shown = "a part of url" if name in (BUCKET, PREFIX) else f"{name}: {value}"
            result.rows.append(Row(option.label, Outcome.PARAMETER, shown))


def _complete(source: Source, supplement: Supplement, values: dict[str, str], result: Translation) -> None:
    """What the manifest alone does not say: the service of csi-s3, which its Secret names, and credentials."""
    if source.driver in _CSI_S3:
        for name, value in {"endpoint": supplement.endpoint, "region": supplement.region}.items():
            if value and name not in values:
                values[name] = value
                result.rows.append(Row(f"{name} of the Secret, or as given", Outcome.PARAMETER, f"{name}: {value}"))
    if source.driver in _CSI_S3 and "endpoint" not in values:
        raise Refused(
            "its Secret names the endpoint, and is not in this file: add it to the file, or give --store-endpoint (for "
            "Amazon https://s3.REGION.amazonaws.com)"
        )
    if source.driver != gcsfuse_rules.DRIVER or source.has_secret or values.get("anonymous") == "true":
        return
    if source.inline and supplement.google_workload_provider:
        values["identity"] = "pod"
        values["googleWorkloadProvider"] = supplement.google_workload_provider
        text = "identity: pod, googleWorkloadProvider"
        result.rows.append(Row("the identity of the pod", Outcome.PARAMETER, text))
    elif source.inline:
        text = (
            "give --google-workload-provider (docs/parameters.md: the identity of the pod), or a Secret by "
            "nodePublishSecretRef: without them only namespaces that the operator trusts may read it"
        )
        result.rows.append(Row("the identity of the pod", Outcome.IMPOSSIBLE, text))
    else:
        text = "it is read with the identity of the node pods, or with a Secret, and not with that of the pod"
        result.rows.append(Row("the identity of the pod", Outcome.IMPOSSIBLE, text))


def _dataset(source: Source, values: Mapping[str, str]) -> tuple[str, str]:
    """Bucket, and prefix without slashes at its ends."""
    bucket, prefix = values.get(BUCKET, ""), values.get(PREFIX, "")
    if source.driver in _CSI_S3:
        bucket, prefix = _csi_s3_dataset(source, bucket, prefix)
    elif source.driver == gcsfuse_rules.DRIVER and not bucket and source.handle:
        bucket = source.handle.partition(":")[0]
    if not bucket:
        raise Refused("it names no bucket; set `bucketName`")
    if bucket == "_":
        raise Refused("it shows all buckets of a project; make a volume for each of them")
    if bucket.startswith("arn:"):
        raise Refused("an ARN is no name of a bucket: give the bucket, or the alias of the access point")
    if bucket.endswith("--x-s3"):
        raise Refused("directory buckets (S3 Express One Zone) have sessions of their own, which Hayloft does not make")
    return bucket, prefix.strip("/")


def _csi_s3_dataset(source: Source, bucket: str, prefix: str) -> tuple[str, str]:
    shared = source.attributes.get("usePrefix", "false")
    try:
        whole_prefix = source.driver == csi_s3_rules.CTROX and is_on(shared)
    except NotTranslatable:
        raise Refused("usePrefix: true or false is expected") from None
    if source.handle is not None:
        bucket, _, prefix = source.handle.partition("/")
        if source.driver == csi_s3_rules.CTROX and not whole_prefix:
            prefix = f"{prefix}/csi-fs"  # where that driver keeps the files of a volume
        return bucket, prefix
    if not bucket:
        raise Refused(
            "each of its claims gets a new and empty bucket, to be written to; rewrite the PersistentVolumes instead, "
            "which name buckets that exist"
        )
    return bucket, prefix if whole_prefix else ""
