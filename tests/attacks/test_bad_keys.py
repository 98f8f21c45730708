"""Points of low order, all-zero keys and malformed KEM keys, certified like any other."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secagg import keys, messages, sealing, server
from secagg.client import deals
from secagg.errors import RemoteProtocolError
from secagg.keys import signing_key
from secagg.messages import Advert
from secagg.sealing import KemPrivateKey
from secagg.secret import Secret
from secagg.simulation import EPOCH_S, SeededBytes, SimulatedTask, make_task
from tests.kits.adversary import Adversary, failed_reason

CLIENTS = 6
LIAR = 2  # roster index of the device with the bad key

# X25519 (RFC 7748, section 6.1): what these points give is zero, whatever the secret.
LOW_ORDER = {
    "zero": bytes(32),
    "one": b"\x01" + bytes(31),
    "order-8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "minus-one": bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    "p": bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
}
_SOUND = sealing.kem_public_key(Secret(b"s" * 32), "any")
BAD_KEYS = {f"x25519-{name}": _SOUND[:1184] + point for name, point in LOW_ORDER.items()} | {
    "all-zero": bytes(1216),
    "all-ones": b"\xff" * 1216,
    "coefficients-above-q": b"\xff" * 384 + _SOUND[384:],
    "short": _SOUND[:-1],
    "empty": b"",
}


def task() -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3)


def with_bad_key(field: str, key: bytes) -> Adversary:
    """One device's advert, signed by itself, with a bad public key."""
    adversary = Adversary(task())
    liar = adversary.devices[LIAR]
    genuine, _ = messages.peek(liar.advert, Advert)
    changed = msgspec.structs.replace(genuine, **{field: key})
    liar.advert = messages.sign(changed, b"", signing_key(liar.config.identity))
    adversary.adverts[LIAR] = liar.advert
    return adversary


bad_key = pytest.mark.parametrize("name", BAD_KEYS)
either = pytest.mark.parametrize("field", ["mask_key", "channel_key"])


@bad_key
@either
def test_a_bad_key_is_refused_at_report_in_and_names_its_sender(name: str, field: str) -> None:
    adversary = with_bad_key(field, BAD_KEYS[name])
    with pytest.raises(RemoteProtocolError) as refusal:
        server.check_advert(adversary.task.server, adversary.adverts[LIAR], EPOCH_S)
    assert refusal.value.reason in ("kem-key-malformed", "advert-malformed")
    assert refusal.value.culprit == adversary.identity(LIAR)


@bad_key
def test_a_device_that_is_shown_a_bad_key_ends_the_exchange_and_names_it(name: str) -> None:
    """An aggregator that lets it through: nothing is dealt to anybody."""
    adversary = with_bad_key("channel_key", BAD_KEYS[name])
    adversary.share(only=[0])
    state = adversary.devices[0].state
    assert failed_reason(adversary.devices[0]) in ("kem-key-malformed", "advert-malformed")
    assert state.culprit == adversary.identity(LIAR)
    assert not adversary.deals


@pytest.mark.parametrize("name", [n for n in BAD_KEYS if n not in ("short", "empty")])
def test_without_that_error_one_bad_key_takes_the_devices_down(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weakened build seals with the library as it is: its own error ends the process."""

    def seal_as_the_library_does(public: bytes, info: bytes, plaintext: bytes) -> bytes:
        mlkem = sealing.MLKEM768PublicKey.from_public_bytes(public[:1184])
        x25519 = sealing.X25519PublicKey.from_public_bytes(public[1184:])
        key = sealing.MLKEM768X25519PublicKey(mlkem, x25519)
        return bytes(sealing._SUITE.encrypt(plaintext, key, info))

    adversary = with_bad_key("channel_key", BAD_KEYS[name])
    device = adversary.devices[0]
    device.tools = type(device.tools)(device.tools.random_bytes, seal_as_the_library_does)
    with pytest.raises(ValueError, match=r".") as crash:
        adversary.share(only=[0])
    assert not isinstance(crash.value, RemoteProtocolError)


def test_an_ephemeral_key_of_low_order_in_a_seal_is_a_complaint_not_a_crash() -> None:
    """The dealer seals by hand, with the X25519 half of the encapsulation of low order."""
    adversary = Adversary(task())
    adversary.share()
    key = signing_key(adversary.devices[LIAR].config.identity)
    deal, _ = messages.peek(adversary.deals[LIAR][0], messages.Deal)
    sealed = deal.sealed_shares[:1088] + bytes(32) + deal.sealed_shares[1120:]
    changed = msgspec.structs.replace(deal, sealed_shares=sealed)
    adversary.deals[LIAR][0] = messages.sign(changed, adversary.ctx, key)
    (answer,) = adversary.say(0, adversary.inbox(0))
    complaint, _ = messages.peek(answer, messages.Complaint)
    assert complaint.accused == (LIAR,)


def test_without_catching_the_librarys_error_that_seal_takes_the_device_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_as_the_library_does(private: KemPrivateKey, info: bytes, sealed: bytes) -> bytes:
        return bytes(sealing._SUITE.decrypt(sealed, private, info))

    monkeypatch.setattr(deals.sealing, "hpke_open", open_as_the_library_does)
    with pytest.raises((InvalidTag, ValueError)):
        test_an_ephemeral_key_of_low_order_in_a_seal_is_a_complaint_not_a_crash()


# -- identities of low order -----------------------------------------------------------------------

# Ed25519's neutral element. Under the bare equation R = [S]B - [k]A anybody signs anything in its
# name: R = A = (0, 1), S = 0.
NEUTRAL = b"\x01" + bytes(31)
UNIVERSAL_SIGNATURE = NEUTRAL + bytes(32)


def by_the_bare_equation(public: bytes, signed: bytes, signature: bytes) -> bool:
    """RFC 8032's equation without a look at the key's order."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_under_the_bare_equation_everybody_signs_for_an_identity_of_low_order() -> None:
    random = SeededBytes(1)
    assert all(by_the_bare_equation(NEUTRAL, random(50), UNIVERSAL_SIGNATURE) for _ in range(20))


def test_an_identity_of_low_order_signs_nothing() -> None:
    random = SeededBytes(1)
    for point in (NEUTRAL, *LOW_ORDER.values()):
        for _ in range(20):
            assert not keys.verify_signature(point, random(50), UNIVERSAL_SIGNATURE)
    frame = messages.encode(messages.Ready(bytes(32), 0))
    envelope = msgspec.msgpack.encode(messages.Signed(frame, NEUTRAL, UNIVERSAL_SIGNATURE))
    with pytest.raises(RemoteProtocolError, match="signature-invalid"):
        messages.verify(envelope, bytes(32), messages.Ready)
