"""The configuration of replicas, and the flags of the tier."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from csi_driver.cli.tier_flags import parse_replicas, parse_tier_timeout, tier_settings
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.model.replica import Replica
from csi_driver.objects.tier.key_file import link_secret, read_key
from csi_driver.objects.tier.nginx_config import MIB, ReplicaConfig, TlsFiles, render, resolvers_of
from csi_driver.objects.tier.slice_names import LinkSigner
from csi_driver.settings import TierSettings

TLS = TlsFiles("/tls/tls.crt", "/tls/tls.key", "/tls/ca.crt")
CONFIG = ReplicaConfig("/cache", 100 << 30, tls=TLS)


@pytest.mark.promise("S564")
def test_clients_need_a_certificate_by_default() -> None:
    text = render(CONFIG)
    assert "listen 8443 ssl" in text
    assert "ssl_verify_client on;" in text
    assert "secure_link" not in text


@pytest.mark.promise("S564")
def test_without_tls_each_path_needs_a_signature() -> None:
    text = render(ReplicaConfig("/cache", 100 << 30, link_secret="5ec7e7"))
    assert 'secure_link_md5 "$secure_link_expires$uri 5ec7e7";' in text
    assert " ssl" not in text.split("listen", 1)[1].splitlines()[0]


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"tls": None}, "--cert"),
        ({"directory": "cache"}, "--directory"),
        ({"directory": "/cache; include /etc/passwd"}, "--directory"),
        ({"listen": "8443;"}, "--listen"),
        ({"slice_bytes": 3 * MIB}, "--slice"),
        ({"size_bytes": MIB}, "--size"),
        ({"resolvers": ("nameserver",)}, "--resolver"),
        ({"origins": ("s3://bucket",)}, "--origin"),
        ({"tls": TlsFiles("/a b", "/k", "/c")}, "--cert"),
        ({"link_secret": '"; evil'}, "--key"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_flag(changed: dict[str, object], flag: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        render(dataclasses.replace(CONFIG, **changed))  # type: ignore[arg-type]
    assert flag in str(caught.value)
    assert "evil" not in str(caught.value)


def test_name_servers_are_those_of_the_container() -> None:
    text = "search x.svc\nnameserver 10.96.0.10\n nameserver fd00::a\nnameserver fe80::1%eth0\noptions ndots:5\n"
    assert resolvers_of(text) == ("10.96.0.10", "fd00::a")
    assert "resolver 10.96.0.10 [fd00::a] valid=30s;" in render(
        dataclasses.replace(CONFIG, resolvers=resolvers_of(text))
    )
    assert "resolver" not in render(CONFIG).replace("resolver_timeout", "")


def test_links_are_those_that_nginx_documents() -> None:
    """The digest is that of ``echo -n '…' | openssl md5 -binary | openssl base64 | tr +/ -_ | tr -d =``."""
    assert LinkSigner("secret").signed("/v1/object/a", 1_000_000_030.0) == (
        "/v1/object/a?md5=B06nh7UOZvjoWGRm_Upa3Q&expires=1000000380"
    )


def test_replicas_are_parsed() -> None:
    assert parse_replicas("--tier", ["10.1.2.3:8443@eu-1a", "[fd00::1]:8443", "Cache.example.com:80"]) == (
        Replica("10.1.2.3:8443", "10.1.2.3", 8443, "eu-1a"),
        Replica("[fd00::1]:8443", "fd00::1", 8443),
        Replica("cache.example.com:80", "Cache.example.com", 80),
    )


@pytest.mark.promise("S572")
@pytest.mark.parametrize("text", ["host", "host:0", "host:70000", "http://host:80", "host:80@", "fd00::1:80", "a b:1"])
def test_an_address_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="--tier"):
        parse_replicas("--tier", [text])


@pytest.mark.promise("S572")
def test_a_replica_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="twice"):
        parse_replicas("--tier", ["a:1", "A:1"])


@pytest.mark.promise("S572")
def test_settings_that_do_not_go_together_are_refused() -> None:
    replicas = (Replica("a:1", "a", 1),)
    key = Path("/key")
    assert not tier_settings(TierSettings()).enabled
    with pytest.raises(MissingParameter, match="--tier-key"):
        tier_settings(TierSettings(replicas=replicas))
    with pytest.raises(InvalidParameter, match="--tier-service"):
        tier_settings(TierSettings(replicas=replicas, service="a/b", key_file=key))
    with pytest.raises(InvalidParameter, match="NAMESPACE/NAME"):
        tier_settings(TierSettings(service="b", key_file=key))
    with pytest.raises(MissingParameter, match="--tier-cert"):
        tier_settings(TierSettings(replicas=replicas, key_file=key, ca_file=key))
    for text in ("0", "10m"):
        with pytest.raises(InvalidParameter, match="--tier-timeout"):
            parse_tier_timeout("--tier-timeout", text)


@pytest.mark.promise("S572")
def test_a_key_that_is_missing_or_short_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="--tier-key"):
        read_key("--tier-key", tmp_path / "key")
    (tmp_path / "key").write_text("too short a secret\n")
    with pytest.raises(InvalidParameter, match="at least 32") as caught:
        read_key("--tier-key", tmp_path / "key")
    assert "secret" not in str(caught.value)
    (tmp_path / "key").write_bytes(b"x" * 40 + b"\n")
    key = read_key("--tier-key", tmp_path / "key")
    assert len(key) == 40
    assert len(link_secret(key)) == 40
    assert "x" not in link_secret(key)
