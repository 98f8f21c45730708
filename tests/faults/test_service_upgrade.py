"""Every cohort ends with its charge: one whose decisions fall together, one whose log is old."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from nacl.signing import SigningKey

from aggregator.cohorts.charging import Charging
from aggregator.cohorts.ending import Ending
from aggregator.cohorts.log import RECEIVED, decode_event, encode_event
from aggregator.store.schema import cohort_events, strikes
from dp.errors import BudgetError
from secagg import client, limits
from secagg.errors import SecaggError
from secagg.messages import KINDS, Ready, Signed, peek, signature_input
from secagg.server import Cancel, Received
from tests.kits.sealed import replace_event
from tests.kits.service import Device, Gone, Served, devices, finished, one_hot, run, served, spec
from tests.kits.spoilers import rows
from tests.kits.upgrades import audited, first_version, goes_on, migrated


async def halted(server: Served, *points: str) -> list[Device]:
    """Devices, each of which vanished at its point."""
    fleet = devices(server, 4)
    for device, point in zip(fleet, points, strict=True):
        device.stop_before = point
    await asyncio.gather(*(device.run() for device in fleet))
    return fleet


# -- decisions that fall together ----------------------------------------------------------


class Holding(Device):
    """Keeps its word that it is ready."""

    async def post(self, message: bytes) -> int:
        try:
            peek(message, Ready)
        except SecaggError:
            return await super().post(message)
        self.kept = message
        raise Gone


async def before_the_last_word(server: Served) -> tuple[Any, Received]:
    """An open cohort in which one device's word is missing before S is fixed, and that word."""
    last = Holding(server, 3, one_hot(3))
    fleet = devices(server, 3)
    for device in fleet:
        device.stop_before = "header"
    running = [asyncio.create_task(device.run()) for device in (*fleet, last)]
    await running[-1]
    (live,) = server.service.driver.live.values()
    cohort = live.cohort
    await server.until(lambda _: len(cohort.state.answered) == 3)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    (index,) = set(range(4)) - cohort.state.answered
    return cohort, Received(index, last.kept, server.clock())


@pytest.mark.parametrize("together", [True, False], ids=["one submission", "two at once"])
async def test_a_cohort_that_fixes_its_masking_set_and_ends_in_one_commit_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Its devices are told S, so they may have charged themselves: the ledger must say so."""
    reserved = []
    real = Charging.reserve

    async def seen(self: Charging, connection: Any, cohort: Any) -> None:
        await real(self, connection, cohort)
        reserved.append(cohort.id)

    monkeypatch.setattr(Charging, "reserve", seen)
    async with served(tmp_path, spec()) as server:
        cohort, word = await before_the_last_word(server)
        stop = Cancel("budget-exhausted", server.clock())
        if together:
            await cohort.submit(word, stop)
        else:
            await asyncio.gather(cohort.submit(word), cohort.submit(stop))
        view = await server.until(lambda view: view["cohort"] is None)
        assert reserved == [cohort.id]
        assert (view["charges"], view["releases"], view["aborted"]) == (0, [], 1)
        (given_back,) = (await audited(server)).policies
        assert given_back["action"] == "charge-given-back"
        assert cohort.id in given_back["detail"]


async def test_an_end_that_fails_beside_an_impossible_decision_is_tried_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise BudgetError("budget-exhausted", "nothing is left")

    monkeypatch.setattr(Charging, "reserve", refuse)
    async with served(tmp_path, spec()) as server:
        cohort, word = await before_the_last_word(server)
        stop = Cancel("budget-exhausted", server.clock())
        await asyncio.gather(cohort.submit(word), cohort.submit(stop), return_exceptions=True)
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["releases"], view["aborted"]) == (0, [], 1)


# -- a log that does not replay --------------------------------------------------------------


def as_before(payload: bytes, device: Device) -> bytes:
    """A device's word that it is ready, as devices without pseudonyms sent it."""
    event = decode_event(RECEIVED, payload)
    assert isinstance(event, Received)
    word, _ = peek(event.message, Ready)
    number, _ = KINDS[Ready]
    frame = bytes((limits.PROTOCOL_VERSION, number)) + msgspec.msgpack.encode(
        (word.ctx, word.index)
    )
    key = SigningKey(device.seed.reveal())
    signature = key.sign(signature_input(Ready, word.ctx, frame)).signature
    signed = msgspec.msgpack.encode(Signed(frame, bytes(key.verify_key), signature))
    return encode_event(Received(event.index, signed, event.now_s))[1]


async def age(server: Served, fleet: list[Device]) -> None:
    """Make the log of the open cohort one that older software wrote."""
    by_key = {bytes(SigningKey(d.seed.reveal()).verify_key): d for d in fleet}
    aged = 0
    for row in await rows(server, cohort_events):
        if row.kind != RECEIVED:
            continue
        event = decode_event(row.kind, row.payload)
        assert isinstance(event, Received)
        try:
            _, envelope = peek(event.message, Ready)
        except SecaggError:
            continue
        aged_payload = as_before(row.payload, by_key[envelope.signer])
        await replace_event(server, row.cohort, row.seq, aged_payload)
        aged += 1
    assert aged


async def unreadable_opening(server: Served, _: list[Device]) -> None:
    for row in await rows(server, cohort_events):
        if row.seq == 0:
            await replace_event(server, row.cohort, row.seq, b"\xc1")


async def swapped_cells(server: Served, _: list[Device]) -> None:
    """As who can write into the database might: two cells trade places."""
    first, second, *_ = await server.service.core.database.rows(cohort_events.select())
    async with server.service.core.database.write() as connection:
        for row, payload in ((first, second.payload), (second, first.payload)):
            await connection.execute(
                sa.update(cohort_events)
                .where(cohort_events.c.cohort == row.cohort, cohort_events.c.seq == row.seq)
                .values(payload=payload)
            )


@pytest.mark.parametrize("spoil", [age, unreadable_opening, swapped_cells])
async def test_a_cohort_whose_log_does_not_replay_ends_at_once_with_its_charge(
    tmp_path: Path, spoil: Any
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = await halted(server, "vector", "header", "header", "header")
        await spoil(server, fleet)
        await server.restart()
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], len(view["releases"])) == (1, 1)
        (release,) = (await audited(server)).releases
        entry = release.entry
        assert (entry.outcome, entry.fault, entry.cause) == ("charged", "service", "log-unreadable")
        assert (entry.cohort_size, entry.masking_set_size) == (4, 4)
        database = server.service.core.database
        assert await database.rows(strikes.select()) == []
        assert await database.rows(cohort_events.select()) == []
        assert finished(await run(devices(server, 4))) == 4  # the task goes on


async def test_its_charge_is_given_back_where_nobody_had_sent(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = await halted(server, "header", "header", "header", "header")
        assert (await server.view())["charges"] == 1
        await age(server, fleet)
        await server.restart()
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["releases"], view["aborted"]) == (0, [], 1)
        assert [p["action"] for p in (await audited(server)).policies] == ["charge-given-back"]


async def test_a_cohort_that_had_not_fixed_its_masking_set_costs_nothing_and_its_devices_hear(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet[1:]:
            device.stop_before = "deals"
        waiting = asyncio.create_task(fleet[0].run())
        await asyncio.gather(*(device.run() for device in fleet[1:]))
        (live,) = server.service.driver.live.values()
        await server.until(lambda _: live.cohort.state.dealt)
        await unreadable_opening(server, fleet)
        await server.restart()
        outcome = await asyncio.wait_for(waiting, 20.0)
        assert isinstance(outcome, client.Failed)
        assert outcome.reason == "cohort-aborted"
        view = await server.view()
        assert (view["cohort"], view["charges"], view["releases"]) == (None, 0, [])
        assert not (await audited(server)).policies


async def test_a_cohort_that_cannot_be_taken_up_keeps_the_service_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = await halted(server, "vector", "header", "header", "header")
        await age(server, fleet)
        with monkeypatch.context() as patch:

            async def fails(*_: Any) -> None:
                raise OSError("the disk is full")

            patch.setattr(Ending, "abandon", fails)
            await server.restart()
            await server.set_up(spec(task="another"))
            others = devices(server, 4, task="another")
            assert finished(await asyncio.gather(*(device.run() for device in others))) == 4
        view = await server.until(lambda view: view["cohort"] is None)  # tried again
        assert view["charges"] == 1


# -- data of the first version -----------------------------------------------------------------


@pytest.mark.parametrize("revision", ["0001", "0002"])
async def test_a_service_goes_on_with_the_data_of_the_first_version(
    tmp_path: Path, revision: str
) -> None:
    folder = first_version(tmp_path)
    engine = sa.create_engine(f"sqlite:///{folder / 'secagg.db'}")
    with engine.begin() as connection:
        migrated(connection, revision)
    engine.dispose()
    async with served(folder) as server:
        await goes_on(server)
