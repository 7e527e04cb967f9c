"""The cluster's cache as settings name it, and its end with the daemon."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from csi_driver import telemetry
from csi_driver.kubernetes.api_server import ApiServer
from csi_driver.kubernetes.endpoint_slices import EndpointSlices
from csi_driver.model.errors import InvalidParameter
from csi_driver.model.replica import USED_SHARE, Replica
from csi_driver.model.tracebacks import summary
from csi_driver.objects.tier.key_file import link_secret, read_key
from csi_driver.objects.tier.slice_names import LinkSigner
from csi_driver.settings import TierSettings

if TYPE_CHECKING:
    from csi_driver.objects.tier.replica_set import Tier

logger = logging.getLogger(__name__)

CERTIFICATES_S = 60.0
"""How often the files are looked at: they are replaced weeks before the old ones expire."""


@contextmanager
def opened_tier(settings: TierSettings) -> Iterator[Tier | None]:
    """The tier during the body; None without one. Sends nothing to a replica. Raises InvalidParameter."""
    if not settings.enabled or settings.key_file is None:
        yield None
        return
    from csi_driver.objects.tier.replica_set import Tier, TierIdentity, TierPolicy  # with the clients that it uses

    with ExitStack() as stack:
        key = read_key("--tier-key", settings.key_file)
        tls = None
        if settings.ca_file and settings.certificate_file and settings.certificate_key_file:
            certificates = ClientCertificates(
                settings.ca_file, settings.certificate_file, settings.certificate_key_file
            )
            tls = certificates.context
            stack.enter_context(certificates.renewed())
        links = None if tls is not None else LinkSigner(link_secret(key))
        members = _members(settings, stack)
        used_bytes = int(settings.replica_bytes * USED_SHARE)
        policy = TierPolicy(used_bytes, settings.zone, settings.cross_zone, settings.timeout_s)
        tier = Tier(TierIdentity(key, tls, settings.server_name, links), policy, members)
        stack.callback(tier.close)
        yield tier


def _members(settings: TierSettings, stack: ExitStack) -> Callable[[], tuple[Replica, ...]]:
    if settings.replicas:
        fixed = settings.replicas
        return lambda: fixed
    namespace, _, service = settings.service.partition("/")
    api_server = ApiServer.of_this_pod(os.environ)
    if api_server is None:
        raise InvalidParameter(
            "--tier-service",
            settings.service,
            "a Service of the cluster that this process runs in",
            "it runs in none, or its pod has no token; name the replicas by --tier",
        )
    slices = EndpointSlices(api_server, namespace, service)
    slices.start()
    stack.callback(slices.close)
    return lambda: slices.members


class ClientCertificates:
    """A context whose certificate is read anew when its files have changed: connections from then on use it."""

    def __init__(self, authority: Path, certificate: Path, key: Path) -> None:
        """Raises InvalidParameter, which names the flag of the file that cannot be used."""
        self._authority, self._certificate, self._key = authority, certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._seen = self._times()
        self._load()

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Looks at the files from time to time during the body."""
        ending = threading.Event()

        def run() -> None:
            while not ending.wait(CERTIFICATES_S):
                self.renew()

        threading.Thread(target=run, name="tier-certificates", daemon=True).start()
        try:
            yield
        finally:
            ending.set()

    def renew(self) -> None:
        """Reads the files if they have changed. Those that cannot be used leave the context as it was, and are read
        again at the next look."""
        times = self._times()
        if times == self._seen:
            return
        try:
            self._load()
        except InvalidParameter as error:
            facts = telemetry.fields(error=str(error))
            logger.warning("the certificates for the cluster's cache were not renewed; it is retried", extra=facts)
            return
        self._seen = times

    def _times(self) -> tuple[int, ...]:
        return tuple(_changed_ns(path) for path in (self._authority, self._certificate, self._key))

    def _load(self) -> None:
        try:
            self.context.load_verify_locations(cafile=str(self._authority))
        except (OSError, ssl.SSLError) as error:
            raise InvalidParameter(
                "--tier-ca", str(self._authority), f"certificates in PEM form ({summary(error)})"
            ) from None
        try:
            self.context.load_cert_chain(str(self._certificate), str(self._key))
        except (OSError, ssl.SSLError) as error:
            allowed = f"a certificate in PEM form, and its key in --tier-cert-key ({summary(error)})"
            raise InvalidParameter("--tier-cert", str(self._certificate), allowed) from None


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
