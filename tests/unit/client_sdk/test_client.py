"""The three lines: a client from a bundle on disk, with its own folder, key and veto."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nacl.signing
import pytest

import client_sdk
from client_sdk import Client, EnrolmentError, PrivacyPolicy, StateError
from client_sdk.enrolment import create_bundle, new_partner_key, save_bundle
from dp.tlog.notes import verifier_key

KEY = bytes(nacl.signing.SigningKey(bytes(range(32))).verify_key)
VERIFIER = verifier_key("ledger.test", KEY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = create_bundle(
        "http://127.0.0.1:9", KEY, VERIFIER, new_partner_key().seed, not_after=4_000_000_000
    )
    save_bundle(tmp_path / "enrolment.json", made)
    return tmp_path / "enrolment.json"


def test_a_client_needs_a_bundle_and_no_more(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client = Client.from_bundle(str(bundle))
    assert client.policy == PrivacyPolicy()
    assert not client.has_pending()
    (folder,) = (tmp_path / "state" / "secagg").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_passphrase_belongs_to_the_folder(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    Client.from_bundle(bundle, state_dir=folder, passphrase="correct horse")
    with pytest.raises(StateError, match="passphrase-wrong"):
        Client.from_bundle(bundle, state_dir=folder, passphrase="battery staple")
    with pytest.raises(StateError, match="keystore-kind"):
        Client.from_bundle(bundle, state_dir=folder)


def test_a_bundle_that_has_ended_is_refused_at_once(tmp_path: Path) -> None:
    ended = create_bundle("http://127.0.0.1:9", KEY, VERIFIER, new_partner_key().seed, 1_000)
    with pytest.raises(EnrolmentError, match="bundle-certificate"):
        Client.from_bundle(ended, state_dir=tmp_path)


def test_the_package_names_what_it_has() -> None:
    assert "LoraTrainer" in client_sdk.__all__
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        client_sdk.__getattr__("Trainer")


async def test_an_event_whose_sender_was_cancelled_meanwhile_does_not_end_the_run() -> None:
    shown, cancelled = asyncio.Event(), asyncio.Event()

    async def take_part(
        _one: object, _task: str, _rounds: object, _stop: object, deliver: Any
    ) -> None:
        sender = asyncio.create_task(deliver("first"))
        await shown.wait()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        cancelled.set()
        await deliver("second")

    async def nobody(_event: object) -> None:
        pass

    client: Any = object.__new__(Client)
    client._take_part, client._deliver = take_part, nobody
    seen = []
    async for event in client.participate(None, task="task"):
        seen.append(event)
        shown.set()
        await cancelled.wait()
    assert seen == ["first", "second"]
