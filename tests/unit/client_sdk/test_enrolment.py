"""Bundles: what a partner makes, a device can use; what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import nacl.signing
import pytest

from client_sdk.client import Client
from client_sdk.enrolment import (
    PartnerKey,
    check_bundle,
    create_bundle,
    load_bundle,
    load_partner_key,
    new_partner_key,
    save_bundle,
    save_partner_key,
)
from client_sdk.errors import EnrolmentError
from dp.tlog.notes import verifier_key
from secagg.http_api import EnrolmentBundle
from secagg.secret import Secret

KEY = bytes(nacl.signing.SigningKey(bytes(range(32))).verify_key)
VERIFIER = verifier_key("ledger.test", KEY)
PARTNER: PartnerKey = new_partner_key()


def bundle(**changes: object) -> EnrolmentBundle:
    made = create_bundle("https://agg.example:8080/", KEY, VERIFIER, PARTNER.seed, 2_000_000_000)
    return msgspec.structs.replace(made, **changes)


def test_a_bundle_comes_back_from_disk_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = bundle()
    save_bundle(tmp_path / "b.json", made)
    assert load_bundle(tmp_path / "b.json") == made
    assert (tmp_path / "b.json").stat().st_mode & 0o777 == 0o600
    assert made.server == "https://agg.example:8080"
    assert made.certificate.partner_key == PARTNER.key


def test_every_device_has_an_identity_of_its_own() -> None:
    assert bundle().identity_seed != bundle().identity_seed


def test_a_bundle_that_others_can_read_is_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b.json", bundle())
    (tmp_path / "b.json").chmod(0o644)
    with pytest.raises(EnrolmentError, match="chmod 600") as caught:
        load_bundle(tmp_path / "b.json")
    assert caught.value.reason == "secret-open"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server": "ftp://agg.example"}, "bundle-server"),
        ({"server": "agg.example:8080"}, "bundle-server"),
        ({"server": ""}, "bundle-server"),
        ({"server": "https://user:secret@agg.example"}, "bundle-server"),
        ({"server": "https://user@agg.example"}, "bundle-server"),
        ({"server": "https://:secret@agg.example"}, "bundle-server"),
        ({"server": "https://agg.example:65536"}, "bundle-server"),
        ({"server": "https://agg.example?a=b"}, "bundle-server"),
        ({"task_key": b"short"}, "bundle-key"),
        ({"ledger_verifier": "nonsense"}, "bundle-verifier"),
        ({"identity_seed": b"short"}, "bundle-identity"),
        ({"identity_seed": bytes(32)}, "bundle-identity"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(EnrolmentError) as caught:
        check_bundle(bundle(**changes))
    assert caught.value.reason == reason
    assert "secret" not in str(caught.value)


def test_a_certificate_that_its_partner_did_not_sign_is_refused() -> None:
    made = bundle()
    forged = msgspec.structs.replace(made.certificate, not_after=made.certificate.not_after + 1)
    with pytest.raises(EnrolmentError) as caught:
        check_bundle(msgspec.structs.replace(made, certificate=forged))
    assert caught.value.reason == "bundle-certificate"


def test_a_certificate_that_has_ended_is_refused_by_the_clock() -> None:
    check_bundle(bundle(), 1_999_999_999)
    with pytest.raises(EnrolmentError) as caught:
        check_bundle(bundle(), 2_000_001_000)
    assert caught.value.reason == "bundle-certificate"


def test_a_certificate_that_seems_to_have_ended_may_be_a_wrong_clock(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError) as caught:
        Client.from_bundle(bundle(), state_dir=tmp_path, clock=lambda: 2_000_001_000.0)
    assert "Check the clocks" in str(caught.value)
    Client.from_bundle(bundle(), state_dir=tmp_path, clock=lambda: 1_999_999_999.0)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"{" * 100, b"x" * 20_000])
def test_a_file_that_is_no_bundle_gets_its_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(EnrolmentError) as caught:
        load_bundle(path)
    assert caught.value.reason == "bundle-malformed"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError) as caught:
        load_bundle(tmp_path / "nowhere.json")
    assert caught.value.reason == "bundle-unreadable"


def test_a_partner_key_comes_back_from_disk(tmp_path: Path) -> None:
    save_partner_key(tmp_path / "p.key", PARTNER.seed)
    assert (tmp_path / "p.key").stat().st_mode & 0o777 == 0o600
    loaded = load_partner_key(tmp_path / "p.key")
    assert loaded.key == PARTNER.key
    assert loaded.seed.reveal() == PARTNER.seed.reveal()


@pytest.mark.parametrize("content", [b"", b"AAAA", b"not base64!", b"\xff"])
def test_a_file_that_is_no_partner_key_gets_its_typed_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.key").write_bytes(content)
    (tmp_path / "p.key").chmod(0o600)
    with pytest.raises(EnrolmentError) as caught:
        load_partner_key(tmp_path / "p.key")
    assert caught.value.reason == "partner-key-malformed"


def test_a_seed_does_not_print() -> None:
    assert PARTNER.seed.reveal().hex() not in repr(PARTNER)
    assert isinstance(PARTNER.seed, Secret)
