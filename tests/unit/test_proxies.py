"""Which proxy a URL goes through, by the variables of the environment."""

from __future__ import annotations

import pytest

from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.http.proxies import proxy_for, uniform_variables

pytestmark = pytest.mark.promise("S265")

P, Q = "http://p:1", "http://q:2"


def through(url: str, **environment: str) -> str | None:
    proxy = proxy_for(url, environment)
    return None if proxy is None else proxy.url


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://s", {}, None),
        ("http://s", {"http_proxy": P}, P),
        ("http://s", {"HTTP_PROXY": P}, P),
        ("https://s", {"HTTP_PROXY": P}, None),
        ("https://s", {"https_proxy": P}, P),
        ("https://s", {"HTTPS_PROXY": P}, P),
        ("https://s", {"ALL_PROXY": P}, P),
        ("http://s", {"all_proxy": P}, P),
        ("http://s", {"all_proxy": P, "HTTP_PROXY": Q}, Q),
        ("http://s", {"http_proxy": P, "HTTP_PROXY": Q}, P),
        ("http://s", {"http_proxy": "", "HTTP_PROXY": Q}, Q),
        ("http://s", {"http_proxy": " ", "ALL_PROXY": Q}, Q),
        ("http://s", {"http_proxy": "p:1"}, P),
        ("http://s", {"http_proxy": "http://user:pass@p:1/"}, P),
        ("http://s", {"http_proxy": "https://[fd00::1]:3128"}, "https://[fd00::1]:3128"),
        ("file:///s", {"all_proxy": P}, None),
    ],
)
def test_a_variable_for_the_scheme_comes_before_that_for_all_and_lower_case_before_upper(
    url: str, environment: dict[str, str], expected: str | None
) -> None:
    assert through(url, **environment) == expected


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "http://anything", True),
        ("store.example", "http://store.example:9000", True),
        ("store.example", "http://bucket.store.example", True),
        ("store.example", "http://mystore.example", False),
        (".store.example", "http://store.example", True),
        (".store.example", "http://bucket.store.example", True),
        ("*.store.example", "http://bucket.store.example", True),
        ("STORE.Example", "http://store.example", True),
        ("store.example.", "http://store.example", True),
        ("store.example", "http://store.example.:80", True),
        ("bucket.store.example", "http://store.example", False),
        ("store.example:9000", "http://store.example:9000", True),
        ("store.example:9000", "http://store.example:9001", False),
        ("store.example:80", "http://store.example", True),
        ("store.example:443", "http://store.example", False),
        ("store.example:443", "https://store.example", True),
        ("other, store.example", "http://store.example", True),
        ("other store.example", "http://store.example", True),
        (",, ,", "http://store.example", False),
        (".", "http://store.example", False),
        ("10.0.0.0/8", "http://10.1.2.3:9000", True),
        ("10.0.0.0/8", "http://11.1.2.3:9000", False),
        ("10.1.2.3/8", "http://10.9.9.9", True),
        ("10.0.0.0/99", "http://10.1.2.3", False),
        ("10.0.0.0/8", "http://ten.example", False),
        ("10.1.2.3", "http://10.1.2.3:9000", True),
        ("10.1.2.3:9000", "http://10.1.2.3:9000", True),
        ("10.1.2.3:9000", "http://10.1.2.3:9001", False),
        ("2.3", "http://10.1.2.3", False),
        ("fd00::/8", "http://[fd00::7]:9000", True),
        ("fd00::7", "http://[FD00:0::7]:9000", True),
        ("[fd00::7]", "http://[fd00::7]", True),
        ("[fd00::7]:9000", "http://[fd00::7]:9000", True),
        ("[fd00::7]:9000", "http://[fd00::7]:9001", False),
        ("0.0.0.0/0", "http://[fd00::7]", False),
        ("localhost,127.0.0.1,.svc,.cluster.local", "http://minio.storage.svc:9000", True),
        ("localhost,127.0.0.1,.svc,.cluster.local", "http://minio.storage.svc.cluster.local", True),
    ],
)
def test_what_no_proxy_lists_is_dialled_directly(name: str, entry: str, url: str, direct: bool) -> None:
    environment = {"http_proxy": P, "https_proxy": P, name: entry}
    assert through(url, **environment) == (None if direct else P)


def test_credentials_of_a_proxy_are_sent_to_it_and_not_shown() -> None:
    proxy = proxy_for("http://s", {"HTTP_PROXY": "http://us%20er:p%40ss@p:1"})
    assert proxy is not None
    assert proxy.headers == {"Proxy-Authorization": "Basic dXMgZXI6cEBzcw=="}
    assert "p%40ss" not in repr(proxy)
    assert "dXMg" not in repr(proxy)


@pytest.mark.parametrize("value", ["socks5://user:hush@p:1080", "http://", "http://user:hush@p:port", "ftp://hush@p"])
def test_a_proxy_that_cannot_be_used_is_an_error_that_names_the_variable(value: str) -> None:
    with pytest.raises(InvalidParameter, match="ALL_PROXY") as caught:
        proxy_for("https://s", {"ALL_PROXY": value})
    assert "hush" not in str(caught.value)
    assert proxy_for("https://s", {"ALL_PROXY": value, "NO_PROXY": "s"}) is None


def test_libraries_that_read_the_environment_get_the_same_rule() -> None:
    assert uniform_variables({"NO_PROXY": "a"}) == {}
    found = uniform_variables({"ALL_PROXY": P, "http_proxy": Q, "No_Proxy": "x", "NO_PROXY": ".a.b,*.c *"})
    assert (found["http_proxy"], found["HTTP_PROXY"]) == (Q, Q)
    assert (found["https_proxy"], found["HTTPS_PROXY"]) == (P, P)
    assert found["no_proxy"].startswith("a.b,c,*,169.254.169.254,")
    assert found["NO_PROXY"] == found["no_proxy"]
    assert uniform_variables(found) == found
