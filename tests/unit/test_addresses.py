"""The rules of addresses that a volume's store may have."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from csi_driver.cli.flag_values import addresses_of
from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules, parse_network
from csi_driver.model.dataset import DatasetUrl, StoreOptions
from csi_driver.model.errors import EndpointNotAllowed, InvalidParameter
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.settings import PolicySettings
from csi_driver.volumes.address_policy import address_rules, check_library
from csi_driver.volumes.parameters import VolumeParameters

PUBLIC_ONLY = AddressRules(public_only=True)
TEAM = Tenant("team-a", inline=True)

METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fe80::a9fe:a9fe",
    "fe80::1%2",
    "fd00:ec2::254",
    "fd20:ce::254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "::169.254.169.254",
]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fc00::1", "fd00::1", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1", "4000::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::10.0.0.1"),
    *("64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::8.8.8.8", "64:ff9b:1::10.0.0.1"),
    *("2002:7f00:1::1", "2002:808:808::1", "2001::1", "2001:0:a9fe:a9fe::1"),
]
PUBLIC = ["8.8.8.8", "52.216.0.1", "2600:1f18::1", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.promise("S130")
@pytest.mark.parametrize("text", METADATA)
def test_a_metadata_service_is_refused_to_everybody(text: str) -> None:
    assert ANY_BUT_METADATA.refusal(ip_address(text)) is not None
    assert PUBLIC_ONLY.refusal(ip_address(text)) is not None


@pytest.mark.promise("S130")
@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_for_administrators(text: str) -> None:
    assert PUBLIC_ONLY.refusal(ip_address(text)) is not None
    if "a9fe" not in text:
        assert ANY_BUT_METADATA.refusal(ip_address(text)) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_for_everybody(text: str) -> None:
    assert PUBLIC_ONLY.refusal(ip_address(text)) is None
    assert ANY_BUT_METADATA.refusal(ip_address(text)) is None


def test_the_operator_allows_and_refuses_networks() -> None:
    rules = AddressRules(
        public_only=True,
        allowed=(parse_network("10.1.0.0/16"), parse_network("169.254.170.2")),
        refused=(parse_network("52.1.2.3"),),
    )
    verdicts = {
        text: rules.refusal(ip_address(text)) is None
        for text in (
            "10.1.2.3",
            "::ffff:10.1.2.3",
            "10.2.0.1",
            "169.254.170.2",
            "169.254.169.254",
            "52.1.2.3",
            "52.1.2.4",
        )
    }
    assert [text for text, allowed in verdicts.items() if allowed] == [
        *("10.1.2.3", "::ffff:10.1.2.3", "169.254.170.2", "52.1.2.4")
    ]


class TestPolicy:
    """The rules of each kind of volume."""

    @pytest.mark.parametrize(
        ("url", "endpoint", "tenant", "public_only"),
        [
            ("s3://b", "http://10.0.0.1", TEAM, True),
            ("gs://b", "http://10.0.0.1", TEAM, True),
            ("az://b", "http://10.0.0.1", TEAM, True),
            ("http://10.0.0.1/x", None, TEAM, True),
            ("s3://b", None, TEAM, False),
            ("s3://b", "http://10.0.0.1", ADMINISTRATOR, False),
            ("s3://b", "http://10.0.0.1", Tenant("trusted", inline=True), False),
            ("s3://b", "http://10.0.0.1", Tenant("team-a", inline=False), False),
        ],
    )
    def test_only_a_named_place_of_an_inline_volume_has_to_be_public(
        self, url: str, endpoint: str | None, tenant: Tenant, public_only: bool
    ) -> None:
        policy = PolicySettings(trusted_namespaces=("trusted",))
        assert (
            address_rules(DatasetUrl.parse(url), StoreOptions(endpoint=endpoint), policy, tenant).public_only
            == public_only
        )

    @pytest.mark.parametrize(
        ("listed", "endpoint", "host"),
        [
            ("http://store.internal:9000", "http://Store.internal:9000/", "store.internal"),
            ("http://store.internal:9000", "http://store.internal:9001", None),
            ("http://store.internal:9000", "http://vault.store.internal:9000", None),
            ("https://store.internal", "http://store.internal", None),
        ],
    )
    def test_a_listed_endpoint_may_have_any_address(self, listed: str, endpoint: str, host: str | None) -> None:
        policy = PolicySettings(allowed_endpoints=(listed,))
        rules = address_rules(DatasetUrl.parse("s3://b"), StoreOptions(endpoint=endpoint), policy, TEAM)
        assert rules.listed_hosts == ({host} if host else set())

    @pytest.mark.promise("S134")
    def test_a_listed_endpoint_does_not_list_the_names_of_buckets_below_it(self) -> None:
        options = StoreOptions(endpoint="http://store.internal:9000", addressing_style="virtual")
        policy = PolicySettings(allowed_endpoints=("http://store.internal:9000",))
        assert address_rules(DatasetUrl.parse("s3://vault"), options, policy, TEAM).listed_hosts == {"store.internal"}
        policy = PolicySettings(allowed_endpoints=(*policy.allowed_endpoints, "http://vault.store.internal:9000"))
        rules = address_rules(DatasetUrl.parse("s3://vault"), options, policy, TEAM)
        assert rules.listed_hosts == {"store.internal", "vault.store.internal"}

    @pytest.mark.promise("S132")
    @pytest.mark.parametrize(
        ("url", "endpoint", "backend"),
        [
            ("ftp://10.0.0.1/x", None, "auto"),
            ("sftp://10.0.0.1/x", None, "auto"),
            ("ssh://10.0.0.1/x", None, "auto"),
            ("hdfs://10.0.0.1/x", None, "auto"),
            ("webhdfs://10.0.0.1/x", None, "auto"),
            ("oss://bucket/x", None, "auto"),
            ("abfs://bucket/x", None, "auto"),
            ("s3://bucket/x", "http://10.0.0.1", "s3fs"),
        ],
    )
    def test_a_library_that_dials_by_itself_is_for_listed_endpoints(
        self, url: str, endpoint: str | None, backend: str
    ) -> None:
        parsed = DatasetUrl.parse(url)
        options = StoreOptions(endpoint=endpoint, backend=backend)  # type: ignore[arg-type]
        with pytest.raises(EndpointNotAllowed, match="--allowed-endpoint"):
            check_library(parsed, options, PolicySettings(), TEAM)
        listed = endpoint or f"{parsed.scheme}://{parsed.bucket}"
        check_library(parsed, options, PolicySettings(allowed_endpoints=(listed,)), TEAM)
        check_library(parsed, options, PolicySettings(), ADMINISTRATOR)

    @pytest.mark.parametrize("url", ["hf://datasets/x", "memory://x", "s3://b", "https://example.com/x"])
    def test_other_urls_need_no_list(self, url: str) -> None:
        check_library(DatasetUrl.parse(url), StoreOptions(), PolicySettings(), TEAM)

    def test_the_rules_of_a_volume_outlive_a_restart_of_the_daemon(self) -> None:
        """A daemon that adopts a mount parses its recorded attributes, which it does not check again."""
        attributes = {"url": "s3://b", "endpoint": "http://10.0.0.1:9000"}
        parsed = VolumeParameters.parse(attributes, PolicySettings(), TEAM)
        adopted = VolumeParameters.parse(attributes).under(PolicySettings(), TEAM)
        assert parsed.store_options.address_rules == adopted.store_options.address_rules == PUBLIC_ONLY
        assert parsed.to_context() == adopted.to_context()

    @pytest.mark.parametrize("text", ["10.1.0.0/33", "10.1.0.1/16", "store.internal", ""])
    def test_a_network_that_is_none_is_rejected_by_its_flag(self, text: str) -> None:
        from csi_driver.cli.commands import _policy

        with pytest.raises(InvalidParameter, match=r"--allowed-address: .*a network such as 10\.1\.0\.0/16"):
            _policy(None, False, [text])


def test_a_refused_host_is_refused_by_its_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host != "node-1.example":
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", ("198.51.100.7", 0)), (0, 0, 0, "", ("2001:db8::7", 0, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    given = ("203.0.113.0/24", "node-1.example", "gone.example")
    assert addresses_of("--refused-address", given) == ("203.0.113.0/24", "198.51.100.7", "2001:db8::7")
    assert "--refused-address: gone.example has no address" in capsys.readouterr().err
