"""Who knows identity keys, rosters, contexts and the public ledger follows no device from cohort to
cohort; nobody is left out of a record, doubled, or replaced unseen by itself.

The weakened builds name devices by their identity key, as records of version 1 do, or by a hash of
it with a salt that is public. Every neighbour learns identity keys from its rosters, so it can try
them all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import rfc8785

from aggregator.cohorts import charging
from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import members_of
from dp.ledger.records import ReleaseEntry, identity_digest
from secagg import server
from secagg.client import machine
from secagg.context import pseudonym
from secagg.hashing import digest
from secagg.keys import identity_public_key
from secagg.secret import Secret
from secagg.simulation import (
    Aggregator,
    Drop,
    Hooks,
    LocalDevices,
    SimulatedTask,
    drive,
    make_devices,
    make_task,
)
from tests.kits.device import journal_in
from tests.kits.tasks import ORIGIN, VERIFIER, served

CLIENTS = 5
INPUTS = list(np.eye(CLIENTS, dtype=np.int64))
Name = Callable[[Secret, bytes], bytes]


def by_identity(identity: Secret, ctx: bytes) -> bytes:
    return identity_digest(identity_public_key(identity))


def by_public_salt(identity: Secret, ctx: bytes) -> bytes:
    return hmac.digest(ctx, identity_public_key(identity), "sha256")


def task() -> SimulatedTask:
    return make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=3)


def charged(
    task: SimulatedTask, cohort: bytes, drops: dict[int, Drop] | None = None
) -> ReleaseEntry:
    """What the service would record of a real exchange of these devices."""
    pool = LocalDevices(make_devices(task, INPUTS, drops=drops))
    aggregator = Aggregator(task, pool.advertise(), cohort=cohort, attempt=0, hooks=Hooks())
    state = drive(aggregator, pool).state
    assert isinstance(state, server.Released)
    entry = charging.entry_of(state, 1, 0.0, None, None)
    survivors = {state.pseudonyms[index] for index in state.survivors}
    return msgspec.structs.replace(
        entry,
        outcome="released",
        survivors=len(survivors),
        contributors=tuple(sorted(survivors)),
        not_in_sum=tuple(sorted(set(entry.not_in_sum) - survivors)),
    )


def listed(entry: ReleaseEntry) -> set[bytes]:
    return {*entry.contributors, *entry.not_in_sum}


def guesses(identity_key: bytes, entry: ReleaseEntry) -> set[bytes]:
    """Every name that a former neighbour can make of what it knows, hashed in each usual way."""
    known = (identity_key, entry.ctx, entry.cohort, entry.roster_digest, b"pseudonym", b"identity")
    made = {identity_digest(identity_key)}
    for first in known:
        made |= {hashlib.sha256(first).digest(), digest("pseudonym", first)}
        for second in known:
            made |= {
                hashlib.sha256(first + second).digest(),
                hmac.digest(first, second, "sha256"),
                digest("pseudonym", first, second),
                digest("identity", first, second),
                pseudonym(Secret(first.ljust(32)[:32]), second),
            }
    return made


@pytest.mark.parametrize(
    ("name", "followed"), [(pseudonym, False), (by_identity, True), (by_public_salt, True)]
)
def test_a_former_neighbour_does_not_find_a_device_in_another_cohort(
    monkeypatch: pytest.MonkeyPatch, name: Name, followed: bool
) -> None:
    monkeypatch.setattr(machine, "pseudonym", name)
    devices = task()
    first, second = (charged(devices, cohort) for cohort in (b"a" * 32, b"b" * 32))
    keys = [config.certificate.identity_key for config in devices.devices]
    assert len(listed(first)) == len(listed(second)) == CLIENTS
    found = [key for key in keys if guesses(key, second) & listed(second)]
    assert found == (keys if followed else [])
    # Nor does a name whose owner was learned in the first cohort show it in the second.
    assert bool(listed(first) & listed(second)) == (name is by_identity)


def test_a_device_finds_itself_and_nobody_else_in_every_cohort() -> None:
    devices = task()
    entries = [charged(devices, cohort) for cohort in (b"a" * 32, b"b" * 32)]
    for entry in entries:
        own = [pseudonym(config.identity, entry.ctx) for config in devices.devices]
        assert sorted(own) == sorted(listed(entry))
    stranger = Secret(b"s" * 32)
    assert not any(pseudonym(stranger, entry.ctx) in listed(entry) for entry in entries)


def test_who_dropped_after_the_masking_set_is_listed_and_not_marked() -> None:
    devices = task()
    entry = charged(devices, b"a" * 32, {1: Drop.UPLOAD})
    dropped = pseudonym(devices.devices[1].identity, entry.ctx)
    assert entry.not_in_sum == (dropped,)
    assert dropped not in entry.contributors
    assert (entry.masking_set_size, len(entry.contributors)) == (CLIENTS, CLIENTS - 1)


def test_a_charge_without_a_release_lists_the_masking_set_and_marks_nobody() -> None:
    devices = task()
    pool = LocalDevices(make_devices(devices, INPUTS))
    aggregator = Aggregator(devices, pool.advertise(), cohort=b"a" * 32, attempt=0, hooks=Hooks())
    state = drive(aggregator, pool).state
    entry = charging.entry_of(state, 1, 0.0, None, None)
    assert (entry.outcome, entry.contributors, len(entry.not_in_sum)) == ("charged", (), CLIENTS)


def test_a_cohort_that_an_older_software_checked_is_recorded_as_it_was() -> None:
    """Its devices said no pseudonyms; the record is of version 1, which names those in the sum."""
    devices = task()
    pool = LocalDevices(make_devices(devices, INPUTS))
    aggregator = Aggregator(devices, pool.advertise(), cohort=b"a" * 32, attempt=0, hooks=Hooks())
    state = dataclasses.replace(drive(aggregator, pool).state, pseudonyms={})
    entry = charging.entry_of(state, 1, 0.0, None, None)
    assert (entry.attempt, entry.contributors, entry.not_in_sum) == (None, (), ())


def test_the_order_of_a_record_is_not_that_of_the_roster() -> None:
    """Else a former neighbour would read off who is who from the roster's order of identities."""
    devices = task()
    orders = set()
    for cohort in range(4):
        entry = charged(devices, bytes([cohort]) * 32)
        own = {
            pseudonym(config.identity, entry.ctx): config.certificate.identity_key
            for config in devices.devices
        }
        record = json.loads(rfc8785.dumps({"names": sorted(n.hex() for n in listed(entry))}))
        orders.add(tuple(own[bytes.fromhex(name)] for name in record["names"]))
    assert len(orders) > 1


# ---- the device's own look at the record

SEED = Secret(b"d" * 32)
DEVICE = identity_public_key(SEED)
CTX = b"x" * 32
OWN = pseudonym(SEED, CTX)
OTHERS = [bytes([n]) * 32 for n in (1, 2, 3)]
CLAIM: dict[str, Any] = {
    "task": "stats",
    "ctx": CTX,
    "manifest_digest": b"m" * 32,
    "identity_key": DEVICE,
}


def record(contributors: list[bytes], rest: list[bytes], **changes: object) -> bytes:
    fields = {
        "type": "release",
        "version": 2,
        "outcome": "released",
        "task": "stats",
        "release": 1,
        "ctx": CTX.hex(),
        "manifest_digest": (b"m" * 32).hex(),
        "contributors": [name.hex() for name in contributors],
        "not_in_sum": [name.hex() for name in rest],
    }
    return rfc8785.dumps({**fields, **changes})


class Log:
    def __init__(self, entry: bytes) -> None:
        self.files = served(LedgerBuilder(ORIGIN, [entry]))

    async def ledger(self, path: str) -> bytes | None:
        return self.files.get(path)


async def at_once(seconds: float) -> None:
    pass


def watch(folder: Path, entry: bytes) -> LedgerWatch:
    return LedgerWatch(  # type: ignore[arg-type]
        Log(entry), journal_in(folder), VERIFIER, at_once, None, SEED
    )


@pytest.mark.parametrize(
    ("contributors", "rest", "believed"),
    [
        ([OWN, *OTHERS], [], True),
        ([OWN], OTHERS, True),
        (OTHERS, [], False),  # left out
        (OTHERS, [OWN], False),  # in the sum, and not marked
        ([OWN, OWN, *OTHERS], [], False),  # doubled
        ([OWN, *OTHERS], [OWN], False),  # doubled, once with a mark
        ([identity_digest(DEVICE), *OTHERS], [], False),  # by its identity
        ([pseudonym(SEED, b"y" * 32), *OTHERS], [], False),  # by another cohort's name
    ],
)
async def test_a_device_in_the_sum_is_listed_once_and_marked_or_it_refuses_the_record(
    tmp_path: Path, contributors: list[bytes], rest: list[bytes], believed: bool
) -> None:
    asked = watch(tmp_path, record(contributors, rest)).verify_release(0, release=1, **CLAIM)
    if believed:
        assert (await asked)["release"] == 1
        return
    with pytest.raises(LedgerRefusal) as caught:
        await asked
    assert caught.value.reason == "contributor-missing"


@pytest.mark.parametrize(
    ("contributors", "rest", "changes", "held"),
    [
        ([OWN, *OTHERS], [], {}, True),
        (OTHERS, [OWN], {}, False),
        ([], [OWN, *OTHERS], {"outcome": "charged"}, False),
        ([OWN], OTHERS, {"outcome": "charged"}, False),
        (OTHERS, [], {}, None),
        ([], OTHERS, {"outcome": "charged"}, None),
        ([], [OWN, OWN], {"outcome": "charged"}, None),
    ],
)
async def test_a_device_that_masked_is_listed_however_the_cohort_ended(
    tmp_path: Path,
    contributors: list[bytes],
    rest: list[bytes],
    changes: dict[str, object],
    held: bool | None,
) -> None:
    asked = watch(tmp_path, record(contributors, rest, **changes)).holds(**CLAIM, since=0)
    if held is not None:
        assert await asked == (held, 1)
        return
    with pytest.raises(LedgerRefusal) as caught:
        await asked
    assert caught.value.reason == "contributor-missing"


async def test_others_cannot_disprove_a_device_that_was_not_there(tmp_path: Path) -> None:
    """Said in the threat model: a device vouches for itself alone."""
    invented = hashlib.sha256(b"nobody").digest()
    entry = record([OWN, *OTHERS, invented], [])
    assert invented in members_of(json.loads(entry), {}.get).contributors
    assert await watch(tmp_path, entry).verify_release(0, release=1, **CLAIM)
