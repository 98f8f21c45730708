"""A session of an earlier process meets the present policy while nothing is charged for it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from client_sdk import Event, PrivacyPolicy
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.enrolment import new_partner_key
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from secagg.client import AwaitingVector, restore
from tests.kits.world import POLICY, TASK, Killed, NoContributor, OneHot, World, kill_at, plain_spec

BEFORE_THE_CHARGE = ["reported", "roster", "shared", "checked", "masking"]


def of(**changes: Any) -> PrivacyPolicy:
    return dataclasses.replace(POLICY, **changes)


def journal_of(folder: Path) -> Journal:
    return Journal(folder, open_storage_key(folder))


async def killed(world: World, kind: str, policy: PrivacyPolicy = POLICY) -> None:
    with pytest.raises(Killed):
        await world.device("d0", kill_at(kind), policy=policy).run_async(
            OneHot(0), task=TASK, rounds=1
        )


def others_of(world: World) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
        for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("kind", BEFORE_THE_CHARGE)
async def test_a_policy_that_refuses_the_task_ends_its_session_before_the_mask(
    tmp_path: Path, kind: str
) -> None:
    told: list[Event] = []
    async with World(tmp_path, plain_spec(4)) as world:
        others = [] if kind == "reported" else others_of(world)
        await killed(world, kind)
        result = await world.device("d0", told.append, policy=of(min_cohort=10)).resume_async()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert [event.kind for event in told] == ["resumed", "aborted"]
        assert told[-1].detail["reason"] == "cohort-too-small"
        assert "unfinished session was dropped" in str(told[-1].detail["message"])
        assert [refusal.reason for refusal in result.refusals] == ["cohort-too-small"]
        assert not world.device("d0").has_pending()
        journal = journal_of(tmp_path / "d0")
        assert DeviceAccount(journal, 1e-5).charges(TASK) == 0
        assert journal.load_contribution() is not None  # it reached no mask


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (PrivacyPolicy(min_cohort=2, min_corrupt=0), "privacy-mode"),
        (of(repeat_without_noise=False), "repeats-without-noise"),
        (of(max_upload_bytes=1), "upload-too-large"),
        (of(min_corrupt=1), "corrupt-too-few"),
        (of(min_step_s=1e6), "step-too-short"),
        (of(partner_keys=frozenset((b"q" * 32,))), "partner-unknown"),
    ],
)
async def test_every_rule_of_the_policy_holds_for_a_session_that_waits(
    tmp_path: Path, policy: PrivacyPolicy, reason: str
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        await killed(world, "reported")
        result = await world.device("d0", policy=policy).run_async(NoContributor(), task=TASK)
        assert [refusal.reason for refusal in result.refusals] == [reason]
        assert result.aborted == 1


async def test_a_session_that_trusts_more_partners_than_the_device_now_does_is_dropped(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        own = world.bundle("d0").certificate.partner_key
        others = others_of(world)
        await killed(world, "shared", of(partner_keys=frozenset((own, b"q" * 32))))
        result = await world.device("d0").resume_async()
        await asyncio.gather(*others)
        assert [refusal.reason for refusal in result.refusals] == ["policy-changed"]
        assert (await world.sums())[:4].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("change", ["min_cohort", "partner_keys"])
async def test_an_advert_that_waits_is_replaced_when_the_policy_is_mended(
    tmp_path: Path, change: str
) -> None:
    """And what was computed for it serves the next."""
    told: list[Event] = []
    async with World(tmp_path, plain_spec(4)) as world:
        own = world.bundle("d0").certificate.partner_key
        other = new_partner_key().key
        await world.post("/v1/operator/partners", {"name": "q", "key": other})
        mended = of(min_cohort=2, partner_keys=frozenset((own, other)))
        before = {"min_cohort": 3} if change == "min_cohort" else {"partner_keys": None}
        await killed(world, "reported", dataclasses.replace(mended, **before))
        device = world.device("d0", told.append, policy=mended)
        first = asyncio.create_task(device.run_async(NoContributor(), task=TASK, rounds=1))
        result, *_ = await asyncio.gather(first, *others_of(world))
        assert (len(result.releases), result.aborted, result.refusals) == (1, 1, ())
        assert [event.detail["reason"] for event in told if event.kind == "aborted"] == [
            "policy-changed"
        ]
        assert (await world.sums())[:4].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["reported", "masking"])
async def test_a_policy_that_only_grew_milder_or_says_not_now_ends_no_session(
    tmp_path: Path, kind: str
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        others = others_of(world)
        await killed(world, kind)
        policy = of(max_upload_bytes=POLICY.max_upload_bytes * 2, may_train=lambda: False)
        result = await world.device("d0", policy=policy).resume_async()
        await asyncio.gather(*others)
        assert len(result.releases) == 1


async def test_after_its_charge_a_session_goes_on_with_its_own_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge stands, so the sum is worth it, under the minimum that it began with."""
    debit = DeviceAccount.debit

    def dying(account: DeviceAccount, *words: Any) -> None:
        debit(account, *words)
        if account._journal.path("account").parent == tmp_path / "d0":
            raise Killed

    monkeypatch.setattr(DeviceAccount, "debit", dying)
    async with World(tmp_path, plain_spec(4)) as world:
        others = others_of(world)
        await killed(world, "never", of(min_cohort=3))
        monkeypatch.undo()
        record = journal_of(tmp_path / "d0").load_session()
        assert record is not None
        assert isinstance(restore(record.state), AwaitingVector)
        assert record.survivors_min == 3
        result = await world.device("d0", policy=of(min_cohort=10)).resume_async()
        await asyncio.gather(*others)
        assert len(result.releases) == 1
