"""StorageClass parameters and volume attributes as frozen values. ``docs/parameters.md`` describes them.

The same names apply to a StorageClass, to ``volumeAttributes`` of a PersistentVolume and to those of an inline volume.
An empty text counts as not given. No parameter is secret. Each process parses them once for a call, where the call
enters it, and passes the frozen value on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo
from pydantic.alias_generators import to_camel

from csi_driver.catalog.selection import Selection
from csi_driver.model.chunk import OBJECT_FILE_MODE
from csi_driver.model.dataset import AddressingStyle, Backend, Dataset, DatasetUrl, StoreOptions, VerifyChecksums
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.settings import PolicySettings
from csi_driver.volumes import parameter_text as text
from csi_driver.volumes.operator_policy import check_policy
from csi_driver.volumes.parameter_text import MountOptions

_FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/", "hayloft.dev/")
"""Keys that Kubernetes, its sidecars or the driver itself add. One of them can contain service account tokens."""

_SECRET_WORDS = ("secret", "password", "token", "accesskey", "keyid", "credential", "accountkey", "saskey")

DAY_S = 86_400.0

ViewMode = Literal["auto", "fuse", "materialised"]
WarmupMode = Literal["none", "background", "wait"]


def _parameter_name(field: str) -> str:
    """The field's name in camelCase, without its unit."""
    return to_camel(field.removesuffix("_s").removesuffix("_bytes"))


def _from_text(parse: Any) -> BeforeValidator:
    """Applies ``parse`` to texts; other values (defaults, copies) pass unchanged."""

    def read(value: object, info: ValidationInfo) -> object:
        return parse(_parameter_name(info.field_name or ""), value) if isinstance(value, str) else value

    return BeforeValidator(read)


class VolumeParameters(BaseModel):
    """The parameters of a volume."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_parameter_name,
        validate_by_name=True,
        arbitrary_types_allowed=True,
    )

    url: Annotated[DatasetUrl, _from_text(text.dataset_url)]
    include: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    exclude: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    endpoint: Annotated[str | None, _from_text(text.endpoint)] = None
    region: Annotated[str | None, _from_text(text.region)] = None
    addressing_style: Annotated[
        AddressingStyle, _from_text(partial(text.choice, allowed=("auto", "path", "virtual")))
    ] = "auto"
    anonymous: Annotated[bool, _from_text(text.boolean)] = False
    requester_pays: Annotated[bool, _from_text(text.boolean)] = False
    ca_bundle: Annotated[str | None, _from_text(text.certificates)] = None
    backend: Annotated[Backend, _from_text(partial(text.choice, allowed=("auto", "obstore", "s3fs")))] = "auto"
    verify_checksums: Annotated[VerifyChecksums, _from_text(partial(text.choice, allowed=("auto", "full", "off")))] = (
        "auto"
    )
    """Whether objects are verified against the checksum of the store before they count as complete in the cache."""
    cache_reservation_bytes: Annotated[int, _from_text(text.size)] = 0
    """Bytes of the dataset that are not evicted for other datasets while the volume is mounted."""
    uid: Annotated[int, _from_text(text.owner)] = 0
    gid: Annotated[int, _from_text(text.owner)] = 0
    file_mode: Annotated[int, _from_text(text.mode)] = 0o444
    dir_mode: Annotated[int, _from_text(text.mode)] = 0o555
    mount_options: Annotated[MountOptions, _from_text(MountOptions.from_text)] = MountOptions()
    snapshot_max_age_s: Annotated[float, _from_text(partial(text.duration, least_s=0, most_s=365 * DAY_S))] = 600.0
    """Maximum age of a static volume's snapshot; a new mount with an older one lists the dataset again."""
    request_timeout_s: Annotated[float, _from_text(partial(text.duration, least_s=1, most_s=3600))] = 30.0
    deadline_s: Annotated[float, _from_text(partial(text.duration, least_s=1, most_s=DAY_S))] = 120.0
    view: Annotated[ViewMode, _from_text(partial(text.choice, allowed=("auto", "fuse", "materialised")))] = "auto"
    """How the volume is published: by its FUSE mount, or, once it is completely cached, as a tree of hard links."""
    warmup: Annotated[WarmupMode, _from_text(partial(text.choice, allowed=("none", "background", "wait")))] = "none"
    warmup_include: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    warmup_bandwidth_bytes: Annotated[int, _from_text(text.bandwidth)] = 0
    """Bytes a second; 0: no limit."""
    warmup_concurrency: Annotated[int, _from_text(text.concurrency)] = 4
    """As many fetches as the readahead of a sequential reader has in flight (settings.ReadingSettings)."""

    @classmethod
    def parse(cls, mapping: Mapping[str, str], policy: PolicySettings | None = None) -> VolumeParameters:
        """Parses the parameters of a request and checks them against the operator's policy.

        Without a policy only the syntax is checked, as for parameters that were accepted before. Raises
        InvalidParameter, MissingParameter, ReadOnlyVolume, EndpointNotAllowed.
        """
        given = {}
        for key, value in mapping.items():
            if key.startswith(_FOREIGN_PREFIXES):
                continue
            if key not in _FIELDS:
                raise _unknown(key)
            if value.strip():
                given[_FIELDS[key]] = value.strip() if key != "caBundle" else value
        if "url" not in given:
            raise MissingParameter("url", "Set it to the dataset's URL, such as s3://my-bucket/train")
        parameters = cls(**given)  # type: ignore[arg-type]  # texts, which the validators turn into values
        parameters._check_together()
        Selection.of(parameters.dataset)  # raises for a glob that cannot be read
        Selection.including(parameters.warmup_include, "warmupInclude")
        if policy is not None:
            check_policy(parameters.url, parameters.endpoint, policy)
        return parameters

    @property
    def dataset(self) -> Dataset:
        """The objects to list: URL and selection."""
        return Dataset(self.url, self.include, self.exclude)

    @property
    def store_options(self) -> StoreOptions:
        return StoreOptions(
            endpoint=self.endpoint,
            region=self.region,
            addressing_style=self.addressing_style,
            anonymous=self.anonymous,
            requester_pays=self.requester_pays,
            ca_bundle_pem=self.ca_bundle,
            backend=self.backend,
            verify_checksums=self.verify_checksums,
            request_timeout_s=self.request_timeout_s,
            deadline_s=self.deadline_s,
        )

    def to_context(self) -> dict[str, str]:
        """The canonical text of all values that differ from their default; the inverse of ``parse``."""
        context = {}
        for key, field in _FIELDS.items():
            value = getattr(self, field)
            if field == "url" or value != type(self).model_fields[field].default:
                context[key] = _to_text(field, value)
        return context

    def shows_same_as(self, other: VolumeParameters) -> bool:
        """Whether both list the same objects. Owner, modes, credentials and time-outs do not affect the listing."""
        return (self.dataset, self.endpoint, self.region) == (other.dataset, other.endpoint, other.region)

    def _check_together(self) -> None:
        if self.backend == "s3fs" and self.url.scheme != "s3":
            raise InvalidParameter("backend", "s3fs", f"auto or obstore for a {self.url.scheme}:// URL")
        if self.anonymous and self.requester_pays:
            remedy = "The payer must be known: give credentials, or leave requesterPays out"
            raise InvalidParameter("requesterPays", "true", "false with anonymous: true", remedy)
        if self.view == "materialised" and self.file_mode != OBJECT_FILE_MODE:
            remedy = "Files of a materialised view are hard links to those of the cache and share their mode"
            allowed = f"{OBJECT_FILE_MODE:04o} with view: materialised"
            raise InvalidParameter("fileMode", f"{self.file_mode:04o}", allowed, remedy)
        if self.deadline_s < self.request_timeout_s:
            least = text.duration_text(self.request_timeout_s)
            raise InvalidParameter(
                "deadline", text.duration_text(self.deadline_s), f"at least requestTimeout ({least})"
            )


_FIELDS = {_parameter_name(field): field for field in VolumeParameters.model_fields}


def _to_text(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, MountOptions):
        return ",".join(value.flags)
    if isinstance(value, tuple):
        return text.globs_text(value)
    if isinstance(value, float):
        return text.duration_text(value)
    if field == "warmup_bandwidth_bytes":
        return text.bandwidth_text(value)
    if field == "cache_reservation_bytes":
        return text.size_text(value)
    if field in ("file_mode", "dir_mode"):
        return f"{value:04o}"
    return str(value)


def _unknown(key: str) -> InvalidParameter:
    """Names the key and never its value, which may be a misplaced password."""
    letters = "".join(character for character in key.lower() if character.isalnum())
    remedy = text.suggestion(key, _FIELDS)
    if any(word in letters for word in _SECRET_WORDS):
        remedy = "Credentials belong in a Secret, never in parameters; if this was one, replace it"
    return InvalidParameter("name of a parameter", key, ", ".join(_FIELDS), remedy)
