"""Secrets do not leave their holder by accident."""

from __future__ import annotations

import copy
import hmac
import json
import pickle

import msgspec
import pytest

from secagg.secret import Secret

VALUE = b"correct horse battery staple...."


def test_the_bytes_come_out_by_reveal_only() -> None:
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    assert len(secret) == 32
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]!r}"):
        assert "horse" not in text
        assert VALUE.hex() not in text
        assert "32 bytes" in text


def test_a_secret_keeps_its_own_copy() -> None:
    source = bytearray(VALUE)
    secret = Secret(bytes(source))
    mutable = Secret(source)
    source[:] = bytes(32)
    assert secret.reveal() == mutable.reveal() == VALUE


def test_secrets_do_not_compare() -> None:
    with pytest.raises(TypeError, match="compare_digest"):
        _ = Secret(VALUE) == Secret(VALUE)
    with pytest.raises(TypeError, match="compare_digest"):
        _ = Secret(VALUE) != VALUE
    assert hmac.compare_digest(Secret(VALUE).reveal(), VALUE)


def test_secrets_are_no_keys_of_sets_or_dicts() -> None:
    with pytest.raises(TypeError):
        hash(Secret(VALUE))
    with pytest.raises(TypeError):
        {Secret(VALUE)}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_secrets_do_not_pickle(protocol: int) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(Secret(VALUE), protocol)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_secrets_do_not_copy(copier) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        copier(Secret(VALUE))


@pytest.mark.parametrize("encoder", [json.dumps, msgspec.json.encode, msgspec.msgpack.encode])
def test_secrets_do_not_serialise(encoder) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        encoder({"seed": Secret(VALUE)})


def test_secrets_take_no_further_attributes() -> None:
    with pytest.raises(AttributeError):
        Secret(VALUE).note = "x"  # type: ignore[attr-defined]
