"""StorageClass parameters and volume attributes as frozen values. ``docs/parameters.md`` describes them.

The same names apply to a StorageClass, to ``volumeAttributes`` of a PersistentVolume and to those of an inline volume.
An empty text counts as not given. No parameter is secret. Each process parses them once for a call, where the call
enters it, and passes the frozen value on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from csi_driver.catalog.selection import Selection, check_number_of_globs
from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.chunk import OBJECT_FILE_MODE
from csi_driver.model.dataset import AddressingStyle, Backend, Dataset, DatasetUrl, StoreOptions, VerifyChecksums
from csi_driver.model.errors import InvalidParameter, MissingParameter, ViewNotAllowed
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.model.pod_role import PodRole
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.objects.web.web_urls import listed_key
from csi_driver.volumes import parameter_text as text
from csi_driver.volumes.address_policy import address_rules, check_library
from csi_driver.volumes.mirror_parameters import Mirror, check_mirrors, mirrors, mirrors_text, named
from csi_driver.volumes.operator_policy import bounded_timeouts, check_namespace, check_policy
from csi_driver.volumes.parameter_names import unknown_parameter
from csi_driver.volumes.parameter_text import MountOptions
from csi_driver.volumes.pod_roles import ROLE_FIELDS, audiences, check_unit, pod_role
from csi_driver.volumes.profiles import PROFILE_FIELDS, PROFILES, ProfileName, WholeFiles, defaults_of

if TYPE_CHECKING:  # pydantic, which only the settings of other processes need, is a third of the node plugin's memory
    from csi_driver.settings import PolicySettings

_FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/", "hayloft.dev/")
"""Keys that Kubernetes, its sidecars or the driver itself add. One of them can contain service account tokens."""

DAY_S = 86_400.0

_NO_OPTIONS = MountOptions()

ViewMode = Literal["auto", "fuse", "materialised"]
WarmupMode = Literal["none", "background", "wait", "memory"]
OpensMode = Literal["auto", "kernel", "daemon"]
IdentityMode = Literal["auto", "pod"]
MirrorCheck = Literal["content", "size"]
MirrorOrder = Literal["nearest", "listed"]


def _parameter_name(field: str) -> str:
    """The field's name in camelCase, without its unit."""
    first, *others = field.removesuffix("_s").removesuffix("_bytes").split("_")
    return first + "".join(map(str.capitalize, others))


@dataclass(frozen=True, slots=True)
class _Parser:
    """Turns the name of a parameter and its text into the value."""

    parse: Callable[[str, str], Any]


def _from_text(parse: Callable[..., Any]) -> _Parser:
    return _Parser(parse)


@dataclass(frozen=True, kw_only=True)
class VolumeParameters:
    """The parameters of a volume. Each field with ``_from_text`` is one."""

    url: Annotated[DatasetUrl, _from_text(text.dataset_url)]
    include: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    exclude: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    manifest: Annotated[str | None, _from_text(text.place_of_list)] = None
    """Of an http(s) dataset: the list of its files, a path below the URL, or a URL there."""
    inventory: Annotated[InventoryUrl | None, _from_text(text.inventory)] = None
    """The list of the dataset's objects, which is imported instead of asking the store for one."""
    endpoint: Annotated[str | None, _from_text(text.endpoint)] = None
    region: Annotated[str | None, _from_text(text.region)] = None
    addressing_style: Annotated[
        AddressingStyle, _from_text(partial(text.choice, allowed=("auto", "path", "virtual")))
    ] = "auto"
    anonymous: Annotated[bool, _from_text(text.boolean)] = False
    requester_pays: Annotated[bool, _from_text(text.boolean)] = False
    billing_project: Annotated[str | None, _from_text(text.project)] = None
    """The project of Google Cloud that pays for the requests; None: that of the key in the Secret."""
    ca_bundle: Annotated[str | None, _from_text(text.certificates)] = None
    backend: Annotated[Backend, _from_text(partial(text.choice, allowed=("auto", "obstore", "s3fs")))] = "auto"
    verify_checksums: Annotated[VerifyChecksums, _from_text(partial(text.choice, allowed=("auto", "full", "off")))] = (
        "auto"
    )
    """Whether objects are verified against the checksum of the store before they count as complete in the cache."""
    mirrors: Annotated[tuple[Mirror, ...], _from_text(mirrors)] = ()
    """Other places of the dataset, which are read where they are nearer than the URL's, or where that does not
    answer."""
    mirror_check: Annotated[MirrorCheck, _from_text(partial(text.choice, allowed=("content", "size")))] = "content"
    """When an object of a mirror counts as the same (``objects/mirrors/same_object.py``)."""
    mirror_order: Annotated[MirrorOrder, _from_text(partial(text.choice, allowed=("nearest", "listed")))] = "nearest"
    """Which place is read first: the one that answers soonest, or the first of the list, ``url`` before all."""
    identity: Annotated[IdentityMode, _from_text(partial(text.choice, allowed=("auto", "pod")))] = "auto"
    """What the store is asked with: the Secret, else the node's own identity; or that of the pod, by the token of its
    service account."""
    aws_role_arn: Annotated[str | None, _from_text(text.role_arn)] = None
    google_workload_provider: Annotated[str | None, _from_text(text.workload_provider)] = None
    google_service_account: Annotated[str | None, _from_text(text.google_account)] = None
    azure_tenant_id: Annotated[str | None, _from_text(text.uuid_text)] = None
    azure_client_id: Annotated[str | None, _from_text(text.uuid_text)] = None
    azure_storage_account: Annotated[str | None, _from_text(text.storage_account)] = None
    audience: Annotated[str | None, _from_text(text.audience)] = None
    """Of the pod's token; None: the one that the provider expects."""
    cache_reservation_bytes: Annotated[int, _from_text(text.size)] = 0
    """Bytes of the dataset that are not evicted for other datasets while the volume is mounted."""
    uid: Annotated[int, _from_text(text.owner)] = 0
    gid: Annotated[int, _from_text(text.owner)] = 0
    file_mode: Annotated[int, _from_text(text.mode)] = 0o444
    dir_mode: Annotated[int, _from_text(text.mode)] = 0o555
    mount_options: Annotated[MountOptions, _from_text(MountOptions.from_text)] = _NO_OPTIONS
    snapshot_max_age_s: Annotated[float, _from_text(partial(text.duration, least_s=0, most_s=365 * DAY_S))] = 600.0
    """Maximum age of a static volume's snapshot; a new mount with an older one lists the dataset again."""
    request_timeout_s: Annotated[float, _from_text(partial(text.duration, least_s=1, most_s=3600))] = 30.0
    deadline_s: Annotated[float, _from_text(partial(text.duration, least_s=1, most_s=DAY_S))] = 120.0
    view: Annotated[ViewMode, _from_text(partial(text.choice, allowed=("auto", "fuse", "materialised")))] = "auto"
    """How the volume is published: by its FUSE mount, or, once it is completely cached, as a tree of hard links."""
    opens: Annotated[OpensMode, _from_text(partial(text.choice, allowed=("auto", "kernel", "daemon")))] = "auto"
    """Which opens the files of the FUSE mount: the kernel by itself, and keeps their pages, or the daemon, which has
    complete files passed through; ``auto``: see ``filesystem/no_open_support.py``."""
    profile: Annotated[ProfileName, _from_text(partial(text.choice, allowed=PROFILES))] = "training"
    """What the volume is read for: sets the defaults of ``PROFILE_FIELDS``."""
    read_ahead_bytes: Annotated[int | None, _from_text(text.read_ahead)] = None
    """How far the driver fetches ahead of a sequential reader; None: as far as the daemon's settings say."""
    whole_files: Annotated[WholeFiles, _from_text(partial(text.choice, allowed=("none", "weights", "all")))] = "none"
    """Of which large files the first read starts the fetch of all bytes (``reading/readahead.py``)."""
    bandwidth_bytes: Annotated[int, _from_text(text.read_bandwidth)] = 0
    """Bytes a second that are requested from the store, for readers and warmups; 0: no limit."""
    warmup: Annotated[
        WarmupMode, _from_text(partial(text.choice, allowed=("none", "background", "wait", "memory")))
    ] = "none"
    """``memory``: as ``wait``, and the cached files are read into the page cache before it is complete."""
    warmup_include: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    warmup_memory_include: Annotated[tuple[str, ...], _from_text(text.globs)] = ()
    """Of the files of the warmup, those that are read into the page cache; none: all of them."""
    warmup_trace: Annotated[str | None, _from_text(text.trace_path)] = None
    """The path, below the URL, of a recorded trace: the warmup fetches what that names and nothing else."""
    warmup_bandwidth_bytes: Annotated[int, _from_text(text.bandwidth)] = 0
    """Bytes a second; 0: no limit."""
    warmup_concurrency: Annotated[int, _from_text(text.concurrency)] = 16
    """As many fetches as the readahead of a sequential reader has in flight (settings.ReadingSettings)."""

    address_rules: AddressRules = ANY_BUT_METADATA
    """By the operator's policy (``under``); those of an administrator's volume if there was none. No parameter: a
    context does not have them."""
    mirror_address_rules: tuple[AddressRules, ...] = ()
    """The same, of each mirror."""

    @classmethod
    def parse(
        cls, mapping: Mapping[str, str], policy: PolicySettings | None = None, tenant: Tenant = ADMINISTRATOR
    ) -> VolumeParameters:
        """Parses the parameters of a request and checks them against the operator's policy.

        Without a policy only the syntax is checked, as for parameters that were accepted before. Raises
        InvalidParameter, MissingParameter, ReadOnlyVolume, EndpointNotAllowed, ViewNotAllowed.
        """
        given: dict[str, str] = {}
        for key, value in mapping.items():
            if key.startswith(_FOREIGN_PREFIXES):
                continue
            if key not in _FIELDS:
                raise unknown_parameter(key, _FIELDS)
            if value.strip():
                given[_FIELDS[key]] = value.strip() if key != "caBundle" else value
        if "url" not in given:
            raise MissingParameter("url", "Set it to the dataset's URL, such as s3://my-bucket/train")
        values = {name: _PARSERS[name](key, given[name]) for key, name in _FIELDS.items() if name in given}
        parameters = cls(**{**defaults_of(values.get("profile", "training")), **values})
        if policy is not None:
            timeouts = {"request_timeout_s": parameters.request_timeout_s, "deadline_s": parameters.deadline_s}
            changed: Mapping[str, Any] = bounded_timeouts(timeouts, given, policy, tenant)
            parameters = replace(parameters, **changed)
        parameters._check_together()
        parameters._check_warmup()
        Selection.of(parameters.dataset)  # raises for a glob that cannot be read
        Selection.including(parameters.warmup_include, "warmupInclude")
        Selection.including(parameters.warmup_memory_include, "warmupMemoryInclude")
        parameters._check_mirrors()
        if policy is not None:
            check_number_of_globs(
                include=parameters.include,
                exclude=parameters.exclude,
                warmupInclude=parameters.warmup_include,
                warmupMemoryInclude=parameters.warmup_memory_include,
            )
            parameters._check_place(policy, tenant)
            for mirror, place in parameters.places_of_mirrors():
                with named(mirror.place):
                    place._check_place(policy, tenant)
            parameters._check_view(policy, tenant)
            check_unit(parameters.pod_role, tenant)
            return parameters.under(policy, tenant)
        return parameters

    def under(self, policy: PolicySettings, tenant: Tenant) -> VolumeParameters:
        """The same parameters with what the policy lets the volume do; ``parse`` checked them before, perhaps by an
        older policy."""
        of_mirrors = tuple(
            address_rules(place.url, place.store_options, policy, tenant) for _, place in self.places_of_mirrors()
        )
        rules = address_rules(self.url, self.store_options, policy, tenant)
        return replace(self, address_rules=rules, mirror_address_rules=of_mirrors)

    def places_of_mirrors(self) -> Iterator[tuple[Mirror, VolumeParameters]]:
        """The parameters of a volume at each mirror: what is judged, opened and named as that of the URL is."""
        rules = self.mirror_address_rules or (ANY_BUT_METADATA,) * len(self.mirrors)
        for mirror, of_mirror in zip(self.mirrors, rules, strict=True):
            fields: Mapping[str, Any] = mirror.fields
            alone = replace(self, mirrors=(), mirror_address_rules=(), inventory=None)
            yield mirror, replace(alone, address_rules=of_mirror, **fields)

    @property
    def dataset(self) -> Dataset:
        """The objects to list: URL and selection."""
        return Dataset(self.url, self.include, self.exclude)

    @property
    def places(self) -> tuple[DatasetUrl, ...]:
        """Everything that the volume reads: the dataset, and the folder of its inventory."""
        return (self.url,) if self.inventory is None else (self.url, self.inventory.folder_url)

    @property
    def store_options(self) -> StoreOptions:
        return StoreOptions(
            endpoint=self.endpoint,
            region=self.region,
            addressing_style=self.addressing_style,
            anonymous=self.anonymous,
            requester_pays=self.requester_pays,
            billing_project=self.billing_project,
            ca_bundle_pem=self.ca_bundle,
            backend=self.backend,
            verify_checksums=self.verify_checksums,
            manifest=self.manifest,
            request_timeout_s=self.request_timeout_s,
            deadline_s=self.deadline_s,
            address_rules=self.address_rules,
        )

    @property
    def pod_role(self) -> PodRole | None:
        """What the volume's pod is at the provider; None without ``identity: pod``. Raises InvalidParameter,
        MissingParameter."""
        given = {field: getattr(self, field) for field in ROLE_FIELDS if getattr(self, field) is not None}
        return pod_role(self.identity, self.url.scheme, given, None if self.endpoint else self.region)

    @property
    def token_audiences(self) -> tuple[str, ...]:
        """Of ``identity: pod``: any of them will do."""
        return (self.audience,) if self.audience else audiences(self.pod_role or PodRole())

    def to_context(self) -> dict[str, str]:
        """The canonical text of all values that differ from their default; the inverse of ``parse``."""
        context = {}
        for key, field in _FIELDS.items():
            value = getattr(self, field)
            if field == "url" or value != _default_of(field, self.profile):
                context[key] = _to_text(field, value)
        return context

    def modified_by(self, changes: Mapping[str, str]) -> VolumeParameters:
        """With the changes of ``parse_changes``. One that this version does not know, of a later one, is left out."""
        known = {_FIELDS[name]: given for name, given in changes.items() if name in MUTABLE_PARAMETERS}
        changed = {field: _changed_value(field, given, self.profile) for field, given in known.items()}
        return replace(self, **changed)

    def shows_same_as(self, other: VolumeParameters) -> bool:
        """Whether both list the same objects. Owner, modes, credentials and time-outs do not affect the listing."""
        return (self.dataset, self.endpoint, self.region, self.manifest, self.inventory) == (
            other.dataset,
            other.endpoint,
            other.region,
            other.manifest,
            other.inventory,
        )

    def _check_place(self, policy: PolicySettings, tenant: Tenant) -> None:
        """Whether the operator lets the tenant name this place, and that of its inventory."""
        for place in self.places:
            with nullcontext() if place == self.url else named(f"inventory: {self.inventory}"):
                check_policy(place, self.store_options, policy)
                check_namespace(place, self.store_options, policy, tenant)
                check_library(place, self.store_options, policy, tenant)

    def _check_mirrors(self) -> None:
        check_mirrors(self.url, self.endpoint, self.mirrors)
        for name, given, default in (
            ("mirrorCheck", self.mirror_check, "content"),
            ("mirrorOrder", self.mirror_order, "nearest"),
        ):
            if given != default and not self.mirrors:
                raise InvalidParameter(name, given, "set with mirrors only")
        for mirror, place in self.places_of_mirrors():
            with named(mirror.place):
                place._check_together()

    def _check_view(self, policy: PolicySettings, tenant: Tenant) -> None:
        """Views are not for every volume: see ``daemon/local_data_plane.py``."""
        if self.view == "materialised" and not policy.trusts(tenant):
            raise ViewNotAllowed(
                f"view: 'materialised' is not allowed for an inline volume in namespace {tenant.namespace!r}; allowed: "
                f"auto, fuse. The operator of the driver allows it with --trusted-namespace={tenant.namespace}"
            )

    def _check_warmup(self) -> None:
        if self.warmup_trace is not None and self.warmup_include:
            remedy = "A warmup with a trace fetches what the trace names; leave one of the two out"
            raise InvalidParameter("warmupTrace", self.warmup_trace, "set without warmupInclude", remedy)

    def _check_lists(self) -> None:
        if self.manifest is not None:
            if not self.url.is_web:
                remedy = "Other stores list their objects themselves"
                raise InvalidParameter("manifest", self.manifest, "set for http:// and https:// URLs only", remedy)
            listed_key(self.url, self.manifest, "manifest")
        if self.inventory is not None and self.inventory.scheme != self.url.scheme:
            if self.url.is_web:
                remedy = "Of a web server, name a list of its files by manifest"
                raise InvalidParameter("inventory", str(self.inventory), "left out for http(s) URLs", remedy)
            remedy = "The inventory is read by the volume's own store, with its credentials"
            raise InvalidParameter("inventory", str(self.inventory), f"a {self.url.scheme}:// URL, as url", remedy)

    def _check_together(self) -> None:
        role = self.pod_role
        if role is None and self.audience is not None:
            raise InvalidParameter("audience", self.audience, "set with identity: pod only")
        if role is not None and self.anonymous:
            raise InvalidParameter("identity", "pod", "auto with anonymous: true")
        if self.backend == "s3fs" and self.url.scheme != "s3":
            raise InvalidParameter("backend", "s3fs", f"auto or obstore for a {self.url.scheme}:// URL")
        self._check_lists()
        if self.anonymous and self.requester_pays:
            remedy = "The payer must be known: give credentials, or leave requesterPays out"
            raise InvalidParameter("requesterPays", "true", "false with anonymous: true", remedy)
        if self.billing_project is not None and not (self.requester_pays and self.url.scheme in ("gs", "gcs")):
            allowed = "set for gs:// URLs with requesterPays: true only"
            raise InvalidParameter("billingProject", self.billing_project, allowed)
        if self.view == "materialised" and self.file_mode != OBJECT_FILE_MODE:
            remedy = "Files of a materialised view are hard links to those of the cache and share their mode"
            allowed = f"{OBJECT_FILE_MODE:04o} with view: materialised"
            raise InvalidParameter("fileMode", f"{self.file_mode:04o}", allowed, remedy)
        if self.deadline_s < self.request_timeout_s:
            least = text.duration_text(self.request_timeout_s)
            raise InvalidParameter(
                "deadline", text.duration_text(self.deadline_s), f"at least requestTimeout ({least})"
            )


def _default_of(field: str, profile: str) -> Any:
    return defaults_of(profile).get(field, _DEFAULTS[field])


def _parsers() -> Mapping[str, Callable[[str, str], Any]]:
    """By field, of all that are parameters."""
    hints = get_type_hints(VolumeParameters, include_extras=True)
    return {name: hint.__metadata__[0].parse for name, hint in hints.items() if hasattr(hint, "__metadata__")}


_PARSERS = _parsers()
_FIELDS = {_parameter_name(name): name for name in _PARSERS}
_DEFAULTS = {field.name: field.default for field in fields(VolumeParameters)}

PARAMETERS = tuple(_FIELDS)
"""The names of all parameters, in the order of ``docs/parameters.md``."""


def default_texts() -> dict[str, str]:
    """The text of each parameter's default value by the parameter's name; empty where there is none."""
    defaults = {name: _DEFAULTS[field] for name, field in _FIELDS.items() if field != "url"}
    return {name: "" if value is None else _to_text(_FIELDS[name], value) for name, value in defaults.items()}


MUTABLE_PARAMETERS = (
    "bandwidth",
    "cacheReservation",
    "snapshotMaxAge",
    "warmup",
    "warmupInclude",
    "warmupMemoryInclude",
    "warmupTrace",
    "warmupBandwidth",
    "warmupConcurrency",
)
"""Those that can be changed after a volume was made: they change nothing in what it shows, and to whom."""


def parse_changes(mapping: Mapping[str, str]) -> dict[str, str]:
    """The canonical text of parameters to be changed; empty for one that gets its default back. Raises
    InvalidParameter, UnknownParameter."""
    changes = {}
    for name, given in mapping.items():
        if name.startswith(_FOREIGN_PREFIXES):
            continue
        if name not in _FIELDS:
            raise unknown_parameter(name, _FIELDS)
        if name not in MUTABLE_PARAMETERS:
            allowed = f"one of {', '.join(MUTABLE_PARAMETERS)}, refresh"
            remedy = f"{name} is set when a volume is made; make a new volume"
            raise InvalidParameter("mutable_parameters", name, allowed, remedy)
        field = _FIELDS[name]
        # The profile of the volume is not known here, and with it the default of some fields: what is given stays.
        value = _changed_value(field, given, "training")
        if name in ("warmupInclude", "warmupMemoryInclude"):
            Selection.including(value, name)
            check_number_of_globs(**{name: value})
        is_default = not given.strip() if field in PROFILE_FIELDS else value == _DEFAULTS[field]
        changes[name] = "" if is_default else _to_text(field, value)
    return changes


def _changed_value(field: str, given: str, profile: str) -> Any:
    return _PARSERS[field](_parameter_name(field), given.strip()) if given.strip() else _default_of(field, profile)


def _to_text(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, MountOptions):
        return ",".join(value.flags)
    if field == "mirrors":
        return mirrors_text(value)
    if isinstance(value, tuple):
        return text.globs_text(value)
    if isinstance(value, float):
        return text.duration_text(value)
    if field in ("bandwidth_bytes", "warmup_bandwidth_bytes"):
        return text.bandwidth_text(value)
    if field in ("cache_reservation_bytes", "read_ahead_bytes"):
        return text.size_text(value)
    if field in ("file_mode", "dir_mode"):
        return f"{value:04o}"
    return str(value)
