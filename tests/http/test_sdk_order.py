"""What is on disk before what leaves: the charge before the vector, and whom the device trusts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from client_sdk import Event as Told
from client_sdk import LedgerRefusal
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.enrolment import new_partner_key
from client_sdk.rounds.session import Session
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from secagg.client import Event, VectorReady
from tests.kits.quadratics import Quadratic, quadratic_spec
from tests.kits.world import POLICY, TASK, Killed, OneHot, World, kill_at, plain_spec


async def test_the_charge_is_on_disk_before_the_vector_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that dies with its vector journalled sends it when it comes back, uncharged or not.

    So the charge, the contribution that it is for, and the model are there at that moment.
    """
    apply = Session.apply

    async def dying(session: Session, event: Event) -> None:
        await apply(session, event)
        if isinstance(event, VectorReady) and session.record.identity_key == victim:
            raise Killed

    monkeypatch.setattr(Session, "apply", dying)
    async with World(tmp_path, plain_spec(4)) as world:
        victim = world.bundle("d0").certificate.identity_key
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        monkeypatch.setattr(Session, "apply", apply)
        folder = tmp_path / "d0"
        journal = Journal(folder, open_storage_key(folder))
        record, account = journal.load_session(), DeviceAccount(journal, 1e-5)
        assert record is not None
        assert (folder / "vector").exists()
        assert account.charges(TASK) == 1
        assert account.served(record.contribution) == record.ctx
        assert account.given(record.model_digest) == record.ctx
        assert len((await world.device("d0").resume_async()).releases) == 1
        assert DeviceAccount(journal, 1e-5).charges(TASK) == 1
        await asyncio.gather(*others)


async def no(*_: object, **__: object) -> None:
    raise LedgerRefusal("model-not-in-ledger", "No record makes this model.")


@pytest.mark.parametrize(
    ("patched", "answer", "reason"),
    [
        (
            "client_sdk.accounts.device_account.DeviceAccount.served",
            lambda *_: b"o" * 32,
            "contribution-spent",
        ),
        (
            "client_sdk.accounts.device_account.DeviceAccount.given",
            lambda *_: b"o" * 32,
            "model-given",
        ),
        ("client_sdk.ledger.watch.LedgerWatch.verify_models", no, "model-not-in-ledger"),
    ],
)
async def test_what_may_not_be_given_is_refused_at_the_mask_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patched: str,
    answer: Callable[..., object],
    reason: str,
) -> None:
    """The look before training is not the last one: sessions are resumed, and offers were long ago.

    Nothing is charged then, and nothing leaves.
    """
    policy = dataclasses.replace(POLICY, repeat_without_noise=False)
    told: list[tuple[str, object]] = []

    def on_event(event: Told) -> None:
        told.append((event.kind, event.detail.get("reason")))
        if event.kind == "masking":
            monkeypatch.setattr(patched, answer)
        if event.kind == "aborted":
            raise Killed

    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        others = [
            asyncio.create_task(
                world.device(f"d{n}", policy=policy).run_async(Quadratic(n), task=TASK, rounds=1)
            )
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", on_event, policy=policy).run_async(
                Quadratic(0), task=TASK, rounds=1
            )
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert told[-1] == ("aborted", reason)
        assert "uploading" not in [kind for kind, _ in told]
        folder = tmp_path / "d0"
        account = DeviceAccount(Journal(folder, open_storage_key(folder)), 1e-5)
        assert account.charges(TASK) == 0
        assert not (folder / "vector").exists()


@pytest.mark.parametrize("others", [0, 1], ids=["its own partner", "another one too"])
async def test_the_session_trusts_whom_the_device_trusts(tmp_path: Path, others: int) -> None:
    """Not whom the manifest lists: an aggregator may register any partner."""
    async with World(tmp_path, plain_spec(4)) as world:
        own = world.bundle("d0").certificate.partner_key
        await world.post("/v1/operator/partners", {"name": "q", "key": new_partner_key().key})
        trusted = frozenset((own, *(bytes((n,)) * 32 for n in range(others))))
        policy = dataclasses.replace(POLICY, partner_keys=trusted)
        with pytest.raises(Killed):
            await world.device("d0", kill_at("reported"), policy=policy).run_async(
                OneHot(0), task=TASK, rounds=1
            )
        folder = tmp_path / "d0"
        journal = Journal(folder, open_storage_key(folder))
        session = Session.resume(journal, world.bundle("d0"), lambda: 0.0)
        assert session is not None
        assert session.config.partner_keys == trusted
