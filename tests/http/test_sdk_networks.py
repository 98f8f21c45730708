"""The SDK behind proxies, own authorities and boxes that answer in the aggregator's place."""

from __future__ import annotations

import email.utils
from dataclasses import replace
from pathlib import Path

import aiohttp.test_utils
import msgspec
import pytest
from aiohttp import web

from client_sdk.errors import TransportError, Unreached
from client_sdk.network.connections import NetworkError
from client_sdk.network.http import Http, TransportSettings, is_transient, network_of
from client_sdk.network.transport import Transport
from secagg.http_api import Mail, Problem
from tests.kits.boxes import ENCODED, FOREIGN, PASSWORD, Authority, page, proxy, serving

QUICK = TransportSettings(
    patience_s=0.1, request_s=5.0, backoff_first_s=0.001, backoff_max_s=0.01, jitter_s=0.0
)
pytestmark = pytest.mark.usefixtures("no_proxies")
MAIL = msgspec.json.encode(Mail(messages=(b"m",)))


async def mail(_: web.Request) -> web.Response:
    return web.Response(body=MAIL, content_type="application/json")


async def get(url: str, settings: TransportSettings = QUICK) -> tuple[bytes, ...]:
    async with Transport(url, lambda now_s: "token", settings) as transport:
        return await transport.messages("s", 0, 0.0)


async def refusal(url: str, settings: TransportSettings = QUICK) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await get(url, settings)
    assert PASSWORD not in str(caught.value)
    assert ENCODED not in str(caught.value)
    return caught.value


# -- proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_the_environments_proxy_is_asked(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async with serving(mail) as (url, asked), proxy() as between:
        monkeypatch.setenv(variable, between.url)
        assert await get(url) == (b"m",)
        assert len(between.asked) == len(asked) == 1
        assert await get(url, replace(QUICK, trust_env=False)) == (b"m",)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await get(url) == (b"m",)
        assert len(between.asked) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_proxys_credentials_are_sent_to_it_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    authority = Authority(tmp_path)
    context = authority.server("127.0.0.1") if scheme == "https" else None
    settings = replace(QUICK, ca_file=authority.ca_file)
    async with serving(mail, context) as (url, asked), proxy(password=PASSWORD) as between:
        with_password = between.url.replace("//", f"//user:{ENCODED}@")
        monkeypatch.setenv(f"{scheme}_proxy", with_password)
        assert await get(url, settings) == (b"m",)
        assert "Proxy-Authorization" not in asked[0].headers
        if scheme == "https":
            assert between.asked == [f"CONNECT {url.removeprefix('https://')} HTTP/1.1"]
        for given in (between.url, with_password.replace("user", "other")):
            monkeypatch.setenv(f"{scheme}_proxy", given)
            error = await refusal(url, settings)
            assert (error.reason, error.status) == ("proxy-auth", 407)
            assert between.url in str(error)
        assert len(between.asked) == 3  # what is wrong with a password no repeat mends
        assert len(asked) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("status", "repeated"), [(403, False), (502, True), (503, True)])
async def test_a_proxys_refusal_is_typed_and_repeated_where_it_may_pass(
    monkeypatch: pytest.MonkeyPatch, scheme: str, status: int, repeated: bool
) -> None:
    async with proxy(refuse=(status, "")) as between:
        monkeypatch.setenv(f"{scheme}_proxy", between.url.replace("//", f"//user:{ENCODED}@"))
        error = await refusal(f"{scheme}://aggregator.invalid")
        assert error.reason == ("proxy-refused" if scheme == "https" else "answer-foreign")
        assert (error.status, error.own_status) == (status, None)
        assert between.url in str(error) or scheme == "http"
        assert (len(between.asked) > 1) == (repeated or scheme == "http")


async def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://user:{ENCODED}@127.0.0.1:{aiohttp.test_utils.unused_port()}"
    monkeypatch.setenv("HTTP_PROXY", nobody)
    error = await refusal("http://aggregator.invalid")
    assert error.reason == "proxy-unreachable"
    assert nobody.rpartition("@")[2] in str(error)
    assert is_transient(error)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(f"socks5://u:{ENCODED}@h", "proxy-unsupported"), (f"u:{PASSWORD}@h", "proxy-malformed")],
)
async def test_a_variable_that_names_no_proxy_is_told(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    assert (await refusal("http://aggregator.invalid")).reason == reason


async def test_a_netrc_file_of_the_user_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login user password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with serving(mail) as (url, asked):
        assert await get(url) == (b"m",)
        assert asked[0].headers["Authorization"] == "Bearer token"


# -- roots of trust -----------------------------------------------------------------------------


async def test_an_authority_of_ones_own_is_trusted_by_its_file_alone(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with serving(mail, authority.server("127.0.0.1")) as (url, asked):
        assert await get(url, replace(QUICK, ca_file=authority.ca_file)) == (b"m",)
        for settings in (QUICK, replace(QUICK, ca_file=other.ca_file)):
            error = await refusal(url, settings)
            assert (error.reason, error.status) == ("tls-untrusted", None)
            assert "--ca-file" in (error.remedy or "")
            assert not is_transient(error)
        assert len(asked) == 1


@pytest.mark.parametrize(("name", "days"), [("elsewhere.example", 1), ("127.0.0.1", -1)])
async def test_a_certificate_of_another_name_or_time_is_refused(
    tmp_path: Path, name: str, days: int
) -> None:
    authority = Authority(tmp_path)
    async with serving(mail, authority.server(name, days=days)) as (url, asked):
        error = await refusal(url, replace(QUICK, ca_file=authority.ca_file))
        assert error.reason == "tls-untrusted"
        assert asked == []


async def test_a_file_of_authorities_as_tools_write_it(tmp_path: Path) -> None:
    """With a mark of UTF-8, CRLF, comments and a second certificate."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    bundle = tmp_path / "bundle.pem"
    pem = [each.ca_file.read_bytes() for each in (authority, other)]
    text = b"\xef\xbb\xbf" + "# Főtanúsítvány\n".encode() + b"\n".join(pem)
    bundle.write_bytes(text.replace(b"\n", b"\r\n"))
    async with serving(mail, authority.server("127.0.0.1")) as (url, _):
        assert await get(url, replace(QUICK, ca_file=str(bundle))) == (b"m",)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"],
    ids=["not there", "empty", "no PEM", "broken"],
)
async def test_a_file_without_a_certificate_is_told_at_once(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NetworkError) as caught:
        await get("http://aggregator.invalid", replace(QUICK, ca_file=file))
    assert caught.value.reason == "ca-file"
    assert str(file) in caught.value.message


async def test_tls_with_a_server_that_speaks_none_is_told() -> None:
    async with serving(mail) as (url, _):
        error = await refusal(url.replace("http://", "https://"))
        assert error.reason == "tls-failed"
        assert "http://" in (error.remedy or "")


# -- boxes that answer in the aggregator's place --------------------------------------------------


@pytest.mark.parametrize("kind", FOREIGN)
async def test_what_is_not_the_aggregators_is_typed_bounded_and_repeated(kind: str) -> None:
    async with serving(FOREIGN[kind]) as (url, asked):
        error = await refusal(url)
        assert error.reason == "answer-foreign"
        assert isinstance(error, Unreached)
        assert is_transient(error)
        assert error.own_status is None
        assert f"status {error.status}" in str(error)
        assert "browser" in (error.remedy or "")
        assert len(str(error)) < 800
        assert "hidden" not in str(error)
        assert len(asked) > 1


async def test_a_page_takes_no_message_in_the_aggregators_place() -> None:
    """The aggregator takes a message with 204; a portal that says 200 has not."""
    for kind in ("text/html", "text/plain"):
        async with (
            serving(page(200, kind)) as (url, _),
            Transport(url, lambda now_s: "token", QUICK) as transport,
        ):
            with pytest.raises(Unreached, match="answer-foreign"):
                await transport.post_message("s", b"m")


async def test_a_device_goes_on_when_the_portal_lets_it_through() -> None:
    pages = [page(200), page(302, Location="https://login.example/"), page(503)]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (pages.pop()(request) if pages else mail(request))

    async with serving(answer) as (url, asked):
        assert await get(url, replace(QUICK, patience_s=10.0)) == (b"m",)
        assert len(asked) == 4


async def test_a_page_with_json_in_it_is_no_answer() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=MAIL, content_type="text/html")

    async with serving(answer) as (url, _):
        assert (await refusal(url)).reason == "answer-foreign"


async def test_json_counts_whatever_it_is_labelled_as() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=MAIL, content_type="text/plain")

    async with serving(answer) as (url, _):
        assert await get(url) == (b"m",)


@pytest.mark.parametrize("status", [200, 503])
async def test_a_body_that_is_cut_off_is_repeated(status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(MAIL[:10])
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(answer) as (url, asked):
        assert (await refusal(url)).reason == "unreachable"
        assert len(asked) > 1


@pytest.mark.parametrize(
    ("value", "waited_s"),
    [("7", 7.0), ("date", 9.0), ("past", 0.0), ("²", None), ("soon", None), ("-1", None)],
)
async def test_a_wait_that_is_asked_for_is_read_in_both_forms(
    value: str, waited_s: float | None
) -> None:
    now_s = 1_800_000_000
    dates = {"date": now_s + 9, "past": now_s - 9}
    asked = email.utils.formatdate(dates[value], usegmt=True) if value in dates else value

    async def answer(_: web.Request) -> web.Response:
        date = email.utils.formatdate(now_s, usegmt=True)
        body = msgspec.json.encode(Problem(reason="busy", message="Busy."))
        return web.Response(status=429, body=body, headers={"Retry-After": asked, "Date": date})

    async with serving(answer) as (url, _), network_of(QUICK) as network:
        http = Http(url, lambda now_s: "token", network, QUICK)
        with pytest.raises(TransportError) as caught:
            async with http.request("GET", "/"):
                pass
        assert (caught.value.reason, caught.value.retry_after_s) == ("busy", waited_s)
