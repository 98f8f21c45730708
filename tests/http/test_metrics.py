"""Metrics that are state of the service: after a restart, at every replica, and never for ever."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import sqlalchemy as sa

from aggregator import measures
from aggregator.store import schema
from dp.contracts import BudgetSpec
from tests.kits.scraping import admin, label_names, promtool, scrape
from tests.kits.service import TASK, Device, devices, one_hot, run, served, spec


async def test_a_restart_or_another_replica_shows_the_same_state_of_the_service(tmp_path):
    noisy = spec(device_noise_multiplier=2.0, budget=BudgetSpec(max_epsilon=50.0, releases_max=3))
    async with served(tmp_path, noisy) as server:
        async with admin(server) as url:
            fresh = await scrape(url)
        assert fresh.value("secagg_epsilon", task=TASK, unit="device") == 0.0
        assert fresh.value("secagg_charges_left", task=TASK) == 3
        await run(devices(server, 4))
        fleet = devices(server, 4)
        fleet[0].stop_before, fleet[1].stop_before = "deals", "header"
        await run(fleet)
        view = await server.until(lambda view: view["charges"] == 2 and view["cohort"] is None)
        async with admin(server) as url:
            before = await scrape(url)
        shared = {
            "database_url": f"sqlite:///{tmp_path / 'secagg.db'}",
            "keys_dir": tmp_path / "keys",
            "blob_dir": tmp_path / "blobs",
        }
        async with served(tmp_path / "second", **shared) as second, admin(second) as url:
            assert (await scrape(url)).state() == before.state()
        await server.restart()
        async with admin(server) as url:
            after = await scrape(url)
    assert after.state() == before.state()
    epsilon = view["releases"][-1]["epsilon"]
    assert after.value("secagg_epsilon", task=TASK, unit="device") == epsilon
    assert after.value("secagg_epsilon_left", task=TASK, unit="device") == 50.0 - epsilon
    assert after.value("secagg_charges", task=TASK) == 2
    assert after.value("secagg_charges_left", task=TASK) == 1
    ends = {"task": TASK, "outcome": "aborted", "reason": "too-few-vectors"}
    assert after.value("secagg_cohorts_total", **ends) == 1
    assert after.value("secagg_devices_total", task=TASK, fate="survived") == 4
    assert after.value("secagg_devices_total", task=TASK, fate="dropped") == 4
    lost = {dict(labels)["step"]: n for labels, n in after.of("secagg_drop_outs_total").items()}
    assert {step: n for step, n in lost.items() if n} == {"sharing": 1, "masking": 1}
    assert after.value("secagg_ledger_records") == 3
    assert 0 <= after.value("secagg_release_age_seconds", task=TASK) < 600


async def test_a_task_without_noise_has_no_epsilon_and_an_ended_one_leaves(tmp_path):
    """No epsilon of 0 for sums that nothing protects; no series for ever."""
    once = spec(budget=BudgetSpec(max_epsilon=None, releases_max=1))
    async with served(tmp_path, once) as server, admin(server) as url:
        await run(devices(server, 4))
        await server.until(lambda view: view["state"] == "finished" and view["cohort"] is None)
        found = await scrape(url)
        assert "secagg_epsilon{" not in found.text
        assert "_created" not in found.text
        assert found.value("secagg_charges_left", task=TASK) == 0
        assert found.value("secagg_adverts_total", task=TASK) == 4
        server.ahead_s += measures.ENDED_SHOWN_S + 1
        gone = await scrape(url)
        assert f'task="{TASK}"' not in gone.text
        assert gone.value("secagg_tasks", state="finished") == 1


async def test_a_device_that_never_deals_is_told_under_a_pseudonym_until_it_deals(tmp_path, capfd):
    many = spec(budget=BudgetSpec(max_epsilon=None, releases_max=9))
    async with served(tmp_path, many) as server, admin(server) as url:
        idle = Device(server, 0, one_hot(0), stop_before="deals")
        for told in (0, 0, 1):
            await one_cohort(server, idle)
            found = await scrape(url)
            assert found.value("secagg_devices_not_dealing", task=TASK) == told
        (device,) = (await server.view())["not_dealing"]
        assert device["cohorts"] == 3
        assert re.fullmatch("[0-9a-f]{16}", device["device"])
        assert f'"device": "{device["device"]}"' in capfd.readouterr().err
        identity = idle.certificate.identity_key.hex()
        async with aiohttp.ClientSession() as http, http.get(f"{url}/tasks/{TASK}") as answer:
            page = await answer.text()
        assert f"<code>{device['device']}</code>" in page
        assert identity[:12] not in page
        _, listed = await server.operator("GET", "/devices")  # whom to ban
        (row,) = listed["never_deal"]
        assert (row["device"], row["log_name"]) == (identity, device["device"])
        membership, database = server.service.membership, server.service.core.database

        async def told_of() -> tuple[float | None, int, int]:
            _, listed = await server.operator("GET", "/devices")
            count = (await scrape(url)).value("secagg_devices_not_dealing", task=TASK)
            return count, len((await server.view())["not_dealing"]), len(listed["never_deal"])

        async def become(state: str) -> None:
            async with database.write() as connection:
                await connection.execute(sa.update(schema.tasks).values(state=state))

        assert await told_of() == (1, 1, 1)
        await membership.ban(bytes.fromhex(identity), "")
        assert await told_of() == (0, 0, 0)
        await membership.unban(bytes.fromhex(identity))
        assert await told_of() == (1, 1, 1)
        await become("finished")
        assert await told_of() == (0, 0, 0)
        await become("open")
        idle.stop_before = None
        await one_cohort(server, idle)
        found = await scrape(url)
        assert found.value("secagg_devices_not_dealing", task=TASK) == 0


async def one_cohort(server, first: Device) -> None:
    """A cohort of this device and three others, to its end."""
    first.outcome, first.after, first.gone = None, 0, False
    await run([first, *(Device(server, number, one_hot(number)) for number in (1, 2, 3))])
    await server.until(lambda view: view["cohort"] is None)


async def test_an_open_cohort_tells_its_phase_how_many_are_through_and_its_deadline(tmp_path):
    async with served(tmp_path, spec()) as server, admin(server) as url:
        fleet = devices(server, 4)
        for device in fleet[:2]:
            device.stop_before = "deals"
        for device in fleet[2:]:
            device.stop_before = "ready"
        going = [asyncio.create_task(device.run()) for device in fleet]
        await asyncio.gather(*going[:2])
        view = await server.until(lambda view: (view["cohort"] or {}).get("done") == 2)
        found = await scrape(url)
        labels = {"task": TASK, "phase": "sharing"}
        assert found.value("secagg_open_cohorts") == 1
        assert found.value("secagg_cohort_devices", **labels) == 4
        assert found.value("secagg_cohort_devices_due", **labels) == 2
        assert 0 < found.value("secagg_cohort_deadline_seconds", **labels) <= 60
        assert found.value("secagg_cohort_stuck", **labels) == 0
        assert view["cohort"]["due"] == 4
        async with aiohttp.ClientSession() as http, http.get(f"{url}/tasks/{TASK}") as answer:
            assert 'aria-label="sharing: 2 of 4 devices"' in await answer.text()
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


async def test_without_a_database_a_scrape_says_not_ready_and_shows_nothing_old(
    tmp_path, monkeypatch
):
    async with served(tmp_path, spec()) as server, admin(server) as url:
        assert (await scrape(url)).value("secagg_ready") == 1

        def away(*_, **__):
            raise OSError("away")

        monkeypatch.setattr(server.service.core.database, "read", away)
        found = await scrape(url)
        monkeypatch.undo()
        assert found.value("secagg_ready") == 0
        assert found.value("secagg_scrape_failures_total") == 1
        assert found.value("secagg_charges", task=TASK) is None
        assert found.of("secagg_build_info")


async def test_a_scrape_has_the_form_that_prometheus_asks_for(tmp_path):
    async with served(tmp_path, spec()) as server, admin(server) as url:
        found = await scrape(url)
    promtool("check", "metrics", sent=found.text)
    exported = label_names()
    for (name, labels), _ in found.samples.items():
        assert {label for label, _ in labels} == exported[name], name
    assert not re.search(r"[0-9a-f]{32}", found.text)  # no key, cohort or digest


async def test_scrapes_in_a_row_read_the_database_once(tmp_path, monkeypatch):
    asked = []
    async with served(tmp_path, spec()) as server:
        read = server.service.measures._from_database

        async def counted():
            asked.append(1)
            return await read()

        monkeypatch.setattr(server.service.measures, "_from_database", counted)

        async def ready():
            return True

        for _ in range(3):
            await server.service.measures.page(ready)
    assert asked == [1]
