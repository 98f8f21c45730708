"""Genuine messages a second time: deals, uploads, requests to unmask, manifests of yesterday."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from secagg import client, messages, server
from secagg.client import checks, deals
from secagg.errors import LocalProtocolError
from secagg.keys import signing_key
from secagg.manifest import encode_manifest, manifest_digest
from secagg.server import collect
from secagg.simulation import (
    Aggregator,
    Device,
    Hooks,
    Output,
    SimulatedTask,
    make_task,
    run_cohort,
)
from secagg.simulation import cohort as cohort_driver
from tests.kits import adversary as adversary_module
from tests.kits.adversary import Adversary, failed_reason
from tests.kits.corrupt import LIAR, assert_released_without, one_hot
from tests.kits.corrupt import task as corrupt_task

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task() -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3)


# -- a share of an earlier cohort ------------------------------------------------------------------


def replay_deals(victim: int) -> Adversary:
    """Everybody deals in a first cohort; its deals are handed out in a second one."""
    shown = task()
    first = Adversary(shown, cohort=b"1" * 32)
    again = {device.number: client.snapshot(device.state) for device in first.devices}
    first.share()
    second = Adversary(shown, cohort=b"2" * 32)
    # The same keys, so that the old seals open: only the binding to the cohort is left.
    for device in second.devices:
        device.state = client.restore(again[device.number])
    second.share()
    others = [other for other in second.everyone if other != victim]
    inbox = messages.Inbox(second.ctx, tuple(first.deals[other][victim] for other in others))
    second.say(victim, inbox)
    return second


def test_without_context_in_signatures_seals_and_hashes_old_deals_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened device takes a deal for what the exchange is that the deal names."""

    def any_exchange(session, dealer, signed):
        claimed, _ = messages.peek(signed, messages.Deal)
        deal, _ = messages.verify(
            signed, claimed.ctx, messages.Deal, signer=session.identity_keys[dealer]
        )
        return deal

    def shares(session, deal, key, levels):
        return genuine_shares(replace(session, ctx=deal.ctx), deal, key, levels)

    def seed(session, deal, key):
        return genuine_seed(replace(session, ctx=deal.ctx), deal, key)

    genuine_shares, genuine_seed = deals.decrypt_shares, deals.decrypt_pair_seed
    monkeypatch.setattr(deals, "verify_deal", any_exchange)
    monkeypatch.setattr(deals, "decrypt_shares", shares)
    monkeypatch.setattr(deals, "decrypt_pair_seed", seed)
    second = replay_deals(victim=2)
    state = second.devices[2].state
    assert isinstance(state, client.Checked)
    assert len(state.shares) == CLIENTS - 1


def test_deals_of_another_cohort_are_refused() -> None:
    second = replay_deals(victim=2)
    state = second.devices[2].state
    assert isinstance(state, client.Checked)
    assert not state.shares
    assert not state.pair_seeds


# -- an upload a second time -----------------------------------------------------------------------


class AddsTwice(Aggregator):
    """A driver that hears of one vector twice, e.g. a retry through another replica."""

    def _add(self, index: int, number: int, payload: bytes) -> None:
        upload = self._uploads[index]
        super()._add(index, number, payload)
        if number == LIAR:
            self._uploads[index] = upload
            before = self._sum.copy()
            try:
                super()._add(index, number, payload)
            except LocalProtocolError as error:
                self._sum = before  # one transaction: what may not be claimed is not added
                self.replayed = error.reason


def upload_twice(
    shown: SimulatedTask, monkeypatch: pytest.MonkeyPatch
) -> tuple[str | None, object]:
    made: list[AddsTwice] = []

    def make(*arguments, **named):
        made.append(AddsTwice(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(cohort_driver, "Aggregator", make)
    result = run_cohort(shown, one_hot())
    return getattr(made[0], "replayed", None), result


def test_without_the_unique_claim_a_replayed_upload_counts_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the check coordinates see it: the sum shows seven devices where six survived."""
    monkeypatch.setattr(
        collect, "take_vector", lambda state, index: replace(state, added=state.added | {index})
    )
    replayed, result = upload_twice(corrupt_task(), monkeypatch)
    assert replayed is None
    assert isinstance(result.state, server.Aborted)


def test_a_replayed_upload_is_in_the_sum_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed, result = upload_twice(corrupt_task(), monkeypatch)
    assert replayed == "vector-not-due"
    assert_released_without(result)


def two_uploads(change_digest: bool) -> Hooks:
    """One device announces a vector and then another one under the same masks."""
    shown = corrupt_task()
    key = signing_key(shown.devices[LIAR].identity)

    def upward(sender: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        if sender != LIAR or not isinstance(message, messages.MaskedInput):
            return [signed]
        other = messages.MaskedInput(
            message.ctx, message.index, message.masking_set_digest, b"o" * 32, message.size_bytes
        )
        second = messages.sign(other, message.ctx, key) if change_digest else signed
        return [signed, second]

    return Hooks(upward=upward)


def test_a_second_different_upload_is_refused_and_the_first_one_counts() -> None:
    result = run_cohort(corrupt_task(), one_hot(), hooks=two_uploads(change_digest=True))
    assert (LIAR, "message-changed") in result.refused
    assert_released_without(result)


def test_the_same_announcement_again_changes_nothing() -> None:
    result = run_cohort(corrupt_task(), one_hot(), hooks=two_uploads(change_digest=False))
    assert not result.refused
    assert_released_without(result)


def test_without_first_one_stands_the_second_announcement_replaces_the_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened aggregator forgets what it accepted, so bytes for the first digest are lost."""
    monkeypatch.setattr(server.machine, "_accept", lambda state, event, message: state)
    result = run_cohort(corrupt_task(), one_hot(), hooks=two_uploads(change_digest=True))
    assert (LIAR, "vector-digest") in result.refused
    assert_released_without(result, LIAR)


# -- a request to unmask ---------------------------------------------------------------------------


def ask_again(adversary: Adversary) -> tuple[list[bytes], list[bytes]]:
    """The same confirmations twice; then those of an earlier cohort to a device that waits."""
    adversary.until_masked()
    adversary.confirm(lambda _: adversary.everyone)
    chosen = tuple(adversary.confirmations[index] for index in (1, 2, 3, 4))
    request = messages.Confirmations(adversary.ctx, chosen)
    return adversary.say(0, request), adversary.say(0, request)


def test_a_replayed_request_to_unmask_gets_no_second_answer() -> None:
    first, second = ask_again(Adversary(task()))
    assert len(first) == 1
    assert second == []


def test_a_request_to_unmask_of_another_cohort_gets_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def attack() -> tuple[Adversary, list[bytes]]:
        shown = task()
        old = Adversary(shown, cohort=b"1" * 32)
        old.until_masked()
        old.confirm(lambda _: old.everyone)
        chosen = tuple(old.confirmations[index] for index in (1, 2, 3, 4))
        fresh = Adversary(shown, cohort=b"2" * 32)
        fresh.until_masked()
        fresh.confirm(lambda _: fresh.everyone, only=[0])
        return fresh, fresh.say(0, messages.Confirmations(fresh.ctx, chosen))

    fresh, answer = attack()
    assert answer == []
    assert failed_reason(fresh.devices[0]) == "signature-invalid"

    monkeypatch.setattr(checks, "check_confirmations", lambda *_: None)
    _, answer = attack()
    assert len(answer) == 1, "without the check the attack succeeds"


# -- an old manifest -------------------------------------------------------------------------------


def roster_of_an_old_manifest() -> tuple[Device, list[bytes]]:
    """The aggregator closes a roster under yesterday's manifest, which had a lower minimum."""
    adversary = Adversary(make_task(CLIENTS, 4, survivors_min=5))
    manifest = adversary.task.manifest
    weaker = manifest.cohort.survivors_min - 2
    old = msgspec.structs.replace(
        manifest,
        cohort=msgspec.structs.replace(manifest.cohort, survivors_min=weaker),
        created_at=manifest.created_at - 1000,
    )
    digest = manifest_digest(encode_manifest(old))
    roster = msgspec.structs.replace(adversary.roster(0), manifest_digest=digest)
    return adversary.devices[0], adversary.say(0, roster)


def test_without_the_manifests_digest_a_roster_of_an_old_manifest_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "check_task", lambda *_: None)
    device, sent = roster_of_an_old_manifest()
    assert isinstance(device.state, client.Shared)
    assert len(sent) == 1


def test_a_roster_of_an_old_manifest_is_refused() -> None:
    device, sent = roster_of_an_old_manifest()
    assert failed_reason(device) == "roster-manifest"
    assert [type(messages.peek(said, *messages.KINDS)[0]) for said in sent] == [messages.Refusal]


# -- keys reused across cohorts --------------------------------------------------------------------


def repeated_windows() -> tuple[int, int]:
    """(16-byte windows of all payloads, different ones) in two cohorts with the same secrets and
    inputs: devices that go back to their adverts after the first one."""
    shown = task()
    payloads: dict[tuple[bytes, int], bytes] = {}

    class Keeps(Device):
        def _drive(self, event: client.Event) -> list[Output]:
            outputs = super()._drive(event)
            for output in outputs:
                if output.payload:
                    payloads[self.state.session.cohort, self.number] = output.payload
            return outputs

    for cohort in (b"1" * 32, b"2" * 32):
        adversary = Adversary(shown, cohort=cohort)
        for device in adversary.devices:
            device.__class__ = Keeps
        adversary.until_masked()
    assert len(payloads) == 2 * CLIENTS
    windows = [p[at : at + 16] for p in payloads.values() for at in range(0, len(p) - 15, 4)]
    return len(windows), len(set(windows))


def test_without_the_cohort_in_the_context_reused_keys_repeat_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def same(**parts) -> bytes:
        return genuine(**{**parts, "cohort": bytes(32)})

    genuine = client.machine.context
    monkeypatch.setattr(client.machine, "context", same)
    monkeypatch.setattr(adversary_module, "context", same)
    windows, different = repeated_windows()
    assert different == windows // 2


def test_reused_keys_never_repeat_a_mask_in_another_cohort() -> None:
    windows, different = repeated_windows()
    assert different == windows
