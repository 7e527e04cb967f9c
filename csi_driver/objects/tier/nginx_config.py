"""The configuration of a replica: nginx as it comes, with modules of every build (slice, secure_link, stub_status).

It caches objects of up to some MiB as a whole, and parts of larger ones slice by slice. What it does not have it gets
from the bucket, with the request that the driver has authorised. The key of its cache is the path, which the driver
makes of the version: a bucket that was overwritten adds entries and changes none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.tier.ranking import STRIPE_BYTES
from csi_driver.objects.tier.slice_names import OBJECTS, SLICES

MIB = 1 << 20
_ITEMS_PER_MIB = 8000
"""Of the memory in which nginx keeps the keys of its cache, by its documentation."""
_USUAL_ITEM_BYTES = 256 << 10
"""Small objects of 100 kB and slices of 8 MiB share a cache. Without room for a key the oldest entry is evicted."""
_MOST_USED, _LEAST_FREE = 0.95, 0.02
"""Of the size: nginx removes the oldest entries when it finds the cache larger, which is a moment later, and earlier
when less is free on the disk."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]+")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(?:/[A-Za-z0-9._~/-]*)?")
_RESOLVER = re.compile(r"[0-9.]+|[0-9A-Fa-f:]+|\[[0-9A-Fa-f:]+\](?::\d+)?|[0-9.]+:\d+")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Of a replica: its certificate and key, and the authority that has issued those of the nodes."""

    certificate: str
    key: str
    authority: str


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """What differs between replicas. Paths are of the container of nginx."""

    directory: str
    """Of the cache, on the disk of the replica; it becomes its own subdirectories."""
    size_bytes: int
    """Of the disk, or of the part of it that the cache may have. Some per cent of it stay free."""
    listen: str = "8443"
    """Port, or address and port."""
    status_listen: str = "127.0.0.1:8080"
    """Of stub_status and /healthz. Anybody who reaches it may read both."""
    tls: TlsFiles | None = None
    """None: plain HTTP, and ``link_secret`` is needed."""
    link_secret: str = ""
    slice_bytes: int = 8 * MIB
    valid_s: int = 24 * 3600
    """After so long the bucket is asked with the credentials of the reader whether the entry may still be used."""
    resolvers: tuple[str, ...] = ()
    """Name servers, by which the names of buckets are found. Without one only buckets with an address are."""
    origin_authorities: str = "/etc/ssl/certs/ca-certificates.crt"
    """Of the certificates of buckets."""
    origins: tuple[str, ...] = ()
    """Prefixes of URLs of buckets; empty: any that the driver names."""
    workers: str = "auto"


def render(config: ReplicaConfig) -> str:
    """The text of nginx.conf. Raises InvalidParameter, which names the field as a flag of ``hayloft tier-config``."""
    _check(config)
    size_mib = int(config.size_bytes * _MOST_USED) // MIB
    keys_mib = max(10, min(4096, config.size_bytes // _USUAL_ITEM_BYTES // _ITEMS_PER_MIB))
    secure = "" if not config.link_secret else _SECURE_LINK.format(secret=config.link_secret)
    return _TEMPLATE.format(
        workers=config.workers,
        directory=config.directory,
        keys_mib=keys_mib,
        size_mib=size_mib,
        free_mib=max(1, int(config.size_bytes * _LEAST_FREE) // MIB),
        resolver=_resolver(config.resolvers),
        origins=_origins(config.origins),
        listen=config.listen,
        tls="" if config.tls is None else _TLS.format(tls=config.tls),
        listen_tls="" if config.tls is None else " ssl",
        secure=secure,
        authorities=config.origin_authorities,
        valid_s=config.valid_s,
        objects=OBJECTS,
        slices=SLICES,
        forwarded=_FORWARDED,
        slice_bytes=config.slice_bytes,
        status_listen=config.status_listen,
    )


def _check(config: ReplicaConfig) -> None:
    if not PurePosixPath(config.directory).is_absolute():
        raise InvalidParameter("--directory", config.directory, "an absolute path")
    if config.tls is None and not config.link_secret:
        raise InvalidParameter(
            "--cert", "", "a certificate with --cert-key and --client-ca, or --key for plain HTTP with signed paths"
        )
    if config.slice_bytes < MIB or STRIPE_BYTES % config.slice_bytes:
        raise InvalidParameter("--slice", str(config.slice_bytes), "1, 2, 4, 8, 16, 32 or 64 MiB")
    if config.size_bytes < 64 * MIB:
        raise InvalidParameter("--size", str(config.size_bytes), "64MiB or more")
    plain = "letters, digits and _./:@%+,=-, which nginx takes as they are"
    texts = {
        "--directory": config.directory,
        "--listen": config.listen,
        "--status-listen": config.status_listen,
        "--origin-ca": config.origin_authorities,
        "--workers": config.workers,
    }
    if config.tls is not None:
        texts |= {"--cert": config.tls.certificate, "--cert-key": config.tls.key, "--client-ca": config.tls.authority}
    for name, text in texts.items():
        _require(_PLAIN, name, text, plain)
    if config.link_secret and not _PLAIN.fullmatch(config.link_secret):
        raise InvalidParameter("--key", "(hidden)", plain)
    for resolver in config.resolvers:
        _require(_RESOLVER, "--resolver", resolver, "an IPv4 or IPv6 address")
    for origin in config.origins:
        _require(_ORIGIN, "--origin", origin, "the beginning of a URL such as https://bucket.s3.amazonaws.com/")


def _require(pattern: re.Pattern[str], flag: str, text: str, allowed: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidParameter(flag, text, allowed)


def _resolver(resolvers: tuple[str, ...]) -> str:
    if not resolvers:
        return ""
    shown = " ".join(f"[{text}]" if ":" in text and "." not in text and "[" not in text else text for text in resolvers)
    return f"  resolver {shown} valid=30s;\n  resolver_timeout 5s;\n"


def _origins(origins: tuple[str, ...]) -> str:
    """A URL without user and query is complete after its host; so a prefix without a path ends there."""
    patterns = [re.escape(origin) + ("" if origin.count("/") > 2 else "/") for origin in origins]
    return "\n".join(f'    "~^{pattern}" 1;' for pattern in (patterns or [r"https?://[^/?#@\s]+/"]))


def resolvers_of(resolv_conf: str) -> tuple[str, ...]:
    """The name servers of a resolv.conf, without zones of IPv6 addresses, which nginx does not know."""
    found = re.findall(r"^\s*nameserver\s+(\S+)", resolv_conf, re.MULTILINE)
    return tuple(text for text in found if _RESOLVER.fullmatch(text))


_TLS = """\
    ssl_certificate {tls.certificate};
    ssl_certificate_key {tls.key};
    ssl_client_certificate {tls.authority};
    ssl_verify_client on;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:10m;
    ssl_buffer_size 16k;
"""

_SECURE_LINK = """\
    secure_link $arg_md5,$arg_expires;
    secure_link_md5 "$secure_link_expires$uri {secret}";
    if ($secure_link = "") {{ return 403; }}
    if ($secure_link = "0") {{ return 403; }}
"""

_FORWARDED = """\
      proxy_set_header Host $proxy_host;
      proxy_set_header Connection "";
      proxy_set_header If-Match $http_x_hayloft_if_match;
      proxy_set_header X-Hayloft-Origin "";
      proxy_set_header X-Hayloft-If-Match "";
"""

# The URL of a bucket comes in a header and holds no secret, what authorises it comes in others: neither this
# configuration nor an error of nginx writes one of them into a log or into the cache.
_TEMPLATE = """\
# Made by `hayloft tier-config`: a replica of the cluster's cache.
worker_processes {workers};
worker_rlimit_nofile 65536;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  sendfile on;
  # With slices, each answer that is shorter than one would wait 40 ms for more.
  tcp_nopush off;
  tcp_nodelay on;
  gzip off;
  # Longer than the driver keeps an idle connection, so that it is the one that closes it.
  keepalive_timeout 120s;
  keepalive_requests 1000000;
  # Keys of 1,024 bytes, percent-encoded, and tokens.
  client_header_buffer_size 8k;
  large_client_header_buffers 8 64k;
  client_max_body_size 1k;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  proxy_cache_path {directory}/slices levels=2:2 keys_zone=slices:{keys_mib}m max_size={size_mib}m min_free={free_mib}m
                   inactive=365d use_temp_path=off manager_files=1000 manager_sleep=50ms manager_threshold=500ms;
{resolver}
  map $http_x_hayloft_origin $names_origin {{
    default 0;
{origins}
  }}
  # What it has under this name is checked against the range by nginx, and against the version by the driver.
  proxy_cache slices;
  proxy_cache_lock on;
  # Below the time-out of the driver, which would ask another replica.
  proxy_cache_lock_timeout 8s;
  proxy_cache_lock_age 8s;
  proxy_cache_valid 200 206 {valid_s}s;
  proxy_cache_revalidate on;
  proxy_cache_methods GET;
  proxy_ignore_headers Cache-Control Expires Set-Cookie Vary X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate
                       X-Accel-Buffering X-Accel-Charset;
  proxy_hide_header Set-Cookie;
  proxy_hide_header X-Hayloft-Cache;
  proxy_hide_header X-Hayloft-Origin-Status;
  add_header X-Hayloft-Cache $upstream_cache_status always;
  add_header X-Hayloft-Origin-Status $upstream_status always;
  proxy_http_version 1.1;
  proxy_connect_timeout 5s;
  proxy_read_timeout 30s;
  proxy_next_upstream off;
  proxy_redirect off;
  proxy_buffer_size 64k;
  proxy_buffers 16 64k;
  proxy_busy_buffers_size 128k;
  proxy_ssl_server_name on;
  proxy_ssl_verify on;
  proxy_ssl_verify_depth 4;
  proxy_ssl_trusted_certificate {authorities};
  proxy_ssl_protocols TLSv1.2 TLSv1.3;

  server {{
    listen {listen}{listen_tls} backlog=4096;
{tls}{secure}    if ($request_method != GET) {{ return 405; }}
    if ($names_origin = 0) {{ return 400; }}
    location ^~ {objects} {{
      proxy_cache_key $uri;
      proxy_set_header Range "";
{forwarded}      proxy_pass $http_x_hayloft_origin;
    }}
    location ^~ {slices} {{
      slice {slice_bytes};
      proxy_cache_key $uri|$slice_range;
      proxy_set_header Range $slice_range;
{forwarded}      proxy_pass $http_x_hayloft_origin;
    }}
    location / {{ return 404; }}
  }}
  server {{
    listen {status_listen};
    location = /healthz {{ return 200 "ok\\n"; }}
    location = /status {{ stub_status; }}
    location / {{ return 404; }}
  }}
}}
"""
