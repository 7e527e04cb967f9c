"""Opens the store of a volume, with its mirrors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from csi_driver import telemetry
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.model.dataset import Credentials
from csi_driver.model.errors import RequestError, StoreError
from csi_driver.objects.credentials import access_domain, joint_domain, parse_secret, secret_of_mirror, store_user
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.objects.request_spans import traced
from csi_driver.objects.s3.region import with_region
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store, open_store_late
from csi_driver.volumes.parameters import VolumeParameters

if TYPE_CHECKING:
    from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
    from csi_driver.objects.mirrors.mirrored_store import Mirrored
    from csi_driver.objects.mirrors.origin_speeds import OriginSpeeds

logger = logging.getLogger(__name__)


class StoreOpener(Protocol):
    """Opens the store of a volume; tests replace it."""

    def __call__(self, parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
        """Raises StoreError, RequestError."""


class VolumeStore(NamedTuple):
    """The store of a volume, with its access domain, and the region that was determined to open it."""

    store: ObjectStore
    access_domain: str
    region: str | None = None
    user: str = ""
    """As of ``store_user``."""
    mirrors: Mirrored | None = None
    """What reads its mirrors, if it has any; part of ``store``."""


def open_volume_store(
    parameters: VolumeParameters,
    secrets: Mapping[str, str],
    counts: RequestCounts | None = None,
    mirror_counts: MirrorCounts | None = None,
) -> VolumeStore:
    """The default StoreOpener, whose requests are added to ``counts``, and those of volumes with mirrors to
    ``mirror_counts``. Sends no request to the store yet, but may send requests to a source of credentials, and to AWS
    for the region of a bucket."""
    credentials = parse_secret(secrets)
    counts = counts and traced(counts, str(parameters.url), secrets)
    domain = _domain(parameters, secrets, credentials)
    options = with_region(parameters.url, parameters.store_options)
    user = store_user(parameters.url, parameters.store_options, credentials)
    speeds = _speeds(parameters)
    of_store = counts if speeds is None else speeds.counting(0, counts or RequestCounts())
    store = open_store(parameters.url, options, credentials, counts=of_store)
    opened = VolumeStore(store, domain, options.region, user)
    if not parameters.mirrors:
        return opened
    try:
        return with_mirrors(opened, parameters, secrets, counts, speeds, mirror_counts)
    except BaseException:
        store.close()
        raise


def reopen_volume_store(
    record: MountRecord,
    parameters: VolumeParameters,
    secrets: Mapping[str, str],
    opener: StoreOpener,
    counts: RequestCounts | None = None,
    mirror_counts: MirrorCounts | None = None,
) -> VolumeStore:
    """For the adoption of a mount: neither a failure of the network nor a Secret that this version refuses is an error,
    since cached data is readable without them; each fetch then opens the store, and raises what that raises, unless a
    mirror has the object. Blocks up to the time-out of an identity service. Raises MissingParameter for an Azure
    dataset with a refused Secret."""
    recorded = dataclasses.replace(parameters, region=parameters.region or record.region)
    try:
        return opener(recorded, secrets)
    except (StoreError, RequestError) as error:
        facts = telemetry.fields(volume_id=record.volume_id, url=str(parameters.url), error=str(error))
        logger.warning("the store of an adopted volume is not available; it is opened at the next fetch", extra=facts)
    credentials = _lenient(secrets)
    url, options = parameters.url, recorded.store_options
    user = store_user(url, parameters.store_options, credentials)
    domain = _domain(parameters, secrets, credentials, lenient=True)
    if not parameters.mirrors:
        lazy_store = open_store_late(url, options, lambda: parse_secret(secrets), counts)
        return VolumeStore(lazy_store, domain, record.region, user)
    from csi_driver.objects.mirrors.mirror_factory import MirrorPlace, first_opened_late

    speeds = _speeds(parameters)
    of_store = counts if speeds is None else speeds.counting(0, counts or RequestCounts())
    first = first_opened_late(MirrorPlace(url, options, lambda: parse_secret(secrets)), of_store)
    opened = VolumeStore(first, domain, record.region, user)
    return with_mirrors(opened, recorded, secrets, counts, speeds, mirror_counts)


def _speeds(parameters: VolumeParameters) -> OriginSpeeds | None:
    """None: the listed order holds."""
    if not parameters.mirrors or parameters.mirror_order == "listed":
        return None
    from csi_driver.objects.mirrors.origin_speeds import OriginSpeeds

    return OriginSpeeds(1 + len(parameters.mirrors))


def _lenient(secrets: Mapping[str, str]) -> Credentials:
    """None for a Secret that this version refuses: what is cached is read without them."""
    try:
        return parse_secret(secrets)
    except RequestError:
        return Credentials()


def _domain(
    parameters: VolumeParameters, secrets: Mapping[str, str], credentials: Credentials, *, lenient: bool = False
) -> str:
    """The access domain; with mirrors, one that only volumes with the same mirrors have. ``lenient``: a mirror that has
    no domain for want of its account has an empty one. Raises InvalidParameter, MissingParameter."""
    own = access_domain(parameters.url, parameters.store_options, credentials)
    if not parameters.mirrors:
        return own
    places = [f"{parameters.url} {own}"]
    for number, (_, place) in enumerate(parameters.places_of_mirrors(), 1):
        of_mirror = _lenient(secret_of_mirror(secrets, number))
        try:
            domain = access_domain(place.url, place.store_options, of_mirror)
        except RequestError:
            if not lenient:
                raise
            domain = ""
        places.append(f"{place.url} {domain}")
    return joint_domain(places, parameters.mirror_check)


def with_mirrors(
    opened: VolumeStore,
    parameters: VolumeParameters,
    secrets: Mapping[str, str],
    counts: RequestCounts | None,
    speeds: OriginSpeeds | None = None,
    mirror_counts: MirrorCounts | None = None,
) -> VolumeStore:
    """The store with the mirrors of the volume, which are opened when they are first needed. Sends no request."""
    from csi_driver.objects.mirrors.mirror_factory import MirrorPlace, mirrored_store

    places = [
        MirrorPlace(place.url, place.store_options, partial(parse_secret, secret_of_mirror(secrets, number)))
        for number, (_, place) in enumerate(parameters.places_of_mirrors(), 1)
    ]
    store, mirrors = mirrored_store(
        parameters.url,
        parameters.store_options,
        opened.store,
        places,
        size_is_enough=parameters.mirror_check == "size",
        counts=counts,
        speeds=speeds,
        mirror_counts=mirror_counts,
    )
    return opened._replace(store=store, mirrors=mirrors)
