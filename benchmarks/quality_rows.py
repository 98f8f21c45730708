"""The rows of the quality table, and the task that each one is at a given epsilon.

Two families can be compared within themselves: rows of several local steps between releases
(privacy by noise on every device), and rows of one step per release (privacy by noise in
the sum). All rows take the same number of gradient steps on every device, but for FedNova
without privacy, whose devices take two or three a release by the size of their data: 6 to 9 in all
on tiny (8 elsewhere), 4 to 6 on SmolLM2 (4 elsewhere).

Rows of batches compare how one-step rows choose a step's examples: a secret Poisson batch, or
parts that serve in turn (:mod:`dp.schedule`), at one epsilon without amplification.

A row's *rate* is its one step size that is tuned: the local rate with several local steps, the
server's rate in FedAdam (its local rate is fixed), in zeroth order, and in one-step rows under
privacy, where the sum is divided by about its number of examples. What tuning costs in privacy is
not counted, as in the papers. At another clip than 1 the rate is given per clip: the server's is
rate / clip, so that an example at the clip moves the model as far.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import nacl.signing

from benchmarks.frozen import freeze_below
from client_sdk.training.algorithms import ALGORITHMS as DEVICE_HALVES
from client_sdk.training.lora import adapter_spec, base_fingerprint
from dp.accounting.statements import headline, lines
from dp.contracts import (
    ALGORITHMS,
    BudgetSpec,
    CohortSpec,
    TaskSpec,
    TrainingSpec,
    build_manifest,
)
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError
from secagg.manifest import AdapterKind, BaseModel, Manifest
from secagg_cli.models.cache import ensure_model, load_model
from secagg_cli.models.presets import preset_for

DELTA = 1e-5
BATCH, SAMPLING_RATE, CLIP, MAX_TOKENS = 24, 0.25, 1.0, 64
DIRECTIONS = {"tiny": 8, "smollm2": 2}  # K directions take 2 K + 1 forward passes
ADAPTED_LAYERS = {"smollm2": 4}  # the last ones; the others are frozen, and in tiny there are none
UNEQUAL_STEPS_MAX = 3  # one pass over 35 to 141 pairs in batches of 24, cut at three steps


@dataclass(frozen=True)
class Row:
    """``local_rate``: fixed, where the rate is the server's. ``epochs``: unequal local steps.

    ``parts``: into how many a device divides its examples, one for each step; 1: all are in every
    step; 0: a secret batch is drawn at ``SAMPLING_RATE``.
    """

    name: str
    algorithm: str  # without privacy
    private: str | None  # with example-level privacy; None: there is none for this row
    kind: AdapterKind = "ffa-lora"
    local_steps: int = 2
    local_rate: float | None = None
    epochs: int = 0
    where: Literal["federated", "alone", "pooled"] = "federated"
    parts: int = 0

    @property
    def distributed(self) -> bool:
        """Whether noise, if any, is added in the sum."""
        return self.private in ("fedsgd", "zeroth-order")

    @property
    def noise(self) -> str:
        return (
            f"noise {'in the sum (distributed)' if self.distributed else 'on every device (local)'}"
        )

    @property
    def batch(self) -> str:
        """What a one-step row's step is made of."""
        if self.parts == 0:
            return f"Poisson, rate {SAMPLING_RATE:g}"
        return "all examples" if self.parts == 1 else f"one part of {self.parts}"

    @property
    def label(self) -> str:
        """In a curve."""
        return f"{self.name}: {self.batch if self in BATCH_ROWS else self.noise}"

    def passes(self, steps: int) -> float:
        """How often ``steps`` one-step releases take an example's gradient, on average."""
        return steps / self.parts if self.parts else steps * SAMPLING_RATE

    @property
    def exists(self) -> bool:
        """Whether this version has both halves of the algorithm."""
        return self.algorithm in ALGORITHMS and self.algorithm in DEVICE_HALVES


ROWS = (
    Row("local only", "fedavg", "fedavg", where="alone"),
    Row("centralised", "fedavg", "fedavg", where="pooled"),
    Row("FedAvg", "fedavg", "fedavg"),
    Row("FedAvg plain LoRA", "fedavg", "fedavg", kind="lora"),
    Row("FedProx", "fedprox", "fedprox"),
    Row("SCAFFOLD", "scaffold", "scaffold"),
    Row("FedNova", "fednova", "fednova", epochs=1),
    Row("FedAdam", "fedadam", "fedadam", local_rate=2.0),
    Row("FedBuff", "fedbuff", "fedbuff"),
    Row("exact product", "fedavg", None, kind="product"),
    Row("plain LoRA", "fedavg", "fedsgd", kind="lora", local_steps=1),
    Row("FFA-LoRA", "fedavg", "fedsgd", local_steps=1),
    Row("RoLoRA", "fedavg", "fedsgd", kind="rolora", local_steps=1),
    Row("FedSVD", "fedavg", "fedsgd", kind="fedsvd", local_steps=1),
    Row("zeroth order", "zeroth-order", "zeroth-order", local_steps=1),
)

BATCH_ROWS = tuple(
    Row(f"{form} {batch}", "fedavg", "fedsgd", kind=kind, local_steps=1, parts=parts)
    for form, kind in (("FFA-LoRA", "ffa-lora"), ("FedSVD", "fedsvd"))
    for batch, parts in (("Poisson", 0), ("b=4", 4), ("b=2", 2), ("b=1", 1))
)


def row_named(name: str) -> Row:
    """Of either table."""
    return next(row for row in (*ROWS, *BATCH_ROWS) if row.name == name)


def releases_of(row: Row, steps: int, *, private: bool) -> tuple[int, int]:
    """Releases in which every device takes ``steps`` gradient steps, and most steps in each."""
    if row.epochs and not private:
        return -(-steps // UNEQUAL_STEPS_MAX), UNEQUAL_STEPS_MAX
    return max(1, steps // row.local_steps), row.local_steps


@cache
def model_of(name: str) -> tuple[Any, Any, bytes]:
    """The base model, its tokenizer and its fingerprint."""
    model, tokenizer = load_model(ensure_model(name))
    if name in ADAPTED_LAYERS:
        freeze_below(model, ADAPTED_LAYERS[name], tokenizer.pad_token_id)
    return model, tokenizer, base_fingerprint(model)


def seeded(*label: object) -> Callable[[int], bytes]:
    """A repeatable source of coins for one device of one run: SHAKE-256 of a counter."""
    counter = 0
    prefix = repr(label).encode()

    def random_bytes(count: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(prefix + b"%d" % counter).digest(count)

    return random_bytes


def task_of(
    row: Row,
    model: str,
    clients: int,
    steps: int,
    seed: int,
    rate: float,
    epsilon: float | None,
    clip: float = CLIP,
) -> Manifest:
    """The manifest of a run, its noise the least that keeps the releases within ``epsilon``.

    Raises:
        ConfigurationError: the combination is refused.
    """
    noise = None if epsilon is None else noise_for(row, model, clients, steps, epsilon)
    return _manifest(row, model, clients, steps, seed, rate / clip, noise, clip=clip)


@cache
def noise_for(row: Row, model: str, clients: int, steps: int, epsilon: float) -> float:
    """The least noise multiplier (to 0.1 %) whose unamplified headline is within ``epsilon``.

    The headline does not depend on the sampling rate; at rate 1 nothing else is computed.
    """
    low, high = 0.3, 60.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        try:
            manifest = _manifest(row, model, clients, steps, 0, 1.0, middle, sampling_rate=1.0)
            cost = headline(lines(manifest, manifest.budget.releases_max))
        except ConfigurationError as error:
            if error.reason != "cost-infinite":
                raise
            cost = math.inf
        assert cost is not None
        low, high = (low, middle) if cost <= epsilon else (middle, high)
    return high


def _manifest(
    row: Row,
    model: str,
    clients: int,
    steps: int,
    seed: int,
    rate: float,
    noise: float | None,
    sampling_rate: float = SAMPLING_RATE,
    clip: float = CLIP,
) -> Manifest:
    algorithm = row.algorithm if noise is None else row.private
    if algorithm is None:
        raise ConfigurationError(
            "no-example-privacy", f"{row.name} has no example-level privacy here."
        )
    network, _, fingerprint = model_of(model)
    preset = preset_for(model).adapter
    distributed = noise is not None and row.distributed
    server_side = distributed or algorithm == "zeroth-order" or row.local_rate is not None
    releases, local_steps = releases_of(row, steps, private=noise is not None)
    denominator = 0.0
    if distributed:  # near the number of examples in a sum
        denominator = (80.0 / row.parts if row.parts else 20.0) * clients
    elif noise is not None and algorithm not in ("scaffold", "fedbuff"):
        denominator = float(clients)
    spec = TaskSpec(
        task="quality",
        algorithm=algorithm,
        privacy="none" if noise is None else "distributed" if distributed else "local",
        clip=clip,
        noise_multiplier=noise or 1.0,
        sampling_rate=1.0 if row.parts else sampling_rate,
        period=row.parts or 1,
        examples_max=256 if row.parts == 1 else 128,
        update_clip=512.0,
        cohort=CohortSpec(size_min=clients, size_max=clients, survivors_min=clients, corrupt_max=0),
        budget=BudgetSpec(max_epsilon=None, delta=DELTA, releases_max=releases),
        training=TrainingSpec(
            local_steps=local_steps,
            local_epochs=row.epochs if noise is None else 0,
            local_learning_rate=(row.local_rate or 1.0) if server_side else rate,
            batch_size=BATCH * (clients if row.where == "pooled" else 1),
            proximal_mu=0.05 if algorithm == "fedprox" else 0.0,
            server_learning_rate=rate if server_side else 1.0,
            denominator=denominator,
            max_tokens=MAX_TOKENS,
            micro_batch=8,
            directions=DIRECTIONS[model],
            perturbation=0.01,
            population=clients if algorithm == "scaffold" else 0,
        ),
        base_model=BaseModel(name=model, fingerprint=fingerprint),
        adapter=adapter_spec(
            network,
            row.kind,
            preset.rank,
            preset.alpha,
            preset.target_modules,
            hashlib.sha256(b"quality %d" % seed).digest(),
            sketch=preset.rank * (clients + 1) if row.kind == "product" else 0,
        ),
    )
    key = bytes(nacl.signing.SigningKey(bytes(32)).verify_key)
    return build_manifest(
        spec,
        created_at=0,
        task_key=key,
        ledger_verifier=verifier_key("quality", key),
        partner_keys=(key,),
    )
