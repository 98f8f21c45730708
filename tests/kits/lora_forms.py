"""A small adapter in every form, and tasks that train it."""

from __future__ import annotations

import msgspec
import numpy as np

from secagg.lora.forms import pairs, vector_length, vector_to_tensors
from secagg.manifest import Adapter, TensorShape
from tests.kits.tasks import built, spec

RANK, SKETCH = 3, 9


def adapter(kind: str, layers: tuple[tuple[int, int], ...] = ((60, 50), (48, 64))) -> Adapter:
    a = tuple(
        TensorShape(name=f"l{i}.lora_A.weight", rows=RANK, columns=n)
        for i, (_, n) in enumerate(layers)
    )
    b = tuple(
        TensorShape(name=f"l{i}.lora_B.weight", rows=m, columns=RANK)
        for i, (m, _) in enumerate(layers)
    )
    only_b = kind in ("ffa-lora", "fedsvd")
    return Adapter(
        kind=kind,
        rank=RANK,
        alpha=6,
        target_modules=("q_proj",),
        seed=bytes(range(32)),
        trainable=b if only_b else tuple(s for pair in zip(a, b, strict=True) for s in pair),
        frozen=a if only_b else (),
        sketch=SKETCH if kind == "product" else 0,
    )


def task(kind: str, algorithm: str = "fedavg", **changes):
    fields = {
        "adapter": adapter(kind),
        "algorithm": algorithm,
        "privacy": "none",
        "budget": {"max_epsilon": None},
        **changes,
    }
    fields["budget"] = msgspec.convert(fields["budget"], type=type(spec().budget))
    return built(spec(**fields))


def random_vector(shape: Adapter, seed: int, scale: float = 0.3) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, scale, vector_length(shape))
    return values.astype(np.float32)


def product(shape: Adapter, vector: np.ndarray) -> list[np.ndarray]:
    tensors = vector_to_tensors(shape, vector)
    return [tensors[p.b.name].astype(float) @ tensors[p.a.name].astype(float) for p in pairs(shape)]
