"""One linear layer under LoRA: devices fit B A to matrices of their own, in every form.

A device's loss is (1/2) |B A - M|^2 (Frobenius), so the gradients are R A^T and B^T R with
R = B A - M, and the best product is known. What is not the model is the product's own, as in
``tests.kits.federations``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.training.algorithms import ALGORITHMS
from client_sdk.training.algorithms.products import sketched
from client_sdk.training.examples import Row
from secagg.lora.forms import sent_length, size, trained, vector_to_tensors
from secagg.manifest import Adapter, AdapterKind, TensorShape
from tests.kits.federations import Federation, Values

Vector = NDArray[np.float64]
A, B = "layer.lora_A.weight", "layer.lora_B.weight"
RANK = 2


@dataclass(frozen=True)
class Layers:
    """``targets``: float64[rows, columns] per device. ``counts``: equal examples of each device."""

    targets: tuple[Vector, ...]
    counts: tuple[int, ...]

    @property
    def devices(self) -> int:
        return len(self.targets)

    def examples(self, device: int) -> int:
        return self.counts[device]


def layers(counts: Sequence[int], *, rows: int = 6, columns: int = 5, rank: int = RANK) -> Layers:
    """Targets of the given rank, unlike each other."""
    generator = np.random.default_rng(11)
    targets = [
        generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns)) for _ in counts
    ]
    return Layers(tuple(targets), tuple(counts))


def layer_adapter(kind: AdapterKind, rows: int = 6, columns: int = 5) -> Adapter:
    a = TensorShape(name=A, rows=RANK, columns=columns)
    b = TensorShape(name=B, rows=rows, columns=RANK)
    only_b = kind in ("ffa-lora", "fedsvd")
    return Adapter(
        kind=kind,
        rank=RANK,
        alpha=RANK,
        target_modules=("layer",),
        seed=bytes(range(32)),
        trainable=(b,) if only_b else (a, b),
        frozen=(a,) if only_b else (),
        sketch=4 * RANK if kind == "product" else 0,
    )


class FactorIterate:
    """What ``AdaptedModel`` is to an algorithm: both factors, and the trained ones flat."""

    mixture = False

    def __init__(self, adapter: Adapter, vector: NDArray[np.float32], version: int) -> None:
        self.adapter = adapter
        found = vector_to_tensors(adapter, vector)
        self.now = {name: value.astype(np.float64) for name, value in found.items()}
        self.shapes = trained(adapter, version)
        whole = size(self.shapes)
        self.length = whole if adapter.kind == "product" else sent_length(adapter)

    def pack(self, values: Mapping[str, Vector]) -> Tensor:
        flat = np.concatenate([values[shape.name].ravel() for shape in self.shapes])
        return torch.from_numpy(np.pad(flat, (0, self.length - len(flat))))

    def flat(self) -> Tensor:
        return self.pack(self.now)

    def add(self, change: Tensor) -> None:
        at = 0
        for shape in self.shapes:
            count = shape.rows * shape.columns
            part = change[at : at + count].numpy().reshape(shape.rows, shape.columns)
            self.now[shape.name] = self.now[shape.name] + part
            at += count

    def tensors(self) -> dict[str, Vector]:
        return dict(self.now)


class FactorGradients:
    """What ``ExampleGradients`` is to an algorithm."""

    def __init__(self, target: Vector, iterate: FactorIterate) -> None:
        self._target, self._iterate = target, iterate

    def __enter__(self) -> FactorGradients:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, rows: Sequence[Row]) -> Tensor:
        a, b = self._iterate.now[A], self._iterate.now[B]
        residue = b @ a - self._target
        one = self._iterate.pack({A: b.T @ residue, B: residue @ a.T})
        self._found = one.expand(len(rows), -1)
        return torch.full((len(rows),), float((residue**2).sum()) / 2, dtype=torch.float64)

    def flat(self) -> Tensor:
        return self._found


class LayerFederation(Federation):
    """A task in one form of LoRA over the devices of ``Layers``."""

    def __init__(
        self, problem: Layers, algorithm: str, kind: AdapterKind, *args: Any, **changes: Any
    ) -> None:
        super().__init__(
            problem,  # type: ignore[arg-type]
            algorithm,
            *args,
            adapter=layer_adapter(kind),
            **changes,
        )

    def model_of(self, device: int) -> tuple[Any, Any]:
        assert self.manifest.adapter is not None
        iterate = FactorIterate(self.manifest.adapter, self.vector, self.version)
        return iterate, FactorGradients(self.problem.targets[device], iterate)  # type: ignore[attr-defined]

    def contributions(self) -> list[Values]:
        """As the trainer: the form ``product`` sketches what the algorithm found."""
        found: list[Values] = []
        for k in range(self.problem.devices):
            work = self.work(k)
            start = work.adapted.tensors()
            values = ALGORITHMS[self.manifest.algorithm](self.manifest, work)
            if work.adapted.adapter.kind == "product":
                values = sketched(self.manifest, work, start, values)
            found.append(values)
        return found

    def factors(self) -> tuple[Vector, Vector]:
        """(B, A) of the present version."""
        assert self.manifest.adapter is not None
        found = vector_to_tensors(self.manifest.adapter, self.vector)
        return found[B].astype(np.float64), found[A].astype(np.float64)

    def product(self) -> Vector:
        b, a = self.factors()
        return b @ a
