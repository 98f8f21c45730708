"""Devices of several partners in one task: who is put beside whom, and what a refusal costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nacl.signing import SigningKey

from aggregator.cohorts import refusals
from aggregator.cohorts.choosing import ANYBODY
from aggregator.cohorts.janitor import Janitor
from dp.contracts import CohortSpec
from secagg import messages
from secagg.manifest import decode_manifest
from secagg.secret import Secret
from secagg.server import Refused
from tests.kits.service import (
    DEADLINE_S,
    PARTNER,
    QUIET_S,
    TASK,
    Device,
    finished,
    one_hot,
    served,
    spec,
)

OTHER = Secret(os.urandom(32))
P, Q = (bytes(SigningKey(partner.reveal()).verify_key) for partner in (PARTNER, OTHER))
BOTH = frozenset({P, Q})


@dataclass
class Partnered(Device):
    """``really``: the partners that it trusts when the roster comes, whatever its advert said."""

    really: frozenset[bytes] | None = None

    async def report_in(self) -> None:
        await super().report_in()
        if self.really is not None:
            self.config = replace(self.config, partner_keys=self.really)

    def refusals(self) -> list[messages.Refusal]:
        said = [messages.peek(sent, *messages.KINDS)[0] for sent in self.sent]
        return [message for message in said if isinstance(message, messages.Refusal)]


def of_p(server: Any, number: int, *trusted: bytes, **changes: Any) -> Partnered:
    found = frozenset(trusted or (P,))
    return Partnered(server, number, one_hot(number), trusted=found, **changes)


def of_q(server: Any, number: int, *trusted: bytes) -> Partnered:
    found = frozenset(trusted or (Q,))
    return Partnered(server, number, one_hot(number), trusted=found, partner=OTHER)


@contextlib.asynccontextmanager
async def two_partners(folder: Any, **changes: Any):
    """A task of two partners; cohorts of 3 or 4, at once if there are 4."""
    cohort = CohortSpec(size_min=3, size_max=4, survivors_min=3)
    async with served(folder) as server:
        for name, key in (("p", P), ("q", Q)):
            body = {"name": name, "key": key}
            assert (await server.operator("POST", "/partners", body))[0] == 200
        task = spec(cohort=cohort, **changes)
        assert (await server.operator("POST", "/tasks", task))[0] == 200
        yield server


async def one_release(server: Any, fleet: list[Partnered], waits: int = 0) -> list[Any]:
    """Run devices until one release is made; where fewer than ``size_max`` fit together, once
    ``waits`` of them wait the time to report in passes. Outcomes; None: still waiting."""
    version = (await server.view())["version"]
    for device in fleet:
        device.after, device.outcome, device.sent = 0, None, []
    tasks = [asyncio.create_task(device.run()) for device in fleet]
    if waits:
        await server.until(lambda view: view["waiting"] == waits)
        server.ahead_s += DEADLINE_S
    await server.until(lambda view: view["version"] > version)
    end = asyncio.get_running_loop().time() + QUIET_S
    while sum(d.outcome is not None for d in fleet) < 3:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [device.outcome for device in fleet]


async def test_a_device_of_a_partner_that_nobody_else_trusts_stops_nobody(tmp_path):
    async with two_partners(tmp_path) as server:
        fleet = [of_q(server, 0), *(of_p(server, number) for number in (1, 2, 3))]
        outcomes = await one_release(server, fleet, waits=4)
        assert outcomes[0] is None
        assert finished(outcomes) == 3
        view = await server.view()
        assert (view["aborted"], view["refusals"]) == (0, [])


async def test_the_operator_is_told_why_enough_devices_make_no_cohort(tmp_path):
    async with two_partners(tmp_path) as server:
        fleet = [*(of_p(server, n) for n in (0, 1)), *(of_q(server, n) for n in (2, 3))]
        tasks = [asyncio.create_task(device.run()) for device in fleet]
        view = await server.until(lambda view: view["waiting"] == 4)
        assert view["why_waiting"].startswith("A cohort needs 3 devices; 4 wait. Too few of them ")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_devices_that_trust_both_partners_make_one_cohort(tmp_path):
    async with two_partners(tmp_path) as server:
        fleet = [of_p(server, number, P, Q) for number in (0, 1)]
        fleet += [of_q(server, number, P, Q) for number in (2, 3)]
        assert finished(await one_release(server, fleet)) == 4
        assert (await server.view())["releases"][0]["survivors"] == 4


async def test_trust_that_is_not_returned_makes_no_cohort(tmp_path):
    """Two devices of p trust q as well, and q's trust q alone: then it is three of q."""
    async with two_partners(tmp_path) as server:
        fleet = [of_p(server, number, P, Q) for number in (0, 1)]
        fleet += [of_q(server, number) for number in (2, 3, 4)]
        outcomes = await one_release(server, fleet, waits=5)
        assert [outcome is None for outcome in outcomes] == [True, True, False, False, False]
        assert (await server.view())["refusals"] == []


async def test_a_refusal_costs_its_sender_alone_and_the_same_clash_is_not_formed_again(tmp_path):
    """Deadlines of a minute: the others go on at once all the same."""
    async with two_partners(tmp_path) as server:
        lying = of_p(server, 0, P, Q, really=frozenset({P}))
        fleet = [lying, of_p(server, 1, P, Q), of_p(server, 2, P, Q), of_q(server, 3, P, Q)]
        outcomes = await one_release(server, fleet)
        assert server.ahead_s == 0
        assert outcomes[0].reason == "partner-unknown"
        assert finished(outcomes) == 3
        (said,) = lying.refusals()
        assert said.reason == "partner-unknown"
        (shown,) = (await server.view())["refusals"]
        identities = {d.certificate.identity_key.hex(): d.number for d in fleet}
        assert (identities[shown["identity"]], identities[shown["target"]]) == (0, 3)
        assert (shown["reason"], shown["times"]) == ("partner-unknown", 1)
        assert shown["expires_at"] > shown["refused_at"]

        again = await one_release(server, fleet, waits=4)
        assert [outcome is None for outcome in again] == [True, False, False, False]
        assert lying.refusals() == []
        view = await server.view()
        assert view["refusals"] == [shown]
        assert view["aborted"] == 0
        counted = server.service.core.metrics.roster_refusals.labels(
            "statistics", "partner-unknown"
        )
        assert counted._value.get() == 1
        page = server.service.core.metrics.render().decode()
        assert (
            'secagg_roster_refusals_total{reason="partner-unknown",task="statistics"} 1.0' in page
        )


class Cohort:
    """As much of a cohort's state as a refusal needs: twenty devices, named by their index."""

    facts: Any

    def __init__(self) -> None:
        self.facts = self

    def identity(self, index: int) -> bytes:
        return bytes([index]) * 32


def name(index: int) -> str:
    return Cohort().identity(index).hex()


async def kept(server: Any, *said: tuple[int, int], at: float = 0.0, now: float = 1.0):
    """Clashes that hold ``now``, after refusals (who, because of whom) at a time each."""
    core = server.service.core
    async with core.database.write() as connection:
        for index, entry in said:
            refused = Refused(index, "partner-unknown", entry)
            await refusals.keep(connection, TASK, Cohort(), refused, at)
        return await refusals.clashes_of(connection, TASK, now)


async def test_a_clash_holds_for_an_hour(tmp_path):
    async with two_partners(tmp_path) as server:
        hashed = server.service.core.database.cells.name
        clash = (hashed(name(1)), hashed(name(2)))
        assert await kept(server, (1, 2), now=3_599.0) == {clash}
        assert await kept(server, now=3_600.0) == frozenset()
        assert await kept(server, (1, 2), at=3_600.0, now=3_601.0) == {clash}
        assert (await server.view())["refusals"][0]["times"] == 2
        await Janitor(server.service.core).sweep()
        assert (await server.view())["refusals"] == []


async def test_who_objects_to_many_objects_to_rosters_as_such(tmp_path):
    async with two_partners(tmp_path) as server:
        said = [(1, other) for other in range(2, 14)]
        clashes = await kept(server, *said, (2, 3))
        assert len(clashes) == 8 + 1 + 1
        hashed = server.service.core.database.cells.name
        assert (hashed(name(1)), ANYBODY) in clashes
        assert (hashed(name(2)), hashed(name(3))) in clashes


@pytest.mark.parametrize("word", ["", "Reason", "a b", "x" * 65, "grund\n"])
async def test_a_reason_is_a_short_word(tmp_path, word):
    async with two_partners(tmp_path) as server:
        device = of_p(server, 0, P, Q, really=frozenset({P}))
        fleet = [device, of_p(server, 1, P, Q), of_p(server, 2, P, Q), of_q(server, 3, P, Q)]
        answers = []

        async def post(message: bytes) -> int:
            refusal, _ = messages.peek(message, messages.Refusal)
            key = SigningKey(device.seed.reveal())
            worded = messages.Refusal(refusal.ctx, refusal.index, word, refusal.entry)
            answers.append(await Partnered.post(device, messages.sign(worded, refusal.ctx, key)))
            return await Partnered.post(device, message)

        device.post = post
        assert finished(await one_release(server, fleet)) == 3
        assert answers == [400]


@pytest.mark.parametrize(
    ("named", "listed"),
    [
        ((), {P, Q}),
        (("p",), {P}),
        ((Q.hex(),), {Q}),
        (("q", "p"), {P, Q}),
        (("p", P.hex()), {P}),
    ],
)
async def test_a_task_file_names_its_partners(tmp_path, named, listed):
    async with two_partners(tmp_path) as server:
        task = spec(task="named", partners=named)
        assert (await server.operator("POST", "/tasks", task))[0] == 200
        made = await server.service.tasks.get("named")
        assert set(decode_manifest(made.encoded).partner_keys) == listed


@pytest.mark.parametrize("name", ["r", "", "P", "00" * 32])
async def test_a_task_that_names_somebody_else_is_refused(tmp_path, name):
    async with two_partners(tmp_path) as server:
        status, problem = await server.operator("POST", "/tasks", spec(task="n", partners=(name,)))
        assert (status, problem["reason"]) == (422, "partner-unknown")
