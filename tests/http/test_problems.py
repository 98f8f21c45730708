"""Every refusal is a problem document (RFC 9457); devices of before still read theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from aggregator.errors import Kind, Refusal, conflict
from aggregator.http.app import SERVICE
from aggregator.http.problems import STATUS, encode, respond
from aggregator.store.database import Conflict
from client_sdk.errors import TransportError
from client_sdk.network.http import Http, TransportSettings, network_of
from secagg.errors import SecaggError
from secagg.http_api import PROBLEM_TYPE, Offer, Problem
from tests.kits.service import TOKEN, Served, served, spec

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
SHORT = msgspec.json.encode({"name": "q", "key": b"short"})


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, spec()) as running:
        yield running


async def asked(
    server: Served, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, bytes]:
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, server.url + path, data=body, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def test_a_refusal_says_in_members_what_a_program_acts_on(server: Served) -> None:
    status, headers, body = await asked(server, "POST", "/v1/operator/partners", SHORT, **OPERATOR)
    assert headers["Content-Type"] == PROBLEM_TYPE
    sentence = "A partner's key is an Ed25519 key. Expected '32 bytes', found '5 bytes'."
    assert (status, msgspec.json.decode(body)) == (
        422,
        {
            "request_id": headers["X-Request-Id"],
            "type": "urn:secagg:problem:partner-key",
            "title": "Partner key",
            "status": 422,
            "detail": sentence,
            "reason": "partner-key",
            "message": sentence,
            "expected": "32 bytes",
            "found": "5 bytes",
        },
    )


ASKED = {
    "no token": ("GET", "/v1/operator/tasks", 401, "token-missing"),
    "no such route": ("GET", "/v1/nowhere", 404, "not-found"),
    "no such method": ("DELETE", "/v1/server", 405, "method-not-allowed"),
    "no tile": ("GET", "/ledger/tile/0/777", 404, "not-found"),
    "a head that is not HTTP": ("GET", "/v1/" + "x" * 9_000, 431, "header-too-large"),
}


@pytest.mark.parametrize("name", ASKED)
async def test_whoever_refuses_answers_in_the_same_form(server: Served, name: str) -> None:
    method, path, status, reason = ASKED[name]
    found, headers, body = await asked(server, method, path)
    assert (found, headers["Content-Type"]) == (status, PROBLEM_TYPE)
    problem = msgspec.json.decode(body, type=Problem)
    assert (problem.reason, problem.status) == (reason, status)
    assert problem.type == f"urn:secagg:problem:{reason}"
    assert problem.detail == problem.message != ""
    assert ("WWW-Authenticate" in headers) == (status == 401)


@pytest.mark.parametrize(
    ("fault", "status", "reason"), [(Conflict("x"), 503, "busy"), (KeyError("s"), 500, "internal")]
)
async def test_the_services_own_faults_are_problems_that_tell_nothing_of_the_inside(
    server: Served, monkeypatch: pytest.MonkeyPatch, fault: Exception, status: int, reason: str
) -> None:
    async def fail() -> None:
        raise fault

    monkeypatch.setattr(server.app[SERVICE].ledger, "demand_published", fail)
    found, headers, body = await asked(server, "GET", "/ledger/checkpoint")
    problem = msgspec.json.decode(body, type=Problem)
    assert (found, problem.status, problem.reason) == (status, status, reason)
    assert headers.get("Retry-After") == ("1" if status == 503 else None)
    assert problem.remedy


# What devices and command lines of before problem documents do with an answer of 400 and more:
# a copy of their code at commit 0453a63, not to be changed.


class ProblemBefore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    reason: str
    message: str
    remedy: str | None = None


def read_before(status: int, path: str, content: bytes) -> ProblemBefore:
    try:
        return msgspec.json.decode(content, type=ProblemBefore)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ProblemBefore(
            reason=f"http-{status}", message=f"The server answered {status} to {path}."
        )


async def test_a_device_of_before_still_reads_reason_values_and_remedy(server: Served) -> None:
    path = "/v1/operator/partners"
    agent = {"User-Agent": "secagg-client/1"}
    status, headers, body = await asked(server, "POST", path, SHORT, **OPERATOR, **agent)
    assert (status, headers["Content-Type"]) == (422, "application/json")
    read = read_before(status, path, body)
    assert read.reason == "partner-key"
    assert read.message.endswith("Expected '32 bytes', found '5 bytes'.")
    token = {"Authorization": "Bearer garbage"}  # a reason that a device acts on
    status, headers, body = await asked(server, "GET", "/v1/tasks/t/offer", **token, **agent)
    assert (status, read_before(status, "", body).reason) == (401, "token-malformed")
    status, _, body = await asked(server, "GET", "/v1/nowhere", **agent)
    assert read_before(status, "", body).reason == "not-found"


async def test_one_of_before_that_names_itself_otherwise_ends_with_status_and_path(
    server: Served,
) -> None:
    path = "/v1/operator/partners"
    status, _, body = await asked(
        server, "POST", path, SHORT, **OPERATOR, **{"User-Agent": "their-app/7"}
    )
    assert read_before(status, path, body) == ProblemBefore(
        reason="http-422", message="The server answered 422 to /v1/operator/partners."
    )


async def test_a_device_of_today_reads_an_aggregator_of_either_kind(server: Served) -> None:
    assert TransportSettings().user_agent != "secagg-client/1"
    before = msgspec.json.encode(ProblemBefore(reason="r", message="m", remedy="y"))
    assert msgspec.json.decode(before, type=Problem) == Problem(reason="r", message="m", remedy="y")
    newer = msgspec.json.decode(encode(409, conflict("r", "m")))
    newer["instance"] = "/x"  # members to come
    assert msgspec.json.decode(msgspec.json.encode(newer), type=Problem).reason == "r"
    async with network_of(TransportSettings()) as network:
        http = Http(server.url, lambda now_s: "garbage", network)
        with pytest.raises(TransportError) as caught:
            await http.json("GET", "/v1/tasks/t/offer", Offer, 1 << 16)
    assert (caught.value.reason, caught.value.status) == ("token-malformed", 401)


def test_every_kind_of_refusal_has_a_status_of_its_own() -> None:
    assert set(STATUS) == set(Kind)
    assert len(set(STATUS.values())) == len(Kind)
    for kind in Kind:
        assert respond(Refusal(kind, "r", "m")).status == STATUS[kind]


@pytest.mark.parametrize(
    ("value", "member"),
    [
        (True, True),
        (0.5, 0.5),
        ((1, "b"), [1, "b"]),
        (1 << 64, str(1 << 64)),  # beyond what readers of JSON keep
        (b"\x01\xff", "01ff"),
        (np.int64(3), "3"),
        ("x" * 5_000, "x" * 1_000),
        (list(range(5_000)), list(range(64))),
    ],
)
def test_values_of_any_kind_are_members_of_bounded_size(value: object, member: object) -> None:
    document = msgspec.json.decode(encode(400, SecaggError("r", "m", expected=value, found=value)))
    assert document["expected"] == document["found"] == member
