"""The table of ``docs/parameters.md``: names, order, defaults and choices are those of ``VolumeParameters``, and what
is allowed is said here. A parameter without a text, and a text without a parameter, is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

from csi_driver.volumes.parameters import PARAMETERS, VolumeParameters, default_texts


class Text(NamedTuple):
    """Markdown. ``{choices}`` in ``allowed`` stands for the values of the field's type. ``default``: where it is not
    the text of the field's default value."""

    allowed: str
    example: str
    default: str = ""


_CHOICES = "{choices}"
_POD = "required with `identity: pod` and"

TEXTS: dict[str, Text] = {
    "url": Text(
        "`scheme://bucket/prefix`, without user name or password; for `http(s)` without a query",
        "s3://my-bucket/train",
        "required",
    ),
    "include": Text("globs, separated by commas or one a line", "*.jpg,*.png", "everything"),
    "exclude": Text("as `include`, and wins over it", "tmp/", "nothing"),
    "manifest": Text(
        "a path below the URL, or a URL there, without a query; for `http(s)://` only",
        "SHA256SUMS",
        "none: the server lists the files",
    ),
    "inventory": Text(
        "the URL, as `url`, of a manifest.json of S3 Inventory, of the folder above its dated folders, or of a list in "
        "one file (`.parquet`, `.orc`, `.csv`, `.csv.gz`): see [inventory.md](inventory.md); not for `http(s)://`",
        "s3://my-inventories/my-bucket/daily/",
        "none: the store lists the objects",
    ),
    "endpoint": Text(
        "`http://host[:port]` or `https://host[:port]`, with a plain ASCII name; a path has no percent signs, "
        "backslashes and dots as parts",
        "https://s3.example.com:9000",
        "the provider's own",
    ),
    "region": Text(
        "letters, digits, `.`, `_`, `-`; at most 64; without `endpoint` a region of AWS: lower-case letters, digits "
        "and `-`",
        "eu-central-1",
        "[of the bucket](#region), else `us-east-1`",
    ),
    "addressingStyle": Text(
        "{choices} (`virtual`: the bucket is part of the host's name: lower-case letters, digits, `-`, and dots "
        "between them)",
        "path",
    ),
    "anonymous": Text("{choices}", "true"),
    "requesterPays": Text("{choices}; `true` for `s3://` and `gs://`, and not with `anonymous`", "true"),
    "billingProject": Text(
        "the id of a project of Google Cloud; with `requesterPays` and `gs://` only",
        "team-a-1234",
        "that of the key in the Secret",
    ),
    "caBundle": Text("certificates in PEM form: the text, not a path", "-----BEGIN CERTIFICATE-----…", "the system's"),
    "backend": Text("{choices} (`s3fs` for `s3://` only)", "s3fs"),
    "verifyChecksums": Text(
        "{choices}: the check before an object is complete in the cache, see [semantics.md](semantics.md#integrity)",
        "full",
    ),
    "mirrors": Text(
        "up to 8 URLs of `s3://`, `gs://` or `az://`, separated by commas or one a line, each with its own `endpoint`, "
        "`region`, `addressingStyle`, `anonymous`, `requesterPays`, `billingProject` as a query; see "
        "[mirrors](#mirrors)",
        "s3://copies/train?endpoint=https://s3.example.com:9000",
        "none",
    ),
    "mirrorCheck": Text("{choices}: when an object of a [mirror](#mirrors) is the same", "size"),
    "mirrorOrder": Text("{choices}: which of the places of a dataset is read first", "listed"),
    "identity": Text(
        "{choices}: the Secret, else the node's own; or that of [the pod](#the-identity-of-the-pod), for an inline "
        "volume",
        "pod",
    ),
    "awsRoleArn": Text(f"the ARN of a role; {_POD} `s3://`", "arn:aws:iam::123456789012:role/train", "none"),
    "googleWorkloadProvider": Text(
        f"the name of a provider of a workload identity pool, or `identitynamespace:POOL:PROVIDER`; {_POD} `gs://`",
        "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/pool/providers/cluster",
        "none",
    ),
    "googleServiceAccount": Text(
        "the address of a service account that the pod's identity may use",
        "train@my-project.iam.gserviceaccount.com",
        "none: the identity has rights of its own",
    ),
    "azureTenantId": Text(f"a UUID; {_POD} `az://`", "72f988bf-86f1-41af-91ab-2d7cd011db47", "none"),
    "azureClientId": Text(f"a UUID; {_POD} `az://`", "8c5a3b1e-0d5c-4b6e-9a57-6a1f9f0f2d11", "none"),
    "azureStorageAccount": Text(f"3 to 24 lower-case letters and digits; {_POD} `az://`", "traindata", "none"),
    "audience": Text(
        "one of the audiences in `tokenRequests` of the CSIDriver; printable ASCII without spaces",
        "sts.example.com",
        "[what the provider expects](#the-identity-of-the-pod)",
    ),
    "cacheReservation": Text("a size of at most the node's cache, or `0`: none", "200GiB"),
    "uid": Text("0 to 4294967294", "1000"),
    "gid": Text("0 to 4294967294", "1000"),
    "fileMode": Text("octal, up to `0777`, without write bits", "0440"),
    "dirMode": Text("octal, up to `0777`, without write bits", "0550"),
    "mountOptions": Text("see below", "read_ahead_kb=8192,noexec", "none"),
    "snapshotMaxAge": Text("a duration, 0 to 365 days", "1h"),
    "requestTimeout": Text("a duration, 1 second to 1 hour", "10s"),
    "deadline": Text("a duration, 1 second to 1 day, at least `requestTimeout`", "5m"),
    "view": Text("{choices}", "fuse"),
    "opens": Text("{choices}", "daemon"),
    "profile": Text("{choices}, see [below](#profile)", "inference"),
    "readAhead": Text(
        "a size of complete MiB, at most 1 GiB, or `0`: none", "64MiB", "by [`profile`](#profile), else the daemon's"
    ),
    "wholeFiles": Text("{choices}", "weights", "by [`profile`](#profile)"),
    "bandwidth": Text("a rate, 1MiB/s to 1TB/s, or `0`: no limit", "500MiB/s", "no limit"),
    "warmup": Text("{choices}", "background", "by [`profile`](#profile)"),
    "warmupInclude": Text("as `include`", "shard-00*.tar", "everything"),
    "warmupMemoryInclude": Text("as `include`", "*.safetensors", "everything that is warmed"),
    "warmupTrace": Text("a path below the URL; without `warmupInclude`", "traces/start.arrow", "none"),
    "warmupBandwidth": Text("a rate, 64KiB/s to 1TB/s, or `0`: no limit", "200MiB/s", "no limit"),
    "warmupConcurrency": Text("1 to 64", "8"),
}


def _choices() -> dict[str, tuple[str, ...]]:
    """By parameter, of those whose type is a list of texts, or a boolean."""
    hints = get_type_hints(VolumeParameters)
    types = dict(zip(PARAMETERS, (hints[field] for field in hints if not field.endswith("address_rules")), strict=True))
    named = {name: get_args(kind) for name, kind in types.items() if get_origin(kind) is Literal}
    return named | {name: ("true", "false") for name, kind in types.items() if kind is bool}


def table(_: Path) -> str:
    """Markdown, in the order of the fields. Raises ValueError for a parameter without a text."""
    if set(TEXTS) != set(PARAMETERS):
        wrong = ", ".join(sorted(set(TEXTS) ^ set(PARAMETERS)))
        raise ValueError(f"tools/parameter_table.py: texts and parameters differ: {wrong}")
    defaults, choices = default_texts(), _choices()
    rows = ["| name | default | allowed | example |\n", "|---|---|---|---|\n"]
    for name in PARAMETERS:
        text = TEXTS[name]
        if (name in choices) != (_CHOICES in text.allowed):
            raise ValueError(f"tools/parameter_table.py: {name}: write {_CHOICES} where the type lists the values")
        allowed = text.allowed.replace(_CHOICES, ", ".join(f"`{choice}`" for choice in choices.get(name, ())))
        default = text.default or f"`{defaults[name]}`"
        rows.append(f"| `{name}` | {default} | {allowed} | `{text.example}` |\n")
    return "".join(rows)
