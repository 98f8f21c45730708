"""What a driver hears of adverts that are not a cohort."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from secagg import messages, server
from secagg.errors import LocalProtocolError
from secagg.keys import signing_key
from secagg.messages import (
    Advert,
)
from secagg.simulation import EPOCH_S
from tests.kits.asked import CONFIG, RUN
from tests.kits.protocol_run import CLIENTS, make_recorded
from tests.kits.said import Case, said

_replace = msgspec.structs.replace


ADVERTS = [device.advert for device in make_recorded(RUN.task)]


def open_cohort(adverts: list[bytes], **rules: Any) -> None:
    manifest = CONFIG.manifest
    changed = _replace(manifest, cohort=_replace(manifest.cohort, **rules))
    server.open_cohort(
        replace(CONFIG, manifest=changed),
        cohort=bytes(32),
        attempt=0,
        adverts=adverts,
        now_s=EPOCH_S,
    )


def of_another_version(signed: bytes) -> bytes:
    advert, _ = messages.peek(signed, Advert)
    (owner,) = (d for d in RUN.task.devices if d.certificate == advert.certificate)
    newer = _replace(advert, model_version=advert.model_version + 1)
    return messages.sign(newer, b"", signing_key(owner.identity))


VERSIONS = [(1, CLIENTS - 1), (2, 1)]
MISUSE: dict[str, Case] = {
    "too few adverts": Case(
        lambda: open_cohort(ADVERTS[1:]), "cohort-size", (CLIENTS, CLIENTS), CLIENTS - 1
    ),
    "a device twice": Case(
        lambda: open_cohort([*ADVERTS[1:], ADVERTS[1]], size_min=2), "cohort-twice"
    ),
    "two versions of the model": Case(
        lambda: open_cohort([of_another_version(ADVERTS[0]), *ADVERTS[1:]]),
        "cohort-models",
        (1, 3),
        VERSIONS,
    ),
    "a version with too few behind it": Case(
        lambda: open_cohort([of_another_version(ADVERTS[0]), *ADVERTS[1:]], versions_back=1),
        "cohort-models",
        (2, 3),
        VERSIONS,
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_driver_hears_what_it_did_wrong(name: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        MISUSE[name].call()
    reason, expected, found = said(caught.value)
    found = sorted(found) if reason == "cohort-models" else found
    assert (reason, expected, found) == MISUSE[name][1:4]
