"""Deltas on the service's disk: made once, only where they are shorter, gone with their model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from aggregator.store import deltas, models
from aggregator.store.blobs import BlobMissing, BlobStore
from secagg.model_delta import Base, decode


def stored(blobs: BlobStore, version: int, vector: NDArray[np.float32], **state: object) -> str:
    kept = {name: np.asarray(values) for name, values in state.items()}
    return models.store(blobs, "task", version, vector, kept).digest.hex()


def rebuilt(blobs: BlobStore, model: str, base: str) -> bytes:
    held = Base()
    if base != deltas.NOTHING:
        old = safetensors.numpy.load(blobs.get(f"models/{base}"))
        held = Base(bytes.fromhex(base), old)
    whole = safetensors.numpy.load(blobs.get(f"models/{model}"))
    shapes = {name: (str(t.dtype), t.shape) for name, t in whole.items()}
    return decode(blobs.get(deltas.name_of(model, base)), held, shapes, 65_536)


def test_a_file_of_vector_control_and_clip_is_told_from_another(tmp_path: Path) -> None:
    blobs, coins = BlobStore(tmp_path), np.random.default_rng(1)
    old, new = (coins.normal(0, 1, 900).astype(np.float32) for _ in range(2))
    first = stored(blobs, 1, old, control=old, clip=[0.5])
    second = stored(blobs, 2, new, control=new, clip=[0.25])
    for base in (first, deltas.NOTHING):
        assert deltas.make(blobs, second, base)
        assert rebuilt(blobs, second, base) == blobs.get(f"models/{second}")


def test_it_is_made_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    model = stored(blobs, 0, np.zeros(900, np.float32))
    assert deltas.make(blobs, model, deltas.NOTHING)
    file = blobs.path(deltas.name_of(model, deltas.NOTHING))
    assert file.stat().st_size < 300
    before = file.stat().st_mtime_ns
    assert deltas.make(blobs, model, deltas.NOTHING)
    assert file.stat().st_mtime_ns == before


def test_none_is_kept_that_is_no_shorter(tmp_path: Path) -> None:
    blobs, coins = BlobStore(tmp_path), np.random.default_rng(1)
    bits = coins.integers(0, 2**32, 900, np.uint32)
    model = stored(blobs, 1, bits.view(np.float32))
    assert not deltas.make(blobs, model, deltas.NOTHING)
    assert not blobs.path(deltas.DELTAS).exists()


def test_a_model_that_is_not_there_has_none(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    model = stored(blobs, 0, np.zeros(900, np.float32))
    gone = "0" * 63 + "1"
    for names in ((gone, deltas.NOTHING), (model, gone)):
        with pytest.raises(BlobMissing):
            deltas.make(blobs, *names)


def test_deltas_of_old_models_are_removed_and_nothing_else(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    old, new = (stored(blobs, version, np.zeros(900, np.float32)) for version in (1, 2))
    for model in (old, new):
        assert deltas.make(blobs, model, deltas.NOTHING)
    blobs.put(f"{deltas.DELTAS}/a file of the operator", b"mine")
    deltas.prune(blobs, {new})
    left = {path.name for path in blobs.path(deltas.DELTAS).iterdir()}
    assert left == {f"{new}-{deltas.NOTHING}", "a file of the operator"}
    deltas.prune(BlobStore(tmp_path / "empty"), {new})
