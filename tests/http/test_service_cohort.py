"""Whole cohorts over HTTP: the sum is exact, with drop-outs and retries too."""

import asyncio
import hashlib
import sqlite3
import sys

import aiohttp
import msgspec
import numpy as np
import pytest

from dp.accounting.statements import lines
from dp.contracts import BudgetSpec
from dp.ledger.verification import verify_ledger
from secagg import client, messages, ring
from secagg.keys import signing_key
from tests.kits.scraping import admin, scrape
from tests.kits.service import (
    DEADLINE_S,
    TASK,
    Device,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)


async def audit(server):
    await server.view()  # what it shows is in the folder
    folder = server.settings.data_dir / "ledger"

    def read(path):
        file = folder / path
        return file.read_bytes() if file.is_file() else None

    return verify_ledger(read, server.service.ledger.verifier)


async def test_the_released_sum_is_the_sum_of_the_listed_contributors(tmp_path):
    async with served(tmp_path, spec()) as server:
        assert finished(await run(devices(server, 4))) == 4
        view = await server.view()
        assert (await current_sum(server))[:6].tolist() == [1, 1, 1, 1, 0, 0]
        (release,) = view["releases"]
        assert release["outcome"] == "released"
        assert (release["cohort_size"], release["survivors"], release["dropped"]) == (4, 4, 0)
        assert release["sum_norm"] == pytest.approx(2.0)
        assert view["version"] == 1
        assert view["cohort"] is None
        result = await audit(server)
        assert result.verified
        assert (result.tree_size, result.releases) == (2, 1)


@pytest.mark.parametrize(
    ("vanishes", "in_sum"),
    [
        ("deals", False),
        ("ready", False),
        ("header", False),
        ("vector", False),
        ("half-vector", False),
        ("confirmation", True),
        ("unmask", True),
    ],
)
async def test_a_device_that_vanishes_costs_only_itself(tmp_path, vanishes, in_sum):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4, chunk=40)
        fleet[1].stop_before = vanishes
        assert finished(await run(fleet)) == 3
        assert (await current_sum(server))[:5].tolist() == [1, int(in_sum), 1, 1, 0]
        (release,) = (await server.view())["releases"]
        assert (release["survivors"], release["dropped"]) == (3 + in_sum, 1 - in_sum)
        assert (await audit(server)).verified


async def test_too_few_survivors_abort_without_a_sum_and_are_charged(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        fleet[0].stop_before = fleet[1].stop_before = "vector"
        outcomes = await run(fleet)
        reasons = {o.reason for o in outcomes if isinstance(o, client.Failed)}
        assert reasons, outcomes
        view = await server.view()
        (charged,) = view["releases"]
        assert (charged["outcome"], charged["reason"]) == ("charged", "too-few-vectors")
        assert (charged["survivors"], charged["sum_norm"]) == (0, None)
        assert (view["version"], view["charges"], view["aborted"]) == (0, 1, 0)
        assert not (await current_sum(server)).any()
        assert ((await audit(server)).releases, (await audit(server)).charged) == (0, 1)


async def test_an_abort_before_the_masking_set_costs_nothing(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        fleet[0].stop_before = fleet[1].stop_before = "deals"
        await run(fleet)
        view = await server.view()
        assert (view["releases"], view["charges"], view["aborted"]) == ([], 0, 1)
        assert finished(await run(devices(server, 4))) == 4  # and the task goes on


async def test_everything_sent_twice_counts_once(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        twice = fleet[0]
        post, upload = twice.post, twice.upload

        async def post_twice(message):
            assert (await post(message), await post(message)) == (204, 204)

        async def upload_twice(payload):
            path = f"{twice.session}/vector?offset=0"
            put = [twice.request("PUT", path, data=payload) for _ in range(3)]
            statuses = {status for status, _ in await asyncio.gather(*put)}
            assert 200 in statuses
            await upload(payload)

        twice.post, twice.upload = post_twice, upload_twice
        assert finished(await run(fleet)) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_one_device_counts_once_in_a_cohort_however_often_it_reports_in(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        again = Device(server, 0, one_hot(0), seed=fleet[0].seed, stop_before="deals")
        task = asyncio.create_task(again.run())  # its advert is replaced by the next one
        await server.until(lambda view: view["waiting"] == 1)
        outcomes = await run(fleet)
        assert finished(outcomes) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]
        task.cancel()


async def test_the_task_stops_when_its_releases_are_spent_and_the_offer_says_so(tmp_path):
    task = spec(budget=BudgetSpec(max_epsilon=None, releases_max=2))
    async with served(tmp_path, task) as server:
        for _ in range(2):
            assert finished(await run(devices(server, 4))) == 4
        view = await server.view()
        assert (view["state"], view["charges"], view["version"]) == ("finished", 2, 2)
        late = Device(server, 0, one_hot(0))
        with pytest.raises(AssertionError, match="task-finished"):
            await late.run()
        status, problem = await server.operator("POST", f"/tasks/{task.task}/resume")
        assert (status, problem["reason"]) == (409, "task-finished")


async def test_a_cohort_of_size_min_forms_when_the_report_time_has_passed(tmp_path):
    cohort = type(spec().cohort)(size_min=3, size_max=6, survivors_min=3)
    async with served(tmp_path, spec(cohort=cohort)) as server:
        running = asyncio.create_task(run(devices(server, 3)))
        view = await server.until(lambda view: view["waiting"] == 3)
        assert view["cohort"] is None
        server.ahead_s += DEADLINE_S
        assert finished(await running) == 3
        assert (await current_sum(server))[:4].tolist() == [1, 1, 1, 0]


async def test_a_device_left_over_is_told_that_its_advert_is_stale(tmp_path):
    async with served(tmp_path, spec()) as server:
        extra = Device(server, 5, one_hot(5))
        fleet = devices(server, 4)
        waiting = []

        async def last_of_all(name):
            if name == "deals" and not waiting:
                waiting.append(asyncio.create_task(extra.run()))
                await server.until(lambda view: view["waiting"] == 1)

        fleet[0].hold = last_of_all
        assert finished(await run(fleet)) == 4
        with pytest.raises(AssertionError, match="session-stale"):
            await waiting[0]


async def test_paused_tasks_take_no_adverts_and_open_again(tmp_path):
    async with served(tmp_path, spec()) as server:
        await server.operator("POST", "/tasks/statistics/pause")
        with pytest.raises(AssertionError, match="task-paused"):
            await Device(server, 0, one_hot(0)).run()
        await server.operator("POST", "/tasks/statistics/resume")
        assert finished(await run(devices(server, 4))) == 4
        assert (await audit(server)).tree_size == 4  # task, paused, resumed, release


async def test_a_wrong_vector_under_a_valid_header_makes_the_release_refused(tmp_path):
    """Nobody can name its author, but the check coordinates show it."""
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        liar = fleet[3]
        perform = liar.perform

        async def perform_wrong(effect):
            if isinstance(effect, client.Upload):
                effect = one_more_everywhere(liar, effect)
            await perform(effect)

        liar.perform = perform_wrong
        assert finished(await run(fleet)) == 0
        (charged,) = (await server.view())["releases"]
        assert (charged["outcome"], charged["reason"]) == ("charged", "check-coordinates")
        assert not (await current_sum(server)).any()


def one_more_everywhere(device, upload):
    """The upload with 1 added to every coordinate, under a header that its author signs."""
    encoding = device.config.manifest.encoding
    length = ring.payload_length(device.config.manifest.data_length, encoding.slice_length)
    lanes = ring.unpack(upload.payload, length, encoding.ring_bits)
    ring.add_into(lanes, np.ones_like(lanes), encoding.ring_bits)
    payload = ring.pack(lanes, encoding.ring_bits)
    header, _ = messages.peek(upload.header, messages.MaskedInput)
    changed = msgspec.structs.replace(header, vector_digest=hashlib.sha256(payload).digest())
    return client.Upload(messages.sign(changed, header.ctx, signing_key(device.seed)), payload)


async def test_a_device_that_was_away_hears_how_its_cohort_ended(tmp_path):
    """Rosters and inboxes are gone by then; what the device still needs is not."""
    cohort = type(spec().cohort)(size_min=6, size_max=6, survivors_min=4)
    async with served(tmp_path, spec(cohort=cohort)) as server:
        fleet = devices(server, 6)
        shared, confirmed = fleet[0], fleet[1]
        shared.stop_before, confirmed.stop_before = "ready", "unmask"
        assert finished(await run(fleet)) == 4
        await server.until(lambda _: not mail_numbers(server, 1))
        async with aiohttp.ClientSession() as shared.http:
            await shared.listen()
        assert shared.outcome.reason
        async with aiohttp.ClientSession() as confirmed.http:
            await confirmed.listen()
        assert isinstance(confirmed.outcome, client.Finished)
        never_fetched = fleet[2]
        never_fetched.after = 0
        async with aiohttp.ClientSession() as never_fetched.http:
            with pytest.raises(AssertionError, match="session-stale"):
                await never_fetched.listen()
        assert set(mail_numbers(server)) >= {3, 4}


def mail_numbers(server, only=None):
    with sqlite3.connect(server.settings.data_dir / "secagg.db") as database:
        found = [row[0] for row in database.execute("SELECT number FROM mail")]
    return [number for number in found if only in (None, number)]


async def test_a_clock_that_is_set_back_dates_no_record_before_the_last(tmp_path):
    async with served(tmp_path, spec()) as server:
        assert finished(await run(devices(server, 4))) == 4
        server.ahead_s = -200.0
        assert finished(await run(devices(server, 4))) == 4
        result = await audit(server)
        assert result.verified, result.problems
        first, second = (release.entry.released_at for release in result.tasks[0].releases)
        assert first == second
        views = (await server.view())["releases"]
        assert views[0]["released_at"] == views[1]["released_at"]


async def test_the_privacy_statements_of_a_release_are_computed_once(tmp_path, monkeypatch):
    """The record, the operator's row and the metric all say what was computed for the release."""
    asked = []

    def counted(manifest, releases, **options):
        asked.append(len(releases))
        return lines(manifest, releases, **options)

    async with served(tmp_path, spec(device_noise_multiplier=2.0)) as server:
        for name, module in tuple(sys.modules.items()):
            if name.startswith(("aggregator.", "dp.")) and vars(module).get("lines") is lines:
                monkeypatch.setattr(module, "lines", counted)
        for _ in range(2):
            assert finished(await run(devices(server, 4))) == 4
            view = await server.until(lambda view: view["cohort"] is None)
            async with admin(server) as url:
                found = await scrape(url)
            spent = found.value("secagg_epsilon", task=TASK, unit="device")
            assert spent == view["releases"][-1]["epsilon"]
        assert asked == [1, 2]
        monkeypatch.undo()
        result = await audit(server)
        assert result.verified, result.problems
        assert found.value("secagg_charges", task=TASK) == 2
