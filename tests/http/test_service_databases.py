"""A service is the same over SQLite and over PostgreSQL: what devices and operators see of it."""

import asyncio

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa
import yarl
from nacl.signing import SigningKey
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from aggregator.keys import load_keys
from aggregator.settings.options import Settings
from aggregator.store.database import Database
from secagg.errors import ConfigurationError
from secagg.messages import Advert, peek, sign
from tests.kits.bad_bytes import nowhere_a_failure, texts_with_a_nul
from tests.kits.scraping import admin, scrape
from tests.kits.service import (
    DEADLINE_S,
    TASK,
    Device,
    Liar,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)
from tests.kits.upgrades import audited, first_version, goes_on, migrated


async def test_a_whole_cohort_with_a_drop_out_and_a_restart(tmp_path, database_url):
    async with served(tmp_path, spec(), database_url=database_url) as server:
        fleet = devices(server, 4)
        fleet[2].stop_before = "vector"
        restarted = []

        async def restart_once(name):
            if name == "confirmation" and not restarted:
                restarted.append(name)
                await server.restart()

        fleet[0].hold = restart_once
        assert finished(await run(fleet)) == 3
        assert (await current_sum(server))[:5].tolist() == [1, 1, 0, 1, 0]
        assert (await server.view())["releases"][0]["dropped"] == 1


async def test_a_charge_without_a_sum_and_a_liar_are_remembered_over_a_restart(
    tmp_path, database_url
):
    async with served(tmp_path, spec(), database_url=database_url) as server:
        liar = Liar(server, 3, one_hot(3))
        honest = devices(server, 3)
        await run([*honest, liar])
        async with admin(server) as here:
            before = (await scrape(here)).state()
        view = await server.view()
        (release,) = view["releases"]
        assert (release["outcome"], release["reason"]) == ("charged", "dealer-self-seed")
        assert (view["version"], view["charges"]) == (0, 1)
        await server.restart()
        assert await server.view() == view
        async with admin(server) as here:
            assert (await scrape(here)).state() == before
        back = Device(server, 3, one_hot(3), seed=liar.seed)
        async with aiohttp.ClientSession() as back.http:
            status, body = await back.request("GET", f"/v1/tasks/{TASK}/offer")
        assert (status, msgspec.json.decode(body)["reason"]) == (403, "device-banned")
        again = [Device(server, d.number, d.value, seed=d.seed) for d in honest]
        assert finished(await run([*again, Device(server, 3, one_hot(3))])) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]
        result = await audited(server)
        assert [r.entry.outcome for r in result.releases] == ["charged", "released"]


async def test_a_deadline_that_passed_while_the_service_was_down_ends_the_phase_at_once(
    tmp_path, database_url
):
    async with served(tmp_path, spec(), database_url=database_url) as server:
        fleet = devices(server, 4)
        fleet[2].stop_before = "deals"
        running = [asyncio.create_task(device.run()) for device in fleet]
        await server.until(lambda _: len(dealt(server)) == 3 and fleet[2].gone)
        await server.stop()
        server.ahead_s += DEADLINE_S
        await server.start()
        assert finished(await asyncio.gather(*running)) == 3
        assert (await current_sum(server))[:5].tolist() == [1, 1, 0, 1, 0]


def dealt(server):
    live = list(server.service.driver.live.values())
    return getattr(live[0].cohort.state, "dealt", {}) if live else {}


async def test_text_that_a_database_refuses_is_no_failure_of_the_service(tmp_path, database_url):
    """PostgreSQL takes no NUL in a text, whoever sends it."""
    async with served(tmp_path, spec(), database_url=database_url, requests_per_s=1e6) as server:
        await nowhere_a_failure(server, Device(server, 1, one_hot(1)))
        await texts_with_a_nul(server)
        device = Device(server, 0, one_hot(0), stop_before="advert")
        await device.run()
        async with aiohttp.ClientSession() as device.http:
            offer = yarl.URL(f"{server.url}/v1/tasks/a%00b/offer", encoded=True)
            headers = {"Authorization": f"Bearer {await device.token()}"}
            async with device.http.get(offer, headers=headers) as answer:
                assert answer.status == 404
            advert, _ = peek(device.advert, Advert)
            named = msgspec.structs.replace(advert, task="a\0b")
            signed = sign(named, b"", SigningKey(device.seed.reveal()))
            assert (await device.request("POST", "/v1/adverts", data=signed))[0] == 404
        status, _ = await server.operator("POST", f"/devices/{'ab' * 32}/ban", {"note": "a\0b"})
        assert status == 400
        status, _ = await server.operator("POST", "/partners", {"name": "\0", "key": bytes(32)})
        assert status == 400


async def test_adverts_of_one_device_that_cross_form_a_cohort(tmp_path, database_url):
    async with served(tmp_path, spec(), database_url=database_url) as server:
        device = Device(server, 0, one_hot(0))
        crossing = [
            Device(server, 0, one_hot(0), seed=device.seed, stop_before="advert") for _ in range(8)
        ]
        await asyncio.gather(*(d.run() for d in crossing))
        async with aiohttp.ClientSession() as device.http:
            sent = (device.request("POST", "/v1/adverts", data=d.advert) for d in crossing)
            assert {status for status, _ in await asyncio.gather(*sent)} <= {200, 503}
        fleet = devices(server, 4)[1:]
        fleet.append(Device(server, 0, one_hot(0), seed=device.seed))
        assert finished(await asyncio.wait_for(asyncio.gather(*(d.run() for d in fleet)), 20)) == 4


async def test_postgresql_goes_on_with_the_data_of_the_first_version(tmp_path, postgres_url):
    """Its rows, put into PostgreSQL under its own schema, then all migrations since."""
    folder = first_version(tmp_path)
    source = sa.create_engine(f"sqlite:///{folder / 'secagg.db'}")
    found = sa.MetaData()
    found.reflect(source)
    target = create_async_engine(make_url(postgres_url).set(drivername="postgresql+asyncpg"))
    async with target.begin() as connection:
        await connection.run_sync(migrated, "0002")
        with source.connect() as stored:
            for table in found.sorted_tables:
                rows = [dict(row) for row in stored.execute(table.select()).mappings()]
                if rows and table.name != "alembic_version":
                    await connection.execute(table.insert(), rows)
    await target.dispose()
    source.dispose()
    (folder / "secagg.db").unlink()
    with pytest.raises(ConfigurationError, match="schema-older"):
        async with served(folder, database_url=postgres_url):
            pass
    cells = load_keys(folder / "keys").cells
    database = Database(Settings.load(database_url=postgres_url).database, cells)
    await database.migrate()
    await database.close()
    async with served(folder, database_url=postgres_url) as server:
        await goes_on(server)
