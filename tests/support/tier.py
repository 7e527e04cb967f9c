"""A cluster's cache for tests: real nginx replicas, and daemons or stores that ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.replica import Replica
from csi_driver.objects.credentials import access_domain
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.tier.key_file import link_secret
from csi_driver.objects.tier.nginx_config import TlsFiles
from csi_driver.objects.tier.replica_set import Tier, TierIdentity, TierPolicy
from csi_driver.objects.tier.slice_names import LinkSigner, SliceNames
from csi_driver.objects.tier.tiered_store import Tiered, tiered
from csi_driver.wiring.tier_members import ClientCertificates
from hayloft_lab.nginx_process import HOST
from hayloft_lab.nginx_replica import NginxReplica
from hayloft_lab.seaweedfs import SeaweedFsServer

KEY = b"the key of a cluster of the tests, 32 bytes and more"


@contextmanager
def running_replicas(directory: Path, count: int, **options: Any) -> Iterator[list[NginxReplica]]:
    """With signed paths, unless ``tls`` is given."""
    options = ({} if "tls" in options else {"link_secret": link_secret(KEY)}) | options
    replicas = [NginxReplica(directory / f"replica-{number}", **options) for number in range(count)]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.stop()


def members(replicas: Sequence[NginxReplica]) -> tuple[Replica, ...]:
    return tuple(Replica(replica.address, HOST, replica.port) for replica in replicas)


def plain_tier(replicas: Sequence[Replica], **policy: Any) -> Tier:
    """As a daemon with ``--tier`` and ``--tier-key`` has it."""
    fixed = tuple(replicas)
    return Tier(TierIdentity(KEY, links=LinkSigner(link_secret(KEY))), TierPolicy(**policy), lambda: fixed)


def tiered_store(
    server: SeaweedFsServer, bucket: str, tier: Tier, credential: bytes = b"one", domain: str = "", **options: Any
) -> Tiered:
    """A bucket of the server behind the tier."""
    url = DatasetUrl("s3", bucket, "")
    store_options = StoreOptions(endpoint=server.endpoint, region="us-east-1", **options)
    credentials = Credentials({"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key})
    store = open_store(url, store_options, credentials)
    domain = domain or access_domain(url, store_options, credentials)
    return tiered(store, tier, SliceNames(tier.key, domain, credential, store.endpoint, store.bucket))


SERVER_NAME = "hayloft-tier.storage.svc"


class Authority:
    """Of certificates for replicas and nodes, all in one directory."""

    def __init__(self, directory: Path, name: str = "tier") -> None:
        self._directory = directory / name
        self._directory.mkdir(parents=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {name}")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path = self._directory / "ca.crt"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, server: bool) -> TlsFiles:
        """A certificate for a replica with the DNS name, or for a node."""
        key = ec.generate_private_key(ec.SECP256R1())
        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = TlsFiles(str(self._directory / f"{name}.crt"), str(self._directory / f"{name}.key"), str(self.path))
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        Path(files.certificate).write_bytes(certificate.public_bytes(pem))
        Path(files.key).write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )


def tls_tier(replicas: Sequence[Replica], files: TlsFiles, **policy: Any) -> Tier:
    """As a daemon with ``--tier-ca``, ``--tier-cert`` and ``--tier-server-name`` has it."""
    fixed = tuple(replicas)
    paths = (Path(files.authority), Path(files.certificate), Path(files.key))
    identity = TierIdentity(KEY, ClientCertificates(*paths).context, SERVER_NAME)
    return Tier(identity, TierPolicy(**policy), lambda: fixed)
