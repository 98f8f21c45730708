"""Commands behind proxies, own authorities and boxes that answer in the aggregator's place."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from aggregator.ledger.witnesses import Witnesses
from client_sdk.enrolment import (
    create_bundle,
    new_partner_key,
    save_bundle,
    save_partner_key,
)
from secagg_cli import network
from secagg_cli.audit import ledger_files
from secagg_cli.main import app
from secagg_cli.witness.service import build_witness_app
from tests.kits.boxes import ENCODED, FOREIGN, PASSWORD, Authority, page, proxy, serving
from tests.kits.tasks import VERIFIER
from tests.kits.witnesses import note, tree, witness


@pytest.fixture(autouse=True)
def impatient(no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECAGG_OPERATOR_TOKEN", "token")
    monkeypatch.setattr(network, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(ledger_files, "_WAITS_S", (0.0, 0.0))


async def secagg(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and all that was printed."""
    done = await asyncio.to_thread(
        CliRunner().invoke, app, [*arguments, "--format", "json"], catch_exceptions=False
    )
    return done.exit_code, json.loads(done.stdout), done.output


async def tasks(_: web.Request) -> web.Response:
    return web.json_response({"tasks": []})


def bundle(folder: Path, server: str) -> str:
    own = create_bundle(server, bytes(32), VERIFIER, new_partner_key().seed, int(time.time()) + 60)
    save_bundle(folder / "bundle.json", own)
    return str(folder / "bundle.json")


def command(name: str, folder: Path, server: str) -> list[str]:
    """A command of each kind that speaks HTTP."""
    if name == "task":
        return ["task", "list", "--server", server]
    if name == "audit":
        return ["audit", "verify", f"{server}/ledger", "--key", VERIFIER]
    if name == "account":
        state = ["--state", str(folder / "state")]
        return ["account", "recover", bundle(folder, server), *state]
    if not (folder / "partner.json").exists():
        save_partner_key(folder / "partner.json", new_partner_key().seed)
    out = ["--out", str(folder / "out")]
    return ["enroll", "--partner-key", str(folder / "partner.json"), *out, "--server", server]


COMMANDS = ["task", "audit", "enroll", "account"]


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_asks_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    async with proxy(refuse=(407, "")) as between:
        monkeypatch.setenv("HTTP_PROXY", between.url.replace("//", f"//user:{ENCODED}@"))
        code, answer, said = await secagg(*command(name, tmp_path, "http://aggregator.invalid"))
        assert (code, answer["error"]["reason"]) == (3, "proxy-auth")
        assert between.url in answer["error"]["message"]
        assert PASSWORD not in said
        assert ENCODED not in said
        assert len(between.asked) == 1


async def test_a_command_goes_through_the_proxy_with_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(tasks) as (url, asked), proxy(password=PASSWORD) as between:
        monkeypatch.setenv("http_proxy", between.url.replace("//", f"//user:{ENCODED}@"))
        assert (await secagg("task", "list", "--server", url))[:2] == (0, {"tasks": []})
        assert len(between.asked) == 1
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.0/8")
        assert (await secagg("task", "list", "--server", url))[0] == 0
        assert (len(between.asked), len(asked)) == (1, 2)


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_takes_a_file_of_authorities(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    authority = Authority(tmp_path)

    async def gone(_: web.Request) -> web.Response:
        return web.json_response({"reason": "gone", "message": "Gone."}, status=410)

    async with serving(gone, authority.server("127.0.0.1")) as (url, asked):
        arguments = command(name, tmp_path, url)
        code, answer, _ = await secagg(*arguments)
        assert (code, answer["error"]["reason"]) == (3, "tls-untrusted")
        assert "--ca-file" in answer["error"]["remedy"]
        assert asked == []
        await secagg(*arguments, "--ca-file", str(authority.ca_file))
        assert len(asked) > 0
        before = len(asked)
        monkeypatch.setenv("SECAGG_CA_FILE", str(authority.ca_file))
        await secagg(*arguments)
        assert len(asked) > before
        code, answer, _ = await secagg(*arguments, "--ca-file", str(tmp_path / "none"))
        assert (code, answer["error"]["reason"]) == (2, "ca-file")
        code, answer, _ = await secagg(*arguments, "--client-key", str(authority.ca_file))
        assert (code, answer["error"]["reason"]) == (2, "client-certificate")


async def test_a_command_shows_its_certificate_where_it_is_asked_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    context = authority.server("127.0.0.1")
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key = authority.pair(tmp_path / "operator.pem", "operator")
    async with serving(tasks, context) as (url, _):
        arguments = ("task", "list", "--server", url, "--ca-file", str(authority.ca_file))
        shown = ("--client-certificate", str(certificate), "--client-key", str(key))
        assert (await secagg(*arguments, *shown))[:2] == (0, {"tasks": []})
        assert (await secagg(*arguments))[0] == 3
        monkeypatch.setenv("SECAGG_CLIENT_CERTIFICATE", str(certificate))
        monkeypatch.setenv("SECAGG_CLIENT_KEY", str(key))
        assert (await secagg(*arguments))[0] == 0


@pytest.mark.parametrize("kind", FOREIGN)
async def test_what_is_not_the_aggregators_is_told_as_such(kind: str) -> None:
    async with serving(FOREIGN[kind]) as (url, asked):
        code, answer, said = await secagg("task", "list", "--server", url)
        assert (code, answer["error"]["reason"]) == (3, "answer-foreign")
        assert "browser" in answer["error"]["remedy"]
        assert len(said) < 2_000
        assert len(asked) > 1


@pytest.mark.parametrize("kind", ["captive portal", "XHTML"])
async def test_a_page_is_no_finding_about_a_ledger(kind: str) -> None:
    async with serving(FOREIGN[kind]) as (url, asked):
        code, answer, _ = await secagg("audit", "verify", f"{url}/ledger", "--key", VERIFIER)
        assert (code, answer["error"]["reason"]) == (3, "answer-foreign")
        assert len(asked) == 3


async def test_what_changes_something_is_asked_once(tmp_path: Path) -> None:
    """A balancer's page may come after the aggregator has done it."""
    async with serving(page(502)) as (url, asked):
        code, answer, _ = await secagg("task", "pause", "t", "--server", url)
        assert (code, answer["error"]["reason"]) == (3, "answer-foreign")
        assert len(asked) == 1


async def test_the_names_of_tasks_do_not_leave_their_place_in_the_path() -> None:
    async with serving(tasks) as (url, asked):
        await secagg("task", "show", "../../admin?x=1#y", "--server", url)
        assert asked[0].rel_url.raw_path_qs == ("/v1/operator/tasks/..%2F..%2Fadmin%3Fx=1%23y")


@pytest.mark.parametrize(
    "server",
    ["localhost:8080", "ftp://h", "http://", "http://u:hidden@h", "http://h:port", "http://h?q"],
)
async def test_an_address_that_is_none_is_an_unusable_argument(server: str) -> None:
    code, answer, said = await secagg("task", "list", "--server", server)
    assert (code, answer["error"]["reason"]) == (2, "server-url")
    assert "hidden" not in said


async def test_a_server_that_is_not_there_is_out_of_reach_at_once() -> None:
    code, answer, _ = await secagg("task", "list", "--server", "http://127.0.0.1:9")
    assert (code, answer["error"]["reason"]) == (3, "server-unreachable")


def test_the_demonstration_asks_no_proxy_for_its_own_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "example")
    monkeypatch.setenv("no_proxy", "")
    network.go_straight_to("127.0.0.1")
    assert os.environ["no_proxy"] == "127.0.0.1"
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "example")
    network.go_straight_to("127.0.0.1")
    assert os.environ["no_proxy"] == "127.0.0.1,example"


async def test_an_aggregator_asks_its_witnesses_through_the_proxy_and_logs_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watching = witness(tmp_path)
    async with (
        TestServer(build_witness_app(watching)) as server,
        proxy(password=PASSWORD) as between,
    ):
        urls = {watching.verifier: str(server.make_url(""))}
        for given, cosigned in ((PASSWORD, True), ("other", False)):
            between.password = given
            monkeypatch.setenv("HTTP_PROXY", between.url.replace("//", f"//user:{ENCODED}@"))
            asking = Witnesses(urls, 5.0)
            whole = await asking.cosign(note(5), 5, tree(5).subtree)
            assert (not asking.lacking(whole)) == cosigned
            await asking.close()
        away = Witnesses({watching.verifier: "https://witness.invalid"}, 5.0)
        monkeypatch.setenv("HTTPS_PROXY", between.url.replace("//", f"//user:{ENCODED}@"))
        assert away.lacking(await away.cosign(note(5), 5, tree(5).subtree))
        await away.close()
        assert [line.split(" ")[0] for line in between.asked] == ["POST", "POST", "CONNECT"]
    said = "".join(capfd.readouterr())
    assert "407" in said
    encoded = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    assert not [secret for secret in (PASSWORD, ENCODED, encoded) if secret in said]
