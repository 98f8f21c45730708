"""Which proxy the environment's variables name, and what is never shown of them."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigurationError
from secagg.proxies import goes_straight, proxy_for

SERVER = "https://aggregator.example"


@pytest.mark.parametrize(
    ("url", "variables", "found"),
    [
        (SERVER, {}, None),
        (SERVER, {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        (SERVER, {"https_proxy": "p:3128"}, "http://p:3128"),
        (SERVER, {"https_proxy": " http://p/ "}, "http://p:80"),
        (SERVER, {"https_proxy": "https://p"}, "https://p:443"),
        (SERVER, {"https_proxy": "http://[::1]:3128"}, "http://[::1]:3128"),
        (SERVER, {"https_proxy": "http://small:1", "HTTPS_PROXY": "http://p:2"}, "http://small:1"),
        (SERVER, {"https_proxy": "", "HTTPS_PROXY": "http://p:2"}, None),
        (SERVER, {"HTTP_PROXY": "http://p:3128"}, None),
        (SERVER, {"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        (SERVER, {"all_proxy": "http://a:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        (SERVER, {"all_proxy": "socks5://a:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        (SERVER, {"HTTPS_PROXY": "http://p:2", "NO_PROXY": "other,.example"}, None),
        (SERVER, {"HTTPS_PROXY": "socks5://a:1", "NO_PROXY": "*"}, None),
        ("http://127.0.0.1:8080", {"HTTP_PROXY": "http://p:2"}, "http://p:2"),  # as curl does
        ("http://127.0.0.1:8080", {"HTTP_PROXY": "http://p:2", "no_proxy": "127.0.0.1"}, None),
        ("http://a", {"HTTP_PROXY": "http://p:2", "REQUEST_METHOD": "GET"}, None),
        ("http://a", {"http_proxy": "http://p:2", "REQUEST_METHOD": "GET"}, "http://p:2"),
    ],
)
def test_the_variables_name_the_proxy(
    url: str, variables: dict[str, str], found: str | None
) -> None:
    proxy = proxy_for(url, variables)
    assert (None if proxy is None else proxy.url) == found


@pytest.mark.parametrize(
    ("host", "port", "entries", "straight"),
    [
        ("a.example", 443, "example", True),
        ("a.example", 443, ".example", True),
        ("a.example", 443, "*.example", True),
        ("A.Example.", 443, "a.eXample", True),
        ("aexample", 443, "example", False),
        ("a.example", 443, "", False),
        ("a.example", 443, ".", False),
        ("a.example", 443, "a.example:443", True),
        ("a.example", 443, "a.example:444", False),
        ("a.example", 443, "x, y\t*", True),
        ("10.1.2.3", 80, "10.0.0.0/8", True),
        ("10.1.2.3", 80, "10.1.2.3/8", True),
        ("11.1.2.3", 80, "10.0.0.0/8,11.1.2.4", False),
        ("127.0.0.1", 80, "127.0.0.1:80", True),
        ("127.0.0.1", 80, "127.0.0.1:81", False),
        ("127.0.0.1", 80, "localhost", False),
        ("127.0.0.1", 80, "0.0.1", False),
        ("::1", 80, "::1", True),
        ("::1", 80, "[::1]", True),
        ("::1", 80, "[::1]:80", True),
        ("::1", 80, "[::1]:81", False),
        ("::1", 80, "fe80::/10", False),
    ],
)
def test_entries_of_no_proxy(host: str, port: int, entries: str, straight: bool) -> None:
    assert goes_straight(host, port, entries) == straight


def test_credentials_are_sent_and_never_shown() -> None:
    proxy = proxy_for(SERVER, {"https_proxy": "http://us%3Aer:p%40%C3%A9@p:3128"})
    assert proxy is not None
    scheme, _, encoded = (proxy.authorization or "").partition(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", "us:er:p@é")
    assert proxy.url == "http://p:3128"
    assert encoded not in repr(proxy)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("socks5h://user:hidden@p:1080", "proxy-unsupported"),
        ("http://user:hidden#x@p:3128", "proxy-malformed"),
        ("http://user:hid/den@p:3128", "proxy-malformed"),
        ("http://user:hidden@p:port", "proxy-malformed"),
        ("http://user:hidden@p:99999", "proxy-malformed"),
        ("http://[hidden", "proxy-malformed"),
        ("http://", "proxy-malformed"),
        ("user:hidden", "proxy-malformed"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_without_showing_it(value: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        proxy_for(SERVER, {"HTTPS_PROXY": value})
    assert caught.value.reason == reason
    assert "hid" not in str(caught.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_variable_names_a_proxy_or_is_refused(value: str, no_proxy: str) -> None:
    with contextlib.suppress(ConfigurationError):
        proxy_for(SERVER, {"https_proxy": value, "no_proxy": no_proxy})
