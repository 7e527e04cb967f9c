"""CSI Controller: a dynamic volume is a snapshot of a dataset, recorded in the registry. This process has no state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

import grpc

from csi_driver.csi.capabilities import check_capabilities, refusal
from csi_driver.csi.parameter_templates import expand_templates
from csi_driver.model.errors import CapacityOutOfRange, InvalidParameter, RequestError, VolumeConflict, VolumeNotFound
from csi_driver.model.tenant import Tenant
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.settings import PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import VolumeRecord
from csi_driver.volumes.volume_ids import check_id, dynamic_volume_id

_Rpc = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES = (_Rpc.CREATE_DELETE_VOLUME,)

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


class Volumes(Protocol):
    """Creates and deletes dynamic volumes; ``volumes/dynamic_volumes.py`` implements it. All methods block, and all may
    raise RegistryUnavailable."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """None if the registry has no record of the volume."""

    def ensure(self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant) -> SnapshotFacts:
        """Lists the dataset; may take minutes. Writes nothing to the registry: ``create`` does. Raises RequestError,
        StoreError, DatasetError, BudgetExceeded."""

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Records the volume, or returns the record of an equal one. Raises VolumeConflict."""

    def delete(self, volume_id: str) -> None:
        """Ensures that there is no such volume. The bucket is never touched."""


class ControllerService(csi_pb2_grpc.ControllerServicer):
    """Calls that are not defined here return UNIMPLEMENTED, and no capability advertises them."""

    def __init__(self, volumes: Volumes, policy: PolicySettings) -> None:
        self._volumes = volumes
        self._policy = policy
        self._pending = VolumeClaims()

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        volume_id = dynamic_volume_id(request.name)
        check_capabilities(request.volume_capabilities)
        _refuse_unknown(request)
        capacity = _checked_capacity(request.capacity_range)
        parameters = VolumeParameters.parse(expand_templates(request.parameters), self._policy)
        admit(parameters, request.secrets, self._policy)
        with self._pending.claim(volume_id):
            record = self._volumes.get(volume_id)
            if record is None:
                record = self._create(request, volume_id, parameters, capacity)
            else:
                _check_serves(record, parameters, capacity)
        return csi_pb2.CreateVolumeResponse(volume=_volume(record))

    def _create(
        self,
        request: csi_pb2.CreateVolumeRequest,
        volume_id: str,
        parameters: VolumeParameters,
        capacity: csi_pb2.CapacityRange,
    ) -> VolumeRecord:
        """Writes the record last, after everything that can fail."""
        namespace = request.parameters.get(_CLAIM_NAMESPACE, "")
        facts = self._volumes.ensure(parameters, dict(request.secrets), Tenant(namespace))
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
            namespace=namespace,
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
        record = self._volumes.get(request.volume_id)
        if record is None:
            raise VolumeNotFound(f"{request.volume_id}: no such volume in the registry")
        reason = reason or _difference(record, request)
        if reason is not None:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=reason)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )


def _refuse_unknown(request: csi_pb2.CreateVolumeRequest) -> None:
    """Refuses fields of capabilities that this driver does not advertise: to ignore them would be to promise them."""
    if request.HasField("volume_content_source"):
        kind = request.volume_content_source.WhichOneof("type") or "empty"
        remedy = "A dataset is named by the parameter url; volumes are not cloned or restored"
        raise InvalidParameter("volume_content_source", kind, "none", remedy)
    if request.mutable_parameters:
        names = ", ".join(sorted(request.mutable_parameters))
        raise InvalidParameter(
            "mutable_parameters", names, "none", "Volumes cannot be modified; set parameters instead"
        )


def _checked_capacity(capacity: csi_pb2.CapacityRange) -> csi_pb2.CapacityRange:
    """Both limits are in bytes; 0: not given. Raises InvalidParameter, CapacityOutOfRange."""
    required_bytes, limit_bytes = capacity.required_bytes, capacity.limit_bytes
    if required_bytes < 0 or limit_bytes < 0:
        raise InvalidParameter("capacity_range", min(required_bytes, limit_bytes), "0 or more bytes")
    if limit_bytes and required_bytes > limit_bytes:
        raise CapacityOutOfRange(
            f"capacity_range: required_bytes ({required_bytes}) is more than limit_bytes ({limit_bytes})"
        )
    return capacity


def _check_serves(record: VolumeRecord, parameters: VolumeParameters, capacity: csi_pb2.CapacityRange) -> None:
    """Raises VolumeConflict unless the request would create the volume that exists."""
    shown_bytes = max(record.total_bytes, record.required_bytes)
    same_size = record.required_bytes == capacity.required_bytes
    if record.parsed().to_context() != parameters.to_context():
        raise VolumeConflict(f"name: a volume {record.name!r} exists with other parameters; choose another name")
    if not same_size or (capacity.limit_bytes and shown_bytes > capacity.limit_bytes):
        raise VolumeConflict(
            f"name: a volume {record.name!r} of {shown_bytes} bytes exists, made for required_bytes "
            f"{record.required_bytes}; choose another name"
        )


def _volume(record: VolumeRecord) -> csi_pb2.Volume:
    """The volume context is the parameters in canonical form: they cannot contain a secret."""
    return csi_pb2.Volume(
        volume_id=record.volume_id,
        capacity_bytes=max(record.total_bytes, record.required_bytes),
        volume_context=record.parameters,
    )


def _difference(record: VolumeRecord, request: csi_pb2.ValidateVolumeCapabilitiesRequest) -> str | None:
    """How the context or the parameters differ from those of the volume; None if they do not, or were not given."""
    if request.mutable_parameters:
        return "mutable_parameters: volumes cannot be modified"
    given_fields = {"volume_context": request.volume_context, "parameters": request.parameters}
    given_fields = {field: given for field, given in given_fields.items() if given}
    recorded = record.parsed() if given_fields else None
    for field, given in given_fields.items():
        try:
            if VolumeParameters.parse(expand_templates(given)) != recorded:
                return f"{field}: is not that of the volume"
        except RequestError as error:
            return f"{field}: {error}"
    return None
