"""The demo's training without masks and HTTP: norms of gradients, and what clip and rate end at.

    python -m benchmarks.demo_terms --clip 1 --rate 9

Devices, parts, drop-outs, the integer clip, the shares of noise and the server's step are the
demo's. All clips, rates and seeds are tried one after the other, 80 s of one core each on SmolLM2.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from aggregator.algorithms import StepInput, server_step
from benchmarks.quality import summed
from benchmarks.quality_rows import seeded
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.dataset import Input, encode_rows, open_dataset
from client_sdk.training.evaluation import evaluate
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.lora import base_fingerprint
from dp.contracts import TaskSpec
from dp.example_sum import ExampleSum
from dp.schedule import period_of, places_of, schedule_of
from secagg.lora.forms import vector_length
from secagg.manifest import Manifest, training_manifest
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import DemoOptions, draft, task_spec
from secagg_cli.models.cache import ensure_model, load_model
from secagg_cli.models.corpus import load_clients

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_TOGETHER = 8  # rows in a pass


class Demo:
    """One model, the demo's devices and their rows."""

    def __init__(self, options: DemoOptions) -> None:
        self.model, self.tokenizer = load_model(ensure_model(options.model))
        self.plan, _ = plan_kills(options.clients, options.drop)
        # As many devices drop as the noise is planned for, so none is to be taken off.
        self.spec = replace(task_spec(options, self.plan, self.model), removable_noise=False)
        clients = load_clients(options.clients)
        self.heldout = [pair for client in clients for pair in client.heldout]
        tokens = self.spec.training.max_tokens
        takes = Input.of(self.model)
        self.rows = [
            encode_rows(self.tokenizer, open_dataset(client.train), tokens, takes)[0]
            for client in clients
        ]
        manifest = training_manifest(draft(self.spec))
        self.adapted = AdaptedModel(self.model, manifest, base_fingerprint(self.model))

    def train(self, spec: TaskSpec, seed: int) -> Iterator[str]:
        """A line for each release, and one for the end."""
        assert spec.adapter is not None
        adapter = replace(spec.adapter, seed=hashlib.sha256(b"demo %d" % seed).digest())
        manifest = training_manifest(draft(replace(spec, adapter=adapter)))
        self.adapted.adapter = manifest.adapter
        vector = np.zeros(vector_length(manifest.adapter), np.float32)
        coins = [seeded("demo", seed, device) for device in range(len(self.rows))]
        for version in range(manifest.budget.releases_max):
            self.adapted.load(vector)
            present = sorted(set(range(len(self.rows))) - self.plan.victims(version + 1))
            given, norms = [], []
            for device in present:
                values, own = self._contribution(manifest, device, version, coins[device])
                given.append(values)
                norms += own
            sums = summed(manifest, given, [coins[device] for device in present], version)
            state: Any = {}
            step = server_step(StepInput(manifest, vector, state, sums, version, len(present)))
            vector = step.vector
            found = ", ".join(f"{norm:.2f}" for norm in np.quantile(norms, _QUANTILES))
            yield f"release {version + 1}: {len(norms)} examples, norms {found}"
        self.adapted.load(vector)
        loss = evaluate(self.adapted.model, self.tokenizer, self.heldout)
        yield f"held-out loss {loss:.3f}"

    def _contribution(
        self, manifest: Manifest, device: int, version: int, random_bytes: Any
    ) -> tuple[dict[str, NDArray[Any]], list[float]]:
        privacy, period = manifest.example_privacy, period_of(manifest)
        assert privacy is not None
        rows, seed = self.rows[device], bytes.fromhex(schedule_of(manifest))
        places = places_of(version % period, len(rows), period, privacy.examples_max, seed)
        chosen = sorted((rows[i] for i in places if rows[i].tokens), key=lambda r: len(r.tokens))
        total, norms = ExampleSum(manifest, random_bytes), []
        with ExampleGradients(
            self.adapted.model, self.adapted.parameters, pad_token=self.tokenizer.pad_token_id
        ) as gradients:
            for start in range(0, len(chosen), _TOGETHER):
                gradients.run(chosen[start : start + _TOGETHER])
                for gradient in gradients.flat().numpy():
                    norms.append(float(np.linalg.norm(gradient)))
                    total.add(gradient)
        return dict(total.values()), norms


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2", choices=("smollm2", "tiny"))
    parser.add_argument("--form", default="ffa-lora", choices=("ffa-lora", "fedsvd"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--period", type=int, help="default: as the demo's rounds have it")
    parser.add_argument("--clip", type=_numbers, help="comma between; default: the preset's")
    parser.add_argument("--rate", type=_numbers, help="of the server; default: the preset's")
    parser.add_argument("--noise", type=_numbers, help="multiplier; default: the preset's")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = DemoOptions(args.model, 6, args.rounds, 0.3, 0.0, None, form=args.form)
    demo = Demo(dataclasses.replace(options, period=args.period))
    preset = demo.spec
    for clip in args.clip or (preset.clip,):
        for rate in args.rate or (preset.training.server_learning_rate,):
            for noise in args.noise or (preset.noise_multiplier,):
                training = replace(preset.training, server_learning_rate=rate)
                spec = replace(preset, clip=clip, noise_multiplier=noise, training=training)
                spec = replace(spec, budget=replace(spec.budget, max_epsilon=None))
                for seed in range(args.seeds):
                    print(f"clip {clip:g}, rate {rate:g}, noise {noise:g}, seed {seed}")
                    for line in demo.train(spec, seed):
                        print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
