"""A model on its way to the device: from the network once, from the disk afterwards, or refused."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from msgspec.structs import replace

from client_sdk.errors import SecaggError, StateError, TransportError
from client_sdk.network.deltas import NO_DELTA
from client_sdk.rounds.checkin import DISK_MARGIN_BYTES, fetch_model
from dp.transfer_sizes import model_tensors
from secagg.http_api import Offer
from tests.kits.contributing import Setting, checkin_of
from tests.kits.tasks import built, statistics

MANIFEST = built(statistics(("a", 4, 1.0)))
VECTOR = np.arange(4, dtype=np.float32)
MODEL = safetensors.numpy.save({"vector": VECTOR})
_Usage = namedtuple("_Usage", "total used free")


class Serves:
    """A transport that brings the same bytes whatever it is asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[bytes, int]] = []

    async def download_delta(
        self, model: bytes, held: bytes, size_max: int, part: Path | None, folder: Path, note: Any
    ) -> Path:
        raise TransportError(NO_DELTA, "There is none.")

    async def download_model(self, digest: bytes, size_bytes: int, part: Path, note: Any) -> None:
        self.asked.append((digest, size_bytes))
        await asyncio.to_thread(part.write_bytes, self.content)


def offer_of(content: bytes) -> Offer:
    offer = checkin_of(MANIFEST).offer
    digest = hashlib.sha256(content).digest()
    return replace(offer, model=replace(offer.model, digest=digest, size_bytes=len(content)))


async def fetched(folder: Path, offer: Offer, transport: Serves) -> dict[str, np.ndarray]:
    device = dataclasses.replace(Setting(folder).device, transport=transport)
    return await fetch_model(device, MANIFEST, offer)


async def refused(folder: Path, offer: Offer, transport: Serves) -> SecaggError:
    with pytest.raises((TransportError, StateError)) as caught:
        await fetched(folder, offer, transport)
    assert list((folder / "models").iterdir()) == []
    return caught.value


async def test_a_model_comes_once_and_is_read_only(tmp_path: Path) -> None:
    offer, transport = offer_of(MODEL), Serves(MODEL)
    for _ in range(2):
        model = await fetched(tmp_path, offer, transport)
        assert model["vector"].tolist() == VECTOR.tolist()
        assert not model["vector"].flags.writeable
    assert transport.asked == [(offer.model.digest, len(MODEL))]
    (path,) = (tmp_path / "models").iterdir()
    path.write_bytes(b"damaged")
    await fetched(tmp_path, offer, transport)
    assert len(transport.asked) == 2


async def test_another_model_than_the_offered_one_is_refused(tmp_path: Path) -> None:
    error = await refused(tmp_path, offer_of(MODEL), Serves(MODEL[:-1] + b"\0"))
    assert (error.reason, error.expected) == ("model-digest", offer_of(MODEL).model.digest.hex())


async def test_a_model_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    error = await refused(tmp_path, offer_of(b"no tensors"), Serves(b"no tensors"))
    assert error.reason == "model-malformed"
    assert "does not parse" in error.message


@pytest.mark.parametrize(
    "tensors",
    [
        {"vector": VECTOR[:3]},
        {"vector": VECTOR.astype(np.float64)},
        {"vector": VECTOR, "control": VECTOR},
        {"other": VECTOR},
    ],
    ids=["shape", "type", "more", "name"],
)
async def test_other_tensors_than_the_task_s_are_refused_with_both(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    content = safetensors.numpy.save(tensors)
    error = await refused(tmp_path, offer_of(content), Serves(content))
    assert error.reason == "model-malformed"
    assert error.expected == model_tensors(MANIFEST) == {"vector": ("float32", (4,))}
    assert error.found == {name: (str(t.dtype), t.shape) for name, t in tensors.items()}


async def test_a_full_disk_is_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = len(MODEL) + DISK_MARGIN_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, needed - 1))
    transport = Serves(MODEL)
    error = await refused(tmp_path, offer_of(MODEL), transport)
    assert (error.reason, error.found) == ("disk-space", needed - 1)
    assert str(error.expected).startswith(f"{needed} bytes free")
    assert transport.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, needed))
    assert await fetched(tmp_path, offer_of(MODEL), transport)
