"""What each algorithm learns at each epsilon: real runs, their lines in a file, a table, a chart.

    python -m benchmarks.quality run --model tiny
    python -m benchmarks.quality table --model tiny --into docs/algorithms.md
    python -m benchmarks.quality run --model smollm2                    # four hours of one core
    python -m benchmarks.quality compare --model smollm2 --against FFA-LoRA
    python -m benchmarks.quality curve --model smollm2 --rows FedAvg,FFA-LoRA --epsilons 1,3,8,inf
    python -m benchmarks.quality run --model smollm2 --batches          # scheduled, Poisson, whole

Devices are the topics of the English ``chatterbot-corpus``, or with ``--data foldoc`` subjects of
Debian's ``dict-foldoc``, where that is installed. Every run goes through the real halves:
the trainer's contribution, its encoding with its share of noise, the sum in the ring, the decoding
and the server's step. Masks cancel and change no sum, so they are left out, and so is HTTP. How
rates are chosen is in ``benchmarks.quality_plan``. A run that has its line is not repeated: stop
and go on as you like, or start several processes at once.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from aggregator.algorithms import StepInput, server_step
from benchmarks.foldoc import load_subjects
from benchmarks.quality_chart import curve, is_chart
from benchmarks.quality_plan import BATCH_PLANS, PLANS, Cell, Key, Plan, Results, mean, missing
from benchmarks.quality_report import differences, write_batches, write_report
from benchmarks.quality_rows import (
    BATCH_ROWS,
    MAX_TOKENS,
    ROWS,
    model_of,
    row_named,
    seeded,
    task_of,
)
from client_sdk.contribution import TrainingJob, check_values
from client_sdk.outputs import write_file
from client_sdk.payload import weighed
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.evaluation import evaluate
from client_sdk.training.examples import encode_example
from client_sdk.training.trainer import LoraTrainer
from dp.accounting.figures import lower, upper
from dp.accounting.statements import headline, lines
from dp.contracts.algorithms.registry import has_control
from dp.contracts.algorithms.scaffold import control_step
from dp.encoding import decode, encode
from dp.schedule import period_of
from secagg.errors import ConfigurationError, SecaggError
from secagg.lora.forms import pairs, vector_length, vector_to_tensors
from secagg.manifest import Manifest
from secagg.ring import add_into, packed_size, payload_length
from secagg_cli.models.corpus import Pair, load_clients

RESULTS = Path(__file__).resolve().parent / "quality-results"
_VALIDATION_SHARE, _VALIDATION_MIN = 0.12, 4
_DIGITS = 4
_STEPS = {"tiny": 8, "smollm2": 4}
DATA = {"chatterbot": load_clients, "foldoc": load_subjects}


class Run:
    """One row at one epsilon, rate and seed."""

    def __init__(
        self, key: Key, model: str, clients: int, steps: int, data: str = "chatterbot"
    ) -> None:
        self.row = row_named(key.row)
        self.key, self.model, self.clients, self.steps = key, model, clients, steps
        self.data = data

    def measure(self) -> dict[str, Any]:
        """Train and evaluate.

        Raises:
            ConfigurationError: the combination is refused.
            SecaggError: the training diverged.
        """
        row, key = self.row, self.key
        manifest = task_of(
            row, self.model, self.clients, self.steps, key.seed, key.rate, key.epsilon, key.clip
        )
        base, tokenizer, fingerprint = model_of(self.model)
        rows, pairs_ = data_of(self.clients, key.seed, key.phase, self.data)
        if row.where == "pooled":
            rows = ([pair for part in rows for pair in part],)
        releases = manifest.budget.releases_max
        cpu = time.process_time()
        vectors, extra = self._train(manifest, base, tokenizer, rows, releases)
        seconds = (time.process_time() - cpu) / len(rows)
        losses = []
        adapted = AdaptedModel(copy.deepcopy(base), manifest, fingerprint)
        for vector in vectors:
            adapted.load(vector)
            losses.append(evaluate(adapted.model, tokenizer, pairs_))
        federated = row.where == "federated"
        bits, slices = manifest.encoding.ring_bits, manifest.encoding.slice_length
        up = packed_size(payload_length(manifest.data_length, slices), bits) * releases
        down = 4 * len(vectors[0]) * releases * (2 if has_control(manifest) else 1)
        cost = headline(lines(manifest, releases))
        privacy = manifest.example_privacy
        return {
            "loss": round(float(np.mean(losses)), _DIGITS),
            "spent": None if cost is None else upper(cost, _DIGITS),
            "noise_multiplier": lower(privacy.noise_multiplier, _DIGITS) if privacy else 0.0,
            "bytes_up": up if federated else 0,
            "bytes_down": down if federated else 0,
            "device_seconds": round(seconds, 2),
            "releases": releases,
            **extra,
        }

    def _train(
        self,
        manifest: Manifest,
        base: Any,
        tokenizer: Any,
        rows: Sequence[list[Pair]],
        releases: int,
    ) -> tuple[list[NDArray[np.float32]], dict[str, float]]:
        """The global vectors at the end: one, or one per device that trains alone."""
        assert manifest.adapter is not None
        assert manifest.training is not None
        zero = np.zeros(vector_length(manifest.adapter), np.float32)
        vectors = [zero] * (len(rows) if self.row.where == "alone" else 1)
        optimiser: Any = {}
        extra: dict[str, float] = {}
        coins = [seeded(self.row.name, self.key.seed, k) for k in range(len(rows))]
        trainers = [
            LoraTrainer(copy.deepcopy(base), tokenizer, dataset, threads=1, random_bytes=source)
            for dataset, source in zip(rows, coins, strict=True)
        ]
        has_versions = manifest.cohort.versions_back > 0  # then every second device is one behind
        older = zero
        control = np.zeros(len(zero))
        own = [np.zeros(len(zero)) for _ in rows]
        for version in range(releases):
            contributions = []
            for k, trainer in enumerate(trainers):
                vector = vectors[k if self.row.where == "alone" else 0]
                behind = int(has_versions and version > 0 and k % 2)
                if behind:
                    vector = older
                correction = control - own[k] if has_control(manifest) else None
                job = TrainingJob(
                    manifest,
                    version - behind,
                    vector,
                    version,
                    correction=correction,
                    part=version % period_of(manifest),
                )
                values = check_values(manifest, trainer.contribute(job))
                contributions.append(weighed(manifest, values, behind) if has_versions else values)
            if self.row.where == "federated":
                if manifest.adapter.kind == "lora" and "delta" in contributions[0]:
                    error = product_error(manifest, vectors[0], contributions)
                    extra["product_error"] = round(error, _DIGITS)
                sums = summed(manifest, contributions, coins, version)
                present = len(contributions)
                step = server_step(
                    StepInput(manifest, vectors[0], optimiser, sums, version, present)
                )
                older = vectors[0]
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


@cache
def data_of(
    clients: int, seed: int, phase: str, data: str = "chatterbot"
) -> tuple[tuple[list[Pair], ...], list[Pair]]:
    """Training pairs of each device, and the pairs that judge: validation or test.

    The test pairs are the same for all seeds and are in no device's data. Of the rest the seed
    draws a validation part, whole questions, which no run of that seed trains on.
    """
    training, judging = [], []
    for client in DATA[data](clients):
        questions = {question.casefold() for question, _ in client.train}
        count = max(_VALIDATION_MIN, round(_VALIDATION_SHARE * len(questions)))
        chosen = set(sorted(questions, key=lambda q: _place(seed, q))[:count])
        validation = [pair for pair in client.train if pair[0].casefold() in chosen]
        training.append([pair for pair in client.train if pair[0].casefold() not in chosen])
        judging += validation if phase == "tune" else client.heldout
    return tuple(training), judging


def _place(seed: int, question: str) -> bytes:
    return hashlib.sha256(f"validation {seed}\n{question}".encode()).digest()


def references(model: str, clients: int, data: str = "chatterbot") -> dict[str, float]:
    """Losses on the test pairs without any federated training.

    ``token frequencies`` guesses every token by how often it is in the devices' answers (add-one
    smoothing), whatever the question: what is above it has not learnt more than that.
    """
    base, tokenizer, _ = model_of(model)
    training, test = data_of(clients, 0, "test", data)
    counts = np.ones(len(tokenizer))
    for token in (t for part in training for pair in part for t in _answer(tokenizer, pair)):
        counts[token] += 1
    surprise = -np.log(counts / counts.sum())
    answers = [_answer(tokenizer, pair) for pair in test]
    return {
        "base model": evaluate(base, tokenizer, test),
        "token frequencies": float(np.mean([surprise[answer].mean() for answer in answers])),
    }


def at_clip_1(
    model: str, path: Path, epsilons: Sequence[float | None]
) -> tuple[list[Cell], dict[str, float]]:
    """FFA-LoRA in the table of all algorithms: its cells, and its loss without noise and clip."""
    plan, found = PLANS[model], Results(path).all()
    free = Cell(plan, found, "FFA-LoRA", None)
    return [Cell(plan, found, "FFA-LoRA", e) for e in epsilons], {"no noise, no clip": mean(free)}


def _answer(tokenizer: Any, pair: Pair) -> list[int]:
    """The tokens that count in the loss."""
    row = encode_example(tokenizer, pair, MAX_TOKENS)
    return [token for token, counted in zip(row.tokens, row.counts, strict=True) if counted]


def run_all(args: argparse.Namespace, plan: Plan, results: Results) -> None:
    """Every run that is missing; several processes share the work."""
    rows = BATCH_ROWS if args.batches else ROWS
    chosen = [r.name for r in rows if r.exists and (not args.rows or r.name in args.rows)]
    torch.set_num_threads(1)
    while True:
        todo = missing(plan, results.all(), chosen)
        taken = next((claim for key in todo if (claim := _claim(results.path, key))), None)
        if taken is None:
            return
        key, lock = taken
        with lock:
            if key not in results.all():  # else another process has just ended it
                _one(Run(key, args.model, args.clients, args.steps, args.data), results)


def _claim(path: Path, key: Key) -> tuple[Key, IO[bytes]] | None:
    """The run for this process alone; the lock goes with the process, however it ends."""
    folder = Path(tempfile.gettempdir()) / f"quality-claims-{path.stem}"
    folder.mkdir(exist_ok=True)
    file = (folder / hashlib.sha256(repr(key).encode()).hexdigest()[:24]).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return key, file


def _one(run: Run, results: Results) -> None:
    started = time.monotonic()
    try:
        result = run.measure()
    except ConfigurationError as error:
        result = {"refused": error.reason}
    except SecaggError as error:
        result = {"loss": None, "failed": error.reason}
    result["load"] = round(os.getloadavg()[0], 1)
    results.add(run.key, result)
    print(f"{time.monotonic() - started:6.1f} s  {run.key}: {result}", flush=True)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _epsilons(text: str) -> tuple[float | None, ...]:
    """Largest first, ``inf`` (no privacy) before all."""
    numbers = sorted(_numbers(text), reverse=True)
    return tuple(None if math.isinf(number) else number for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "table", "compare", "curve"))
    parser.add_argument("--model", default="tiny", choices=sorted(PLANS))
    parser.add_argument("--data", default="chatterbot", choices=sorted(DATA))
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--steps", type=int, help="gradient steps on every device; default 8 or 4")
    parser.add_argument("--seeds", type=int, help="that are reported; default 5 or 3")
    parser.add_argument("--rates", type=_numbers, help="comma between; one: no tuning")
    parser.add_argument("--epsilons", type=_epsilons, help="comma between; default 3,8,inf")
    parser.add_argument(
        "--batches", action="store_true", help="the rows of batches, not the others"
    )
    parser.add_argument("--clip", type=float, help="of an example, with --batches; default: chosen")
    parser.add_argument(
        "--rows", type=lambda text: text.split(","), help="names, comma between; default all"
    )
    parser.add_argument("--into", type=Path, help="Markdown file to update; of a curve, SVG file")
    parser.add_argument("--against", default="FedAvg", help="row that others are compared with")
    args = parser.parse_args()
    plan, rows = (BATCH_PLANS if args.batches else PLANS)[args.model], ROWS
    if args.batches:
        plan, rows = replace(plan, clip=args.clip or plan.clip), BATCH_ROWS
    if args.seeds is not None:
        plan = replace(plan, seeds=tuple(range(args.seeds)))
    plan = replace(plan, rates=args.rates or plan.rates, epsilons=args.epsilons or plan.epsilons)
    args.steps = args.steps or _STEPS[args.model]
    name = args.model if args.data == "chatterbot" else f"{args.model}-{args.data}"
    kind = "-batches" if args.batches else ""
    results = Results(RESULTS / f"{name}-{args.clients}x{args.steps}{kind}.jsonl")
    if args.command == "run":
        run_all(args, plan, results)
    if args.command == "compare":
        print(differences(plan, results, args.against, rows))
        return
    if args.command == "curve":
        found, chosen = results.all(), [row for row in rows if row.name in args.rows]
        shown = {r.label: [Cell(plan, found, r.name, e) for e in plan.epsilons] for r in chosen}
        known = {"base model": references(args.model, args.clients, args.data)["base model"]}
        if args.batches:
            path = RESULTS / f"{name}-{args.clients}x{args.steps}.jsonl"
            shown["FFA-LoRA Poisson, clip 1"], more = at_clip_1(args.model, path, plan.epsilons)
            known |= more
        write_file(args.into, curve(shown, known, results.path.stem).encode(), is_chart)
    elif args.batches:
        write_batches(plan, results, args.steps, args.into)
    else:
        write_report(plan, results, references(args.model, args.clients, args.data), args.into)


if __name__ == "__main__":
    main()
