"""One cohort of two replicas over one PostgreSQL: any of them takes any request."""

import asyncio
import os

import aiohttp
import msgspec
from nacl.signing import SigningKey

from aggregator.cohorts import driver
from secagg.revocation import sign_revocations
from secagg.secret import Secret
from tests.kits.replicas import Balanced, pair
from tests.kits.scraping import admin, scrape
from tests.kits.service import (
    PARTNER,
    TASK,
    Device,
    Liar,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
)


async def test_a_liar_is_banned_on_every_replica(tmp_path, postgres_url):
    """The one that ends the cohort writes the ban; the other refuses the device at once."""
    async with pair(tmp_path, postgres_url) as (one, two):
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


async def test_a_partner_that_one_replica_added_is_known_to_the_other_at_once(
    tmp_path, postgres_url
):
    async with pair(tmp_path, postgres_url, poll_s=600.0) as (one, two):
        other = Secret(os.urandom(32))
        key = bytes(SigningKey(other.reveal()).verify_key)
        status, _ = await one.operator("POST", "/partners", {"name": "q", "key": key})
        assert status == 200
        device = Device(two, 0, one_hot(0), stop_before="advert", partner=other)
        await device.run()
        assert device.gone  # its offer was answered, though no poll had told replica two


async def test_two_replicas_take_any_request_of_one_cohort(tmp_path, postgres_url):
    async with pair(tmp_path, postgres_url) as (one, two):
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


async def test_one_vector_through_both_replicas_at_once_counts_once(tmp_path, postgres_url):
    async with pair(tmp_path, postgres_url) as (one, two):
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


async def test_a_restart_of_another_replica_costs_nothing_while_nobody_had_sent(
    tmp_path, postgres_url
):
    """The replica that ends the cohort was there all the time; the devices' may not have been."""
    async with pair(tmp_path, postgres_url) as (one, two):
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


async def test_a_vector_goes_on_at_any_replica(tmp_path, postgres_url):
    """Every part comes through another replica; none is asked for twice."""
    async with pair(tmp_path, postgres_url) as (one, two):
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


async def test_a_replica_that_dies_while_it_opens_is_replaced_by_the_other(
    tmp_path, postgres_url, monkeypatch
):
    opening, real = [], driver.unmasked_sum

    async def first_dies(core, cohort, plan):
        opening.append(core.replica)
        if len(opening) == 1:
            await asyncio.Event().wait()
        return await real(core, cohort, plan)

    monkeypatch.setattr(driver, "unmasked_sum", first_dies)
    async with pair(tmp_path, postgres_url, opening_lease_s=0.5) as (one, two):
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
