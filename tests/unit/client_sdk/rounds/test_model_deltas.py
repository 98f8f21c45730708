"""A model rebuilt from the one that is held; a wrong delta is told, and the whole comes once."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from msgspec.structs import replace

from client_sdk.errors import TransportError, Unreached
from client_sdk.events import Event
from client_sdk.network.deltas import NO_DELTA
from client_sdk.rounds.checkin import fetch_model
from secagg.http_api import Offer
from secagg.model_delta import Base, encode
from tests.kits.contributing import Setting, checkin_of
from tests.kits.tasks import built, statistics

LENGTH = 40
MANIFEST = built(statistics(("a", LENGTH, 1.0)))


def file_of(vector: np.ndarray) -> bytes:
    return safetensors.numpy.save({"vector": vector.astype(np.float32)})


HELD, MODEL = file_of(np.arange(LENGTH)), file_of(np.arange(LENGTH) + 1)
HELD_DIGEST = hashlib.sha256(HELD).digest()


def delta(content: bytes = MODEL, held: bytes | None = HELD) -> bytes:
    base = Base()
    if held is not None:
        base = Base(hashlib.sha256(held).digest(), safetensors.numpy.load(held))
    header = content[: -4 * LENGTH]
    return encode(header, safetensors.numpy.load(content), base)


class Serves:
    """A transport that brings one delta, or fails, and one model."""

    def __init__(self, answer: bytes | Exception, content: bytes = MODEL) -> None:
        self.answer, self.content = answer, content
        self.asked: list[tuple[bytes, int]] = []
        self.begun: Path | None = None
        self.whole = 0

    async def download_delta(
        self, model: bytes, held: bytes, size_max: int, part: Path | None, folder: Path, note: Any
    ) -> Path:
        self.asked.append((held, size_max))
        self.begun = part
        if isinstance(self.answer, Exception):
            raise self.answer
        path = folder / f"{hashlib.sha256(self.answer).hexdigest()}.part"
        _write(path, self.answer)
        return path

    async def download_model(self, digest: bytes, size_bytes: int, part: Path, note: Any) -> None:
        self.whole += 1
        _write(part, self.content)


def offered() -> Offer:
    offer = checkin_of(MANIFEST).offer
    digest = hashlib.sha256(MODEL).digest()
    return replace(offer, model=replace(offer.model, digest=digest, size_bytes=len(MODEL)))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class Fetch:
    """A device that holds ``held``, fetching MODEL."""

    def __init__(self, folder: Path, transport: Serves, held: bytes | None = HELD) -> None:
        self.events: list[Event] = []
        self.setting = Setting(folder)
        self.models = folder / "models"
        if held is not None:
            _write(self.models / HELD_DIGEST.hex(), held)

        async def deliver(event: Event) -> None:
            self.events.append(event)

        self.device = dataclasses.replace(self.setting.device, transport=transport, deliver=deliver)

    async def run(self) -> list[float]:
        found = await fetch_model(self.device, MANIFEST, offered())
        vector: list[float] = found["vector"].tolist()
        return vector

    @property
    def told(self) -> list[object]:
        return [event.detail["reason"] for event in self.events if event.kind == "delta-refused"]

    def left(self) -> list[str]:
        return [path.name for path in self.models.iterdir()]


ONE = [hashlib.sha256(MODEL).hexdigest()]
WANTED = list(range(1, LENGTH + 1))


@pytest.mark.parametrize("held", [HELD, None], ids=["held", "nothing"])
async def test_a_model_is_rebuilt_and_takes_the_place_of_the_one_held(
    tmp_path: Path, held: bytes | None
) -> None:
    transport = Serves(delta(held=held))
    fetch = Fetch(tmp_path, transport, held)
    assert await fetch.run() == WANTED
    assert transport.asked == [(b"" if held is None else HELD_DIGEST, len(MODEL) - 1)]
    assert (transport.whole, fetch.told, fetch.left()) == (0, [], ONE)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"no delta", "delta-malformed"),
        (delta(file_of(np.arange(LENGTH) + 2)), "delta-digest"),
        (delta(held=file_of(np.ones(LENGTH))), "delta-malformed"),
        (TransportError("delta-digest", "Damaged."), "delta-digest"),
        (TransportError("internal", "It cannot be made.", status=500), "internal"),
        (TransportError(NO_DELTA, "There is none."), None),
    ],
    ids=["no delta", "another model", "another base", "damaged", "failed", "none"],
)
async def test_without_a_right_delta_the_whole_model_comes_once(
    tmp_path: Path, answer: bytes | Exception, told: str | None
) -> None:
    transport = Serves(answer)
    fetch = Fetch(tmp_path, transport)
    assert await fetch.run() == WANTED
    assert (len(transport.asked), transport.whole) == (1, 1)
    assert fetch.told == ([] if told is None else [told])
    assert fetch.left() == ONE


async def test_a_held_model_that_is_damaged_is_not_named(tmp_path: Path) -> None:
    transport = Serves(delta(held=None))
    fetch = Fetch(tmp_path, transport, HELD[:-1])
    assert await fetch.run() == WANTED
    assert transport.asked == [(b"", len(MODEL) - 1)]


async def test_what_has_come_and_what_is_held_stay_while_the_network_is_away(
    tmp_path: Path,
) -> None:
    transport = Serves(Unreached("unreachable", "Away."))
    fetch = Fetch(tmp_path, transport)
    part = f"{'ab' * 32}.part"
    _write(fetch.models / part, b"begun")
    with pytest.raises(TransportError):
        await fetch.run()
    assert transport.begun == fetch.models / part
    assert sorted(fetch.left()) == sorted([part, HELD_DIGEST.hex()])
    assert transport.whole == 0


async def test_a_whole_model_that_is_under_way_goes_on(tmp_path: Path) -> None:
    transport = Serves(delta())
    fetch = Fetch(tmp_path, transport)
    _write(fetch.models / f"{ONE[0]}.part", MODEL[:10])
    assert await fetch.run() == WANTED
    assert (transport.asked, transport.whole, fetch.left()) == ([], 1, ONE)
