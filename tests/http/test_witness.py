"""A witness over HTTP, and the service's side that asks it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from aggregator import logs
from aggregator.http.app import SERVICE
from aggregator.keys import load_keys
from aggregator.ledger.witnesses import Witnesses
from aggregator.service import Service
from aggregator.settings.options import Settings
from client_sdk.errors import LedgerRefusal
from dp.tlog.notes import verifier_key
from dp.tlog.witness import WitnessPolicy, encode_request
from secagg.keys import identity_public_key
from secagg_cli.witness.service import Witness, build_witness_app
from tests.kits.log_lines import lines, of
from tests.kits.witnesses import SEEDS, note, request, tree, witness
from tests.kits.world import POLICY, TASK, OneHot, World, plain_spec


async def test_the_http_answers_are_those_of_the_specification(tmp_path: Path) -> None:
    watching = witness(tmp_path)
    async with TestClient(TestServer(build_witness_app(watching))) as client:

        async def post(body: bytes) -> tuple[int, str, str]:
            answer = await client.post("/add-checkpoint", data=body)
            return answer.status, await answer.text(), answer.headers["Content-Type"]

        status, line, _ = await post(encode_request(request(0, 5)))
        assert status == 200
        assert line.startswith("\u2014 w0.example ")
        assert line.endswith("\n")
        assert await post(encode_request(request(0, 7))) == (409, "5\n", "text/x.tlog.size")
        assert await post(encode_request(request(5, 5, b"x"))) == (409, "5\n", "text/x.tlog.size")
        assert (await post(encode_request(request(5, 9, b"x"))))[0] == 422
        assert (await post(b"nonsense"))[0] == 400
        assert (await post(encode_request(request(0, 5)._replace(note=note(5, seed=SEEDS[1])))))[
            0
        ] == 403
        other = request(0, 5)._replace(note=note(5, origin="other.example"))
        assert (await post(encode_request(other)))[0] == 404
        assert (await post(encode_request(request(5, 9))))[0] == 200
    assert len(watching.evidence()) == 2


async def test_a_witness_that_restarts_signs_no_fork(tmp_path: Path) -> None:
    witness(tmp_path).add_checkpoint(encode_request(request(0, 5)))
    again = witness(tmp_path)
    body = encode_request(request(0, 5, b"x"))
    assert again.remembered_size(body) == 5
    async with TestClient(TestServer(build_witness_app(again))) as client:
        assert (await client.post("/add-checkpoint", data=body)).status == 409


async def test_the_service_collects_cosignatures_and_learns_what_a_witness_remembers(
    tmp_path: Path,
) -> None:
    watching = [witness(tmp_path, 0), witness(tmp_path, 1)]
    watching[1].add_checkpoint(encode_request(request(0, 3)))
    async with (
        TestServer(build_witness_app(watching[0])) as first,
        TestServer(build_witness_app(watching[1])) as second,
    ):
        urls = {
            watching[0].verifier: str(first.make_url("")),
            watching[1].verifier: str(second.make_url("")),
        }
        asking = Witnesses(urls, 5.0)
        try:
            policy = WitnessPolicy.of(list(urls))
            for size in (5, 5, 9):
                whole = await asking.cosign(note(size), size, tree(9).subtree)
                policy.check(whole)
                assert not asking.lacking(whole)
                assert asking.carry_over(whole, note(size)) == whole
            forked = await asking.cosign(note(9, b"x"), 9, tree(9, b"x").subtree)
            assert forked == note(9, b"x")
        finally:
            await asking.close()


async def test_a_witness_that_is_away_stops_nothing(tmp_path: Path) -> None:
    asking = Witnesses({witness(tmp_path).verifier: "http://127.0.0.1:9"}, 1.0)
    try:
        assert await asking.cosign(note(5), 5, tree(5).subtree) == note(5)
        assert len(asking.lacking(note(5))) == 1
    finally:
        await asking.close()


async def test_a_witness_that_stays_away_is_told_with_what_to_do_and_so_is_its_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    watching, now = witness(tmp_path), [0.0]
    asking = Witnesses({watching.verifier: "http://127.0.0.1:9"}, 1.0, lambda: now[0])
    try:
        for now[0] in (0.0, 29.0, 31.0):
            assert await asking.cosign(note(5), 5, tree(5).subtree) == note(5)
        told = lines(capsys)
        assert len(of("witness-unreachable", told)) == 3
        (line,) = of("witness-silent", told)
        assert (line["silent_s"], line["level"]) == (31, "error")
        assert line["witness"] in watching.verifier
        assert "secagg witness serve" in line["remedy"]
        async with TestServer(build_witness_app(watching)) as server:
            asking._urls = dict.fromkeys(asking._urls, str(server.make_url("")).rstrip("/"))
            assert await asking.cosign(note(5), 5, tree(5).subtree) != note(5)
        (line,) = lines(capsys)
        assert (line["event"], line["silent_s"]) == ("witness-back", 31)
    finally:
        await asking.close()


async def test_the_published_checkpoint_is_cosigned_and_stays_so_over_a_restart(
    tmp_path: Path,
) -> None:
    data = {"data_dir": tmp_path / "data", "operator_token": "operator-token"}
    settings = Settings.load(**data)
    log = verifier_key(
        settings.ledger_name, identity_public_key(load_keys(settings.keys_path).ledger)
    )
    watching = Witness(tmp_path / "w.db", "w0.example", SEEDS[0], [log], lambda: 1_700_000_000)
    policy = WitnessPolicy.of([watching.verifier])
    async with TestServer(build_witness_app(watching)) as server:
        urls = {watching.verifier: str(server.make_url(""))}
        published = await published_by(Settings.load(**data, witnesses=urls))
    policy.check(published)
    away = Settings.load(**data, witnesses={watching.verifier: "http://127.0.0.1:9"})
    assert await published_by(away) == published
    service = Service(away)
    await service.start()
    try:  # what a witness said last is known before it is asked again
        assert service.ledger.witnesses(0) == [("w0.example", 0, 1_700_000_000)]
        assert service.ledger.witnesses(2) == [("w0.example", 2, 1_700_000_000)]
    finally:
        await service.close()


async def published_by(settings: Settings) -> bytes:
    service = Service(settings)
    await service.start()
    try:
        return (service.ledger.folder / "checkpoint").read_bytes()
    finally:
        await service.close()


async def test_devices_that_demand_two_of_three_witnesses_finish_with_one_away(
    tmp_path: Path,
) -> None:
    settings = Settings.load(data_dir=tmp_path / "service")
    log = verifier_key(
        settings.ledger_name, identity_public_key(load_keys(settings.keys_path).ledger)
    )
    watching = [
        Witness(tmp_path / f"w{n}.db", f"w{n}.example", SEEDS[n], [log], time.time)
        for n in range(3)
    ]
    keys = [witness.verifier for witness in watching]
    policy = replace(POLICY, witnesses=frozenset(keys), min_witnesses=2)
    strict = replace(POLICY, witnesses=frozenset(keys))
    async with (
        TestServer(build_witness_app(watching[0])) as first,
        TestServer(build_witness_app(watching[1])) as second,
    ):
        urls = [str(first.make_url("")), str(second.make_url("")), "http://127.0.0.1:9"]
        spec = plain_spec(4)
        async with World(tmp_path, spec, witnesses=dict(zip(keys, urls, strict=True))) as world:
            results = await asyncio.gather(
                *(
                    world.device(f"d{n}", policy=policy).run_async(OneHot(n), task=TASK, rounds=1)
                    for n in range(4)
                )
            )
            assert [len(result.releases) for result in results] == [1] * 4
            with pytest.raises(LedgerRefusal) as caught:
                await world.device("d4", policy=strict).run_async(OneHot(4), task=TASK, rounds=1)
            assert caught.value.reason == "witnesses-missing"
            folder = world.app[SERVICE].ledger.folder
            WitnessPolicy.of(keys, 2).check((folder / "checkpoint").read_bytes())


@pytest.mark.parametrize("pieces", [1, 7])
async def test_an_answer_in_pieces_is_read_whole_and_a_vast_one_is_not(
    tmp_path: Path, pieces: int
) -> None:
    """A witness behind a slow link answers in several packets; one that never ends is given up."""
    seen = witness(tmp_path)
    endless = False

    async def add_checkpoint(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        assert request.headers["Accept-Encoding"] == "identity"
        await answer.prepare(request)
        line = seen.add_checkpoint(await request.read()).encode()
        size = -(-len(line) // pieces)
        for at in range(0, len(line), size):
            await answer.write(line[at : at + size])
            await asyncio.sleep(0)
        while endless:
            await answer.write(b"x" * 65_536)
        return answer

    app = web.Application()
    app.add_routes([web.post("/add-checkpoint", add_checkpoint)])
    async with TestServer(app) as server:
        asked = Witnesses({seen.verifier: str(server.make_url(""))}, timeout_s=30.0)
        try:
            assert not asked.lacking(await asked.cosign(note(5), 5, tree(9).subtree))
            endless = True
            assert asked.lacking(await asked.cosign(note(9), 9, tree(9).subtree))
        finally:
            await asked.close()
