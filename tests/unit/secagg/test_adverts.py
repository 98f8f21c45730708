"""What an advert must be: reason, both values, the device that is to blame."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from secagg import messages
from secagg.adverts import check_advert
from secagg.keys import identity_public_key, signing_key
from secagg.messages import (
    Advert,
)
from secagg.secret import Secret
from secagg.simulation import EPOCH_S
from tests.kits.asked import CONFIG, RUN, SELF
from tests.kits.said import Case, refused

_replace = msgspec.structs.replace


SIGNED_ADVERT = RUN.device.advert
ADVERT = messages.peek(SIGNED_ADVERT, Advert)[0]
STRANGER = Secret(b"s" * 32)
WANTED_SIZES = (1_216, 1_216, 32, 32)


def advert(key: Secret | None = None, now_s: float = EPOCH_S, **changes: Any) -> None:
    signed = messages.sign(
        _replace(ADVERT, **changes), b"", signing_key(key or RUN.device.config.identity)
    )
    manifest = CONFIG.manifest
    check_advert(signed, manifest, CONFIG.manifest_digest, manifest.partner_keys, now_s)


REFUSED: dict[str, Case] = {
    "an advert signed by another": Case(
        lambda: advert(STRANGER),
        "advert-signer",
        SELF.hex(),
        identity_public_key(STRANGER).hex(),
        culprit=identity_public_key(STRANGER),
    ),
    "an advert for another task": Case(
        lambda: advert(task="other"),
        "advert-manifest",
        (CONFIG.manifest.task, CONFIG.manifest_digest.hex()),
        ("other", CONFIG.manifest_digest.hex()),
        culprit=SELF,
    ),
    "an expired advert": Case(
        lambda: advert(now_s=ADVERT.expires_at + 300.5),
        "advert-expired",
        f"at least {ADVERT.expires_at + 300.5:.0f}",
        ADVERT.expires_at,
        culprit=SELF,
    ),
    "an advert with a short nonce": Case(
        lambda: advert(nonce=b"n"),
        "advert-malformed",
        WANTED_SIZES,
        (*WANTED_SIZES[:3], 1),
        culprit=SELF,
    ),
    "an advert with a short model": Case(
        lambda: advert(model_digest=b"m"),
        "advert-malformed",
        WANTED_SIZES,
        WANTED_SIZES,
        culprit=SELF,
    ),
    "an advert with one key twice": Case(
        lambda: advert(channel_key=ADVERT.mask_key), "advert-malformed", culprit=SELF
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_that_breaks_the_rules_is_told_how_and_named(name: str) -> None:
    refused(REFUSED[name])
