"""CSI Controller: a dynamic volume is a snapshot of a dataset, recorded in the registry. This process has no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

import grpc

from csi_driver.csi.capabilities import check_capabilities, refusal
from csi_driver.csi.capacity_calls import CapacityCalls
from csi_driver.csi.change_calls import ChangeCalls
from csi_driver.csi.claim_events import ClaimEvents
from csi_driver.csi.health_calls import HEALTH_CAPABILITIES, HealthCalls, RecordedVolumes
from csi_driver.csi.parameter_templates import Annotations, expand_templates
from csi_driver.csi.requested_capacity import RequestedCapacity, checked_capacity
from csi_driver.csi.snapshot_calls import SnapshotCalls
from csi_driver.csi.snapshot_events import SnapshotEvents
from csi_driver.model.errors import (
    CapacityOutOfRange,
    InvalidParameter,
    RequestError,
    VolumeConflict,
    VolumeNotFound,
)
from csi_driver.model.tenant import Tenant
from csi_driver.rpc.pb import csi_pb2
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.settings import CacheCapacity, PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.content_sources import inherited, require_same_dataset
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import SnapshotRecord, VolumeRecord
from csi_driver.volumes.volume_changes import REFRESH, VolumeChanges, split_refresh
from csi_driver.volumes.volume_ids import check_id, dynamic_volume_id
from csi_driver.volumes.volume_snapshots import VolumeSnapshots

_Rpc = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_VOLUME,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.MODIFY_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    *HEALTH_CAPABILITIES,
)
"""Not LIST_VOLUMES_PUBLISHED_NODES: the controller publishes nothing, so it knows no node that shows a volume."""

_CLAIM_NAMESPACE = "csi.storage.k8s.io/pvc/namespace"
"""A parameter that external-provisioner adds with --extra-create-metadata."""


class SnapshotFacts(Protocol):
    """The properties of a snapshot that the controller records."""

    @property
    def snapshot_id(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def file_count(self) -> int: ...
    @property
    def created(self) -> datetime: ...


Source = VolumeRecord | SnapshotRecord


class Volumes(RecordedVolumes, Protocol):
    """Creates and deletes dynamic volumes; ``volumes/dynamic_volumes.py`` implements it. All methods block, and all may
    raise RegistryUnavailable."""

    def ensure(
        self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant, volume_id: str = ""
    ) -> SnapshotFacts:
        """Lists the dataset; may take minutes, and continues what was listed for this volume when the process was
        killed. Writes nothing to the registry: ``create`` does. Raises RequestError,
        StoreError, DatasetError, BudgetExceeded."""

    def source(self, kind: str, source_id: str) -> Source:
        """Of what a volume is to be made. Raises SnapshotNotFound, VolumeNotFound."""

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Records the volume, or returns the record of an equal one. Raises VolumeConflict."""

    def delete(self, volume_id: str) -> None:
        """Ensures that there is no such volume. The bucket is never touched."""


class ControllerService(SnapshotCalls, ChangeCalls, CapacityCalls, HealthCalls):
    """Calls that are not defined here, or in the base classes, return UNIMPLEMENTED, and no capability advertises
    them."""

    def __init__(
        self,
        volumes: Volumes,
        snapshots: VolumeSnapshots,
        changes: VolumeChanges,
        policy: PolicySettings,
        capacities: Sequence[CacheCapacity] = (),
        annotations: Annotations | None = None,
        events: ClaimEvents | None = None,
        snapshot_events: SnapshotEvents | None = None,
    ) -> None:
        """``capacities``: those that GetCapacity reports; none: it is not claimed. ``annotations`` of claims, for
        templates; None: outside of a cluster."""
        self._volumes = self._recorded = volumes
        self._snapshots, self._changes = snapshots, changes
        self._policy, self._capacities, self._annotations = policy, capacities, annotations
        self._events = events or ClaimEvents()
        self._snapshot_events = snapshot_events or SnapshotEvents()
        self._pending = VolumeClaims()

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        volume_id = dynamic_volume_id(request.name)
        check_capabilities(request.volume_capabilities)
        capacity = checked_capacity(request.capacity_range)
        given = expand_templates({**request.parameters, **_mutable(request)}, self._annotations)
        source = _source(request)
        tenant = Tenant(request.parameters.get(_CLAIM_NAMESPACE, ""))
        # Those of a source are not known yet. Of all others a wrong one is found before anything is looked up.
        parameters = None if source[0] else self._parsed(given, request.secrets, tenant)
        with self._pending.claim(volume_id):
            record = self._volumes.get(volume_id)
            if record is not None:
                parameters = parameters or self._parsed(inherited(given, record), request.secrets, tenant)
                _check_serves(record, parameters, source, capacity)
            else:
                record = self._create(request, volume_id, parameters or given, capacity, tenant)
        return csi_pb2.CreateVolumeResponse(volume=_volume(record))

    def _create(
        self,
        request: csi_pb2.CreateVolumeRequest,
        volume_id: str,
        given: VolumeParameters | Mapping[str, str],
        capacity: RequestedCapacity,
        tenant: Tenant,
    ) -> VolumeRecord:
        """``given``: parsed already, or over those of the source. Writes the record last, after everything that can
        fail."""
        kind, source_id = _source(request)
        facts: SnapshotFacts
        if isinstance(given, VolumeParameters):
            parameters = given
            with self._events.listing(request):
                facts = self._volumes.ensure(parameters, dict(request.secrets), tenant, volume_id)
        else:
            facts = source = self._volumes.source(kind, source_id)
            parameters = self._parsed(inherited(given, source), request.secrets, tenant)
            require_same_dataset(parameters, source)
        if capacity.limit_bytes and facts.total_bytes > capacity.limit_bytes:
            raise CapacityOutOfRange(
                f"capacity_range: the dataset has {facts.total_bytes} bytes, more than limit_bytes "
                f"({capacity.limit_bytes}); ask for more, or select less of it with include and exclude"
            )
        record = VolumeRecord(
            volume_id=volume_id,
            name=request.name,
            dynamic=True,
            parameters=parameters.to_context(),
            snapshot_id=facts.snapshot_id,
            required_bytes=capacity.required_bytes,
            total_bytes=facts.total_bytes,
            file_count=facts.file_count,
            created=facts.created,
            namespace=tenant.namespace,
            source_kind=kind,
            source_id=source_id,
            refreshed=request.mutable_parameters.get(REFRESH, "").strip(),
        )
        return self._volumes.create(record)

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        check_id("volume_id", request.volume_id)
        with self._pending.claim(request.volume_id):
            self._volumes.delete(request.volume_id)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        check_id("volume_id", request.volume_id)
        reason = refusal(request.volume_capabilities)
        record = self._required(request.volume_id)
        reason = reason or _difference(record, request, self._annotations)
        if reason is not None:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=reason)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ListVolumes(
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        page = self._volumes.list(most=request.max_entries, token=request.starting_token)
        entries = [csi_pb2.ListVolumesResponse.Entry(volume=_volume(record)) for record in page.entries]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=page.next_token)

    def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeResponse:
        check_id("volume_id", request.volume_id)
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus()
        return csi_pb2.ControllerGetVolumeResponse(volume=_volume(self._required(request.volume_id)), status=status)

    def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        kinds = (*_CAPABILITIES, *((_Rpc.GET_CAPACITY,) if self._capacities else ()))
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in kinds]
        )

    def _parsed(self, given: Mapping[str, str], secrets: Mapping[str, str], tenant: Tenant) -> VolumeParameters:
        """Of a new volume, under the operator's policy. Raises as ``VolumeParameters.parse`` and ``admit``."""
        parameters = VolumeParameters.parse(given, self._policy, tenant)
        admit(parameters, secrets, self._policy, tenant)
        return parameters

    def _required(self, volume_id: str) -> VolumeRecord:
        record = self._volumes.get(volume_id)
        if record is None:
            raise VolumeNotFound(f"{volume_id}: no such volume in the registry")
        return record


def _mutable(request: csi_pb2.CreateVolumeRequest) -> dict[str, str]:
    """Those of a VolumeAttributesClass, which go before those of the StorageClass. Raises InvalidParameter,
    UnknownParameter."""
    changes, _ = split_refresh(request.mutable_parameters)
    return changes


def _source(request: csi_pb2.CreateVolumeRequest) -> tuple[Literal["", "snapshot", "volume"], str]:
    """Kind and id of what the volume is to be made of; both empty: of its dataset. Raises InvalidParameter,
    MissingParameter."""
    if not request.HasField("volume_content_source"):
        return "", ""
    source = request.volume_content_source
    if source.HasField("snapshot"):
        check_id("volume_content_source.snapshot.snapshot_id", source.snapshot.snapshot_id)
        return "snapshot", source.snapshot.snapshot_id
    if source.HasField("volume"):
        check_id("volume_content_source.volume.volume_id", source.volume.volume_id)
        return "volume", source.volume.volume_id
    raise InvalidParameter("volume_content_source", "empty", "a snapshot or a volume")


def _check_serves(
    record: VolumeRecord, requested: VolumeParameters, source: tuple[str, str], capacity: RequestedCapacity
) -> None:
    """Raises VolumeConflict unless the request would create the volume that exists."""
    if source != (record.source_kind, record.source_id):
        raise VolumeConflict(f"name: a volume {record.name!r} exists, of another source; choose another name")
    shown_bytes = max(record.total_bytes, record.required_bytes)
    same_size = record.required_bytes == capacity.required_bytes
    if record.parsed().to_context() != requested.to_context():
        raise VolumeConflict(f"name: a volume {record.name!r} exists with other parameters; choose another name")
    if not same_size or (capacity.limit_bytes and shown_bytes > capacity.limit_bytes):
        raise VolumeConflict(
            f"name: a volume {record.name!r} of {shown_bytes} bytes exists, made for required_bytes "
            f"{record.required_bytes}; choose another name"
        )


def _volume(record: VolumeRecord) -> csi_pb2.Volume:
    """The volume context is the parameters in canonical form: they cannot contain a secret."""
    source = csi_pb2.VolumeContentSource
    made_of = None
    if record.source_kind == "snapshot":
        made_of = source(snapshot=source.SnapshotSource(snapshot_id=record.source_id))
    elif record.source_kind == "volume":
        made_of = source(volume=source.VolumeSource(volume_id=record.source_id))
    return csi_pb2.Volume(
        volume_id=record.volume_id,
        capacity_bytes=record.capacity_bytes,
        volume_context=record.parameters,
        content_source=made_of,
    )


def _difference(
    record: VolumeRecord,
    request: csi_pb2.ValidateVolumeCapabilitiesRequest,
    annotations: Annotations | None,
) -> str | None:
    """How the context or the parameters differ from those of the volume; None if they do not, or were not given."""
    try:
        split_refresh(request.mutable_parameters)
    except RequestError as error:
        return f"mutable_parameters: {error}"
    given_fields = {"volume_context": request.volume_context, "parameters": request.parameters}
    given_fields = {field: given for field, given in given_fields.items() if given}
    recorded = record.parsed() if given_fields else None
    for field, given in given_fields.items():
        try:
            if VolumeParameters.parse(expand_templates(given, annotations)) != recorded:
                return f"{field}: is not that of the volume"
        except RequestError as error:
            return f"{field}: {error}"
    return None
