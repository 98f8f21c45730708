"""What each algorithm learns at each epsilon: real runs, one file per run, a table and a chart.

    python -m benchmarks.quality run --model tiny --seeds 3
    python -m benchmarks.quality table --model tiny

Devices are the topics of the English ``chatterbot-corpus``. Every run goes through the real halves:
the trainer's contribution, its encoding with its share of noise, the sum in the ring, the decoding
and the server's step. Masks cancel and change no sum, so they are left out, and so is HTTP. A run
that has its file is not repeated: stop and go on as you like, or start several at once with other
seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms import server_step
from benchmarks.quality_report import write_report
from benchmarks.quality_rows import ROWS, Row, model_of, seeded, task_of
from client_sdk.adapted import AdaptedModel
from client_sdk.contribution import TrainingJob, check_values
from client_sdk.evaluation import evaluate
from client_sdk.trainer import LoraTrainer
from dp.accounting import headline, lines
from dp.contracts.scaffold import control_step, has_control
from dp.mechanisms import decode, encode
from secagg.adapter import pairs, vector_length, vector_to_tensors
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg.ring import add_into, packed_size, payload_length
from secagg_cli.corpus import load_clients

EPSILONS: tuple[float | None, ...] = (None, 8.0, 3.0)
RESULTS = Path("benchmarks/results/quality")


class Run:
    """One row at one epsilon, rate and seed."""

    def __init__(
        self,
        row: Row,
        model: str,
        clients: int,
        steps: int,
        seed: int,
        rate: float,
        epsilon: float | None,
    ) -> None:
        self.row, self.model, self.clients, self.steps = row, model, clients, steps
        self.seed, self.rate, self.epsilon = seed, rate, epsilon
        name = f"{row.name.replace(' ', '-').lower()}_eps{epsilon or 'inf'}_rate{rate}_seed{seed}"
        self.path = RESULTS / f"{model}-{clients}x{steps}" / f"{name}.json"

    def measure(self) -> dict[str, Any]:
        """Train and evaluate.

        Raises:
            ConfigurationError: the combination is refused.
        """
        row = self.row
        manifest = task_of(
            row, self.model, self.clients, self.steps, self.seed, self.rate, self.epsilon
        )
        base, tokenizer, fingerprint = model_of(self.model)
        data = load_clients(self.clients, self.seed)
        rows = [client.train for client in data]
        if row.where == "pooled":
            rows = [[pair for part in rows for pair in part]]
        heldout = [pair for client in data for pair in client.heldout]
        releases = manifest.budget.releases_max
        cpu = time.process_time()
        vectors, extra = self._train(manifest, base, tokenizer, rows, releases)
        seconds = (time.process_time() - cpu) / len(rows)
        losses = []
        adapted = AdaptedModel(copy.deepcopy(base), manifest, fingerprint)
        for vector in vectors:
            adapted.load(vector)
            losses.append(evaluate(adapted.model, tokenizer, heldout))
        federated = row.where == "federated"
        bits, slices = manifest.encoding.ring_bits, manifest.encoding.slice_length
        up = packed_size(payload_length(manifest.data_length, slices), bits) * releases
        down = 4 * len(vectors[0]) * releases
        cost = headline(lines(manifest, releases))
        return {
            "row": row.name,
            "epsilon": self.epsilon,
            "spent": cost,
            "noise_multiplier": (
                manifest.example_privacy.noise_multiplier if manifest.example_privacy else 0.0
            ),
            "rate": self.rate,
            "seed": self.seed,
            "loss": float(np.mean(losses)),
            "before": evaluate(base, tokenizer, heldout),
            "bytes_up": up if federated else 0,
            "bytes_down": down if federated else 0,
            "device_seconds": seconds,
            "releases": releases,
            **extra,
        }

    def _train(
        self, manifest: Manifest, base: Any, tokenizer: Any, rows: list[Any], releases: int
    ) -> tuple[list[NDArray[np.float32]], dict[str, float]]:
        """The global vectors at the end: one, or one per device that trains alone."""
        assert manifest.adapter is not None
        assert manifest.training is not None
        zero = np.zeros(vector_length(manifest.adapter), np.float32)
        vectors = [zero] * (len(rows) if self.row.where == "alone" else 1)
        optimiser: Any = {}
        extra: dict[str, float] = {}
        coins = [seeded(self.row.name, self.seed, k) for k in range(len(rows))]
        trainers = [
            LoraTrainer(copy.deepcopy(base), tokenizer, dataset, threads=1, random_bytes=source)
            for dataset, source in zip(rows, coins, strict=True)
        ]
        control = np.zeros(len(zero))
        own = [np.zeros(len(zero)) for _ in rows]
        for version in range(releases):
            contributions = []
            for k, trainer in enumerate(trainers):
                vector = vectors[k if self.row.where == "alone" else 0]
                correction = control - own[k] if has_control(manifest) else None
                job = TrainingJob(manifest, version, vector, version, correction=correction)
                contributions.append(check_values(manifest, trainer.contribute(job)))
            if self.row.where == "federated":
                if manifest.adapter.kind == "lora" and "delta" in contributions[0]:
                    extra["product_error"] = product_error(manifest, vectors[0], contributions)
                sums = summed(manifest, contributions, coins, version)
                present = len(contributions)
                step = server_step(manifest, vectors[0], optimiser, sums, version, present)
                vectors, optimiser = [step.vector], step.optimiser
                if has_control(manifest):  # as sent, but for the rounding
                    for k, values in enumerate(contributions):
                        own[k] -= control + values["delta"] / control_step(manifest.training)
                    control = step.optimiser["control"]
            else:
                vectors = [
                    (vector + _delta(values)).astype(np.float32)
                    for vector, values in zip(vectors, contributions, strict=True)
                ]
        return vectors, extra


def _delta(values: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    weight = float(values["weight"][0]) if "weight" in values else 1.0
    return np.asarray(values["delta"] / weight)


def summed(
    manifest: Manifest, contributions: list[dict[str, NDArray[Any]]], coins: list[Any], version: int
) -> dict[str, NDArray[np.float64]]:
    """The decoded sum of the encoded contributions, each with its share of the noise."""
    total = None
    ctx = version.to_bytes(32, "little")
    for values, random_bytes in zip(contributions, coins, strict=True):
        lanes = encode(manifest, values, rotation_seed=ctx, random_bytes=random_bytes)
        if total is None:
            total = lanes
        else:
            add_into(total, lanes, manifest.encoding.ring_bits)
    assert total is not None
    return decode(manifest, total, survivors=len(contributions), rotation_seed=ctx)


def product_error(
    manifest: Manifest, vector: NDArray[np.float32], contributions: list[dict[str, NDArray[Any]]]
) -> float:
    """|mean B mean A - mean (B A)| / |mean (B A)| over all layers: what averaging factors costs."""
    adapter = manifest.adapter
    assert adapter is not None
    devices = [vector_to_tensors(adapter, vector + _delta(v)) for v in contributions]
    wrong = right = 0.0
    for pair in pairs(adapter):
        bs = [np.asarray(d[pair.b.name], np.float64) for d in devices]
        as_ = [np.asarray(d[pair.a.name], np.float64) for d in devices]
        mean = sum(b @ a for b, a in zip(bs, as_, strict=True)) / len(devices)
        difference = (sum(bs) / len(devices)) @ (sum(as_) / len(devices)) - mean
        wrong += float(np.sum(difference**2))
        right += float(np.sum(np.asarray(mean) ** 2))
    return math.sqrt(wrong / right) if right else 0.0


def run_all(args: argparse.Namespace) -> None:
    """Every run that has no file yet, seeds outermost so that a stopped table is an even one."""
    chosen = [row for row in ROWS if not args.rows or row.name in args.rows.split(",")]
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for epsilon in EPSILONS:
            for row in chosen:
                for rate in row.rates[: args.rates] if row.exists else ():
                    _one(Run(row, args.model, args.clients, args.steps, seed, rate, epsilon))


def _one(run: Run) -> None:
    if run.path.exists():
        return
    run.path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        result = run.measure()
    except ConfigurationError as error:
        result = {"row": run.row.name, "epsilon": run.epsilon, "refused": error.reason}
    staging = run.path.with_suffix(f".{os.getpid()}.tmp")
    staging.write_text(json.dumps(result, indent=1) + "\n")
    staging.rename(run.path)
    said = result.get("refused") or f"{result['loss']:.3f}"
    print(f"{time.monotonic() - started:6.1f} s  {run.path.stem}: {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--model", default="tiny", help="tiny or smollm2")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="gradient steps on every device")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rates", type=int, default=None, help="use only the first so many rates")
    parser.add_argument("--rows", default="", help="names, comma between; default all")
    parser.add_argument("--into", type=Path, default=None, help="Markdown file to update")
    args = parser.parse_args()
    if args.command == "run":
        run_all(args)
    write_report(RESULTS / f"{args.model}-{args.clients}x{args.steps}", args.into)


if __name__ == "__main__":
    main()
