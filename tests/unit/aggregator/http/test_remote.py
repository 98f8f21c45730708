"""Who a request behind a proxy comes from."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from aggregator.http.requests import _Remote
from tests.kits.log_lines import lines


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("192.0.2.1, 198.51.100.7", "198.51.100.7"),
        ("198.51.100.7:4711", "198.51.100.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
    ],
)
def test_the_last_address_is_the_callers_with_a_port_or_without(said: str, found: str) -> None:
    request = make_mocked_request("GET", "/", {"X-Forwarded-For": said})
    assert _Remote(behind_proxy=True)(request) == found
    assert _Remote(behind_proxy=False)(request) == "unknown"


def test_a_proxy_that_names_no_address_is_warned_of_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    remote = _Remote(behind_proxy=True)
    for _ in range(3):
        for headers in ({"X-Forwarded-For": "192.0.2.1, unknown"}, {}):
            assert remote(make_mocked_request("GET", "/", headers)) == "unknown"
    unreadable, missing = lines(capsys)
    assert (unreadable["event"], unreadable["found"]) == ("forwarded-for-unreadable", "unknown")
    assert missing["event"] == "forwarded-for-missing"
