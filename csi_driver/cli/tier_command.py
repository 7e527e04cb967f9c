"""``hayloft tier-config``: the configuration of a replica of the cluster's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from csi_driver.cli import options as flags
from csi_driver.cli.flag_values import parse_duration, parse_size
from csi_driver.model.errors import InvalidParameter


def tier_config(
    directory: flags.ReplicaDirectory,
    size: flags.ReplicaSize,
    listen: flags.ReplicaListen = "8443",
    status_listen: flags.ReplicaStatusListen = "127.0.0.1:8080",
    cert: flags.ReplicaCert = "",
    cert_key: flags.ReplicaCertKey = "",
    client_ca: flags.ReplicaClientCa = "",
    key: flags.ReplicaKey = None,
    slice: flags.ReplicaSlice = "8MiB",
    valid: flags.ReplicaValid = "24h",
    resolver: flags.ReplicaResolvers = None,
    origin: flags.ReplicaOrigins = None,
    origin_ca: flags.ReplicaOriginCa = "/etc/ssl/certs/ca-certificates.crt",
    workers: flags.ReplicaWorkers = "auto",
    output: flags.ReplicaOutput = None,
) -> None:
    """Make the nginx.conf of a replica of the cluster's cache."""
    from csi_driver.objects.tier.key_file import link_secret, read_key
    from csi_driver.objects.tier.nginx_config import ReplicaConfig, TlsFiles, render, resolvers_of

    resolvers = tuple(resolver or ())
    if not resolvers:
        path = Path("/etc/resolv.conf")
        resolvers = resolvers_of(path.read_text(errors="replace") if path.is_file() else "")
    text = render(
        ReplicaConfig(
            directory=str(directory),
            size_bytes=parse_size("--size", size),
            listen=listen,
            status_listen=status_listen,
            tls=TlsFiles(cert, cert_key, client_ca) if cert or cert_key or client_ca else None,
            link_secret="" if key is None else link_secret(read_key("--key", key)),
            slice_bytes=parse_size("--slice", slice),
            valid_s=max(1, int(parse_duration("--valid", valid))),
            resolvers=resolvers,
            origins=tuple(origin or ()),
            origin_authorities=origin_ca,
            workers=workers,
        )
    )
    if output is None:
        sys.stdout.write(text)
        return
    try:
        # It may hold the secret of links.
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise InvalidParameter("--output", str(output), f"a file that can be written ({error.strerror})") from None
