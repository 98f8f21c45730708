"""The ledger as a device sees it over HTTP: rolled back, forked, without its leaf or its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from aiohttp import web

from aggregator.http.app import SERVICE
from aggregator.store.schema import versions
from client_sdk import Event, LedgerRefusal
from dp.tlog.notes import Checkpoint, sign_checkpoint
from tests.kits.quadratics import LENGTH, Quadratic, quadratic_spec
from tests.kits.world import QUICK, TASK, OneHot, World, at_once, plain_spec, run_all


async def test_a_ledger_that_was_rolled_back_or_forked_is_refused(tmp_path: Path) -> None:
    """After a round the device knows two leaves; a server restored from an old backup has one."""
    async with World(tmp_path, plain_spec()) as world:
        ledger = world.app[SERVICE].ledger
        old = (ledger.folder / "checkpoint").read_bytes()
        results = await run_all(world)
        assert [len(result.releases) for result in results] == [1, 1, 1, 1]

        served = old

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            return web.Response(body=served) if request.path == "/ledger/checkpoint" else None

        world.gate = gate
        contributor = OneHot(0)
        device = world.device("d0", sleep=at_once)
        with pytest.raises(LedgerRefusal) as caught:
            await device.run_async(contributor, task=TASK)
        assert caught.value.reason == "ledger-rolled-back"

        fork = Checkpoint("secagg.local/ledger", 2, bytes(32))
        served = sign_checkpoint(fork, world.app[SERVICE].core.keys.ledger)
        with pytest.raises(LedgerRefusal) as caught:
            await device.run_async(contributor, task=TASK)
        assert caught.value.reason == "ledger-forked"
        assert contributor.jobs == []


async def test_a_receipt_without_its_leaf_is_not_believed(tmp_path: Path) -> None:
    """The server says 'released' and shows a ledger in which nothing is."""
    async with World(tmp_path, plain_spec()) as world:
        old = (world.app[SERVICE].ledger.folder / "checkpoint").read_bytes()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers["User-Agent"] == "d0"
            return web.Response(body=old) if mine and "checkpoint" in request.path else None

        world.gate = gate
        results = await run_all(world, sleep=at_once, transport=replace(QUICK, user_agent="d0"))
        assert isinstance(results[0], LedgerRefusal)
        assert results[0].reason == "release-not-proven"
        device = world.device("d0")
        assert device.has_pending()
        world.gate = None
        assert len((await device.resume_async()).releases) == 1


@pytest.mark.parametrize("named", [True, False], ids=["leaf named", "no leaf named"])
async def test_a_model_that_the_ledger_does_not_name_is_not_trained_on(
    tmp_path: Path, named: bool
) -> None:
    """In a synchronous task too: else a crafted model would leave no trace anywhere."""
    crafted = safetensors.numpy.save({"vector": np.full(LENGTH, 1234.5, np.float32)})
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        core = world.app[SERVICE].core
        digest = core.blobs.put_digest("models", crafted)
        async with core.database.write() as connection:
            await connection.execute(
                sa.update(versions).values(
                    digest=digest.hex(),
                    size_bytes=len(crafted),
                    **({} if named else {"leaf_index": -1}),
                )
            )
        contributor, events = Quadratic(0), list[Event]()

        def on_event(event: Event) -> None:
            events.append(event)
            assert event.kind != "training"

        with pytest.raises(LedgerRefusal) as caught:
            await world.device("d0", on_event, sleep=at_once).run_async(contributor, task=TASK)
        assert caught.value.reason == "model-not-in-ledger"
        assert contributor.jobs == []
        assert [(e.kind, e.detail["reason"]) for e in events] == [
            ("aborted", "model-not-in-ledger")
        ]
        assert not world.device("d0").has_pending()
