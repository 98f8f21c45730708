"""The trainer as a contributor: what a job is checked for, time, coins, modes."""

from __future__ import annotations

import os
import random
import threading

import msgspec
import numpy as np
import pytest
import torch

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.algorithms import ALGORITHMS, steps
from client_sdk.training.lora import vector_length
from client_sdk.training.trainer import THREADS_VARIABLE, LoraTrainer
from dp.contracts import ALGORITHMS as CONTRACTS
from dp.contracts import BudgetSpec
from dp.example_sum import ExampleSum
from dp.noise.sampling import examples_held_max
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import seeded
from tests.kits.tiny_training import (
    NEVER,
    job,
    server_step,
    summed,
    tiny,
    tiny_fingerprint,
    tiny_task,
    trainer,
)

CLIENTS = load_clients(6)
NO_LIMIT = BudgetSpec(max_epsilon=None)
PAIRS = CLIENTS[4].train[:20]


class TestJobsThatDoNotFit:
    def test_another_base_model_is_refused(self):
        it = trainer(PAIRS)
        with torch.no_grad():
            it._base.lm_head.weight[0, 0] += 1.0
        with pytest.raises(TaskRefusal, match="base-model"):
            it.contribute(job(tiny_task()))

    def test_a_task_without_an_adapter_is_refused(self):
        manifest = msgspec.structs.replace(tiny_task(), adapter=None)
        with pytest.raises(TaskRefusal, match="task-without-adapter"):
            trainer(PAIRS).contribute(job(manifest, np.zeros(0, np.float32)))

    def test_targets_that_are_not_linear_layers_are_refused(self):
        manifest = tiny_task()
        adapter = msgspec.structs.replace(manifest.adapter, target_modules=("embed_tokens",))
        manifest = msgspec.structs.replace(manifest, adapter=adapter)
        with pytest.raises(TaskRefusal, match="adapter-targets"):
            trainer(PAIRS).contribute(job(manifest))

    def test_a_list_of_tensors_that_misses_one_is_refused(self):
        manifest = tiny_task()
        adapter = msgspec.structs.replace(
            manifest.adapter, trainable=manifest.adapter.trainable[1:]
        )
        manifest = msgspec.structs.replace(manifest, adapter=adapter)
        with pytest.raises(TaskRefusal, match="adapter-tensors"):
            trainer(PAIRS).contribute(job(manifest))

    def test_an_unknown_algorithm_is_refused(self):
        manifest = msgspec.structs.replace(tiny_task(), algorithm="sum")
        with pytest.raises(TaskRefusal, match="algorithm-unknown"):
            trainer(PAIRS).contribute(job(manifest))

    def test_a_vector_that_is_not_finite_is_refused(self):
        manifest = tiny_task()
        vector = np.full(vector_length(manifest.adapter), np.nan, np.float32)
        with pytest.raises(ContributionError, match="vector-not-finite"):
            trainer(PAIRS).contribute(job(manifest, vector))

    def test_modes_do_not_cross_algorithms(self):
        sums = msgspec.structs.replace(tiny_task("local"), algorithm="fedsgd")
        with pytest.raises(TaskRefusal, match="privacy-mode"):
            trainer(PAIRS).contribute(job(sums))
        averages = msgspec.structs.replace(tiny_task(), algorithm="fedavg")
        with pytest.raises(TaskRefusal, match="privacy-mode"):
            trainer(PAIRS).contribute(job(averages))

    def test_another_adapter_replaces_the_first_and_leaves_the_base_alone(self):
        it = trainer(PAIRS)
        first = it.contribute(job(tiny_task("none")))
        it.contribute(job(tiny_task("none", kind="lora")))
        again = it.contribute(job(tiny_task("none")))
        assert first["delta"].shape == again["delta"].shape
        fresh, _ = tiny()
        left = {
            name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
            for name, value in it.model.state_dict().items()
        }
        assert all(torch.equal(value, left[name]) for name, value in fresh.state_dict().items())


class TestTime:
    def test_a_late_trainer_stops_with_a_typed_error(self):
        ticks = iter(range(1_000))
        it = trainer(PAIRS, clock=lambda: float(next(ticks)))
        with pytest.raises(ContributionError, match="training-deadline"):
            it.contribute(job(tiny_task(sampling_rate=1.0), deadline_s=3.0))
        assert it.contribute(job(tiny_task(), deadline_s=1_000.0))["gradient"].any()

    def test_work_that_is_no_longer_wanted_stops(self):
        stop = threading.Event()
        stop.set()
        with pytest.raises(ContributionError, match="training-stopped"):
            trainer(PAIRS).contribute(job(tiny_task(sampling_rate=1.0), stop=stop))

    def test_threads_come_from_argument_or_environment(self, monkeypatch):
        model, tokenizer = tiny()
        monkeypatch.setenv(THREADS_VARIABLE, "none")
        with pytest.raises(ContributionError, match="threads"):
            LoraTrainer(model, tokenizer, PAIRS)
        monkeypatch.setenv(THREADS_VARIABLE, "1")
        LoraTrainer(model, tokenizer, PAIRS).contribute(job(tiny_task()))
        assert torch.get_num_threads() == 1


class TestCoins:
    def test_seeded_global_generators_repeat_nothing_of_ours(self):
        """``set_seed`` in a training script makes ordinary noise and batches the same for all."""
        totals = {mode: [] for mode in ("distributed", "local")}
        ordinary = []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            ordinary.append(torch.randn(8))
            for mode, found in totals.items():
                values = trainer(PAIRS, random_bytes=os.urandom).contribute(job(tiny_task(mode)))
                found.append(next(iter(values.values())))
        assert torch.equal(*ordinary)  # the violation
        for found in totals.values():
            assert (found[0] != found[1]).any()

    def test_the_rate_is_the_one_that_was_asked_for(self, monkeypatch):
        """1 / len(loader) rounds: asked for 0.3, four batches of five give 0.25."""
        sizes = []
        add = ExampleSum.add

        def counting(self, gradient):
            sizes[-1] += 1
            add(self, gradient)

        monkeypatch.setattr(ExampleSum, "add", counting)
        it = trainer(PAIRS, seed=5)
        manifest = tiny_task(sampling_rate=0.3)
        rounds = 40
        for _ in range(rounds):
            sizes.append(0)
            it.contribute(job(manifest))
        expected = 0.3 * len(PAIRS) * rounds
        deviation = np.sqrt(0.3 * 0.7 * len(PAIRS) * rounds)
        assert abs(sum(sizes) - expected) < 3 * deviation
        assert abs(sum(sizes) - 0.25 * len(PAIRS) * rounds) > 2 * deviation
        assert len(set(sizes)) > 5  # Poisson: not a fixed size


class TestDistributed:
    """Distributed: the integer sum of clipped gradients."""

    def test_the_total_is_the_sum_of_the_clipped_gradients(self):
        manifest = tiny_task(sampling_rate=1.0)
        total = trainer(PAIRS).contribute(job(manifest))["gradient"]
        looped = trainer(PAIRS, seed=1, method="loop").contribute(job(manifest))["gradient"]
        assert total.dtype == np.int64
        assert total.shape == (manifest.data_length,)
        scale = manifest.segments[0].scale
        # Stochastic rounding: one unit per coordinate and example at most.
        assert np.abs(total - looped).max() <= 2 * len(PAIRS)
        expected = _clipped_sum(manifest, PAIRS)
        assert np.linalg.norm(total / scale - expected) < 0.02 * np.linalg.norm(expected)

    def test_one_more_example_moves_the_total_by_at_most_the_clip(self):
        manifest = tiny_task(sampling_rate=1.0)
        bound = manifest.segments[0].clip_units
        for left_out in range(3):
            others = PAIRS[:left_out] + PAIRS[left_out + 1 : 6]
            # The same coins for the same places: the shorter set is padded by an empty answer.
            padded = [*others[:left_out], (PAIRS[left_out][0], ""), *others[left_out:]]
            assert len(padded) == 6
            with_it = ExampleSumLog.run(manifest, PAIRS[:6])
            without = ExampleSumLog.run(manifest, others)
            difference = with_it.total - without.total
            assert float((difference.astype(np.float64) ** 2).sum()) <= (1.05 * bound) ** 2
            assert all(
                int((v.astype(object) ** 2).sum()) <= bound * bound for v in with_it.examples
            )

    def test_an_empty_batch_is_a_zero_total(self):
        total = trainer(PAIRS[:1]).contribute(job(tiny_task(sampling_rate=NEVER)))["gradient"]
        assert not total.any()

    def test_data_beyond_the_rings_bound_is_left_out_by_place(self):
        manifest = tiny_task(sampling_rate=1.0, examples_max=8)
        assert examples_held_max(8, 1.0) == 8
        total = trainer(PAIRS).contribute(job(manifest))["gradient"] / manifest.segments[0].scale
        expected = _clipped_sum(manifest, PAIRS[:8])
        assert np.linalg.norm(total - expected) < 0.02 * np.linalg.norm(expected)

    def test_the_adapter_starts_from_the_vector_of_the_job(self):
        manifest = tiny_task(sampling_rate=1.0)
        it = trainer(PAIRS)
        start = it.contribute(job(manifest))["gradient"]
        vector = np.full(manifest.data_length, 0.05, np.float32)
        moved = it.contribute(job(manifest, vector))["gradient"]
        back = it.contribute(job(manifest))["gradient"]
        units = 2 * len(PAIRS)
        assert np.abs(start - moved).max() > units
        assert np.abs(start - back).max() <= units

    def test_held_out_loss_falls_in_four_noisy_rounds_with_two_of_six_lost(self):
        from client_sdk.training.evaluation import evaluate

        manifest = tiny_task()
        assert manifest.noise is not None
        devices = [trainer(client.train, seed=i) for i, client in enumerate(CLIENTS)]
        vector = np.zeros(manifest.data_length, np.float32)
        for release in range(4):
            alive = [devices[(release + i) % 6] for i in range(4)]
            values = [device.contribute(job(manifest, vector)) for device in alive]
            vector = server_step(manifest, vector, summed(manifest, values, seed=release))
        heldout = [pair for client in CLIENTS for pair in client.heldout]
        model, tokenizer = tiny()
        before = evaluate(model, tokenizer, heldout)
        adapted = AdaptedModel(model, manifest, tiny_fingerprint())
        adapted.load(vector)
        assert evaluate(adapted.model, tokenizer, heldout) < before - 0.1


class ExampleSumLog:
    """Contributes once and keeps every example's integers."""

    @staticmethod
    def run(manifest, pairs):
        log = ExampleSumLog()
        log.examples = []
        add = ExampleSum.add

        def keeping(self, gradient):
            before = self.total.copy()
            add(self, gradient)
            log.examples.append(self.total - before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExampleSum, "add", keeping)
            log.total = trainer(pairs, seed=3).contribute(job(manifest))["gradient"]
        return log


def _clipped_sum(manifest, pairs):
    """The reference: one backward pass per example, clip in float64."""
    from client_sdk.training.examples import encode_example
    from client_sdk.training.gradients import sequence_losses

    model, tokenizer = tiny()
    adapted = AdaptedModel(model, manifest, tiny_fingerprint())
    adapted.load(np.zeros(manifest.data_length, np.float32))
    total = np.zeros(manifest.data_length)
    for pair in pairs:
        loss = sequence_losses(adapted.model, [encode_example(tokenizer, pair, 64)], 0).sum()
        parts = torch.autograd.grad(loss, adapted.parameters)
        gradient = torch.cat([part.flatten() for part in parts]).double().numpy()
        total += gradient * min(1.0, manifest.segments[0].clip / np.linalg.norm(gradient))
    return total


class TestLocal:
    """Local: DP-SGD at the device."""

    def test_an_empty_batch_is_a_step_of_noise_of_the_promised_size(self):
        """Skipping it would tell that the batch was empty; Opacus raises instead."""
        manifest = tiny_task(
            "local",
            sampling_rate=NEVER,
            noise_multiplier=2.0,
            budget=NO_LIMIT,
            training={"local_steps": 3, "local_learning_rate": 0.5, "batch_size": 10},
        )
        delta = trainer(PAIRS).contribute(job(manifest))["delta"]
        expected = 2.0 * 1.0 * 0.5 / 10 * np.sqrt(3)  # z C, learning rate over divisor, steps
        assert delta.std() == pytest.approx(expected, rel=0.1)

    def test_noise_is_new_in_every_step_round_and_device(self):
        manifest = tiny_task("local", sampling_rate=NEVER, training={"local_steps": 1})
        deltas = [
            trainer(PAIRS, random_bytes=os.urandom).contribute(job(manifest))["delta"]
            for _ in range(2)
        ]
        assert abs(np.corrcoef(*deltas)[0, 1]) < 0.2

    def test_the_divisor_is_public(self):
        """Neither the size of the data nor of the batch shows in the noise."""
        manifest = tiny_task("local", sampling_rate=NEVER, training={"local_steps": 1})
        few = trainer(PAIRS[:1]).contribute(job(manifest))["delta"]
        many = trainer(PAIRS).contribute(job(manifest))["delta"]
        assert few.std() == pytest.approx(many.std(), rel=0.1)

    def test_training_moves_against_the_clipped_gradient(self):
        manifest = tiny_task(
            "local",
            sampling_rate=1.0,
            training={"local_steps": 1, "local_learning_rate": 1.0, "batch_size": len(PAIRS)},
        )
        quiet = msgspec.structs.replace(manifest.example_privacy, noise_multiplier=0.01)
        manifest = msgspec.structs.replace(manifest, example_privacy=quiet)
        delta = trainer(PAIRS).contribute(job(manifest))["delta"]
        expected = -_clipped_sum(tiny_task(), PAIRS) / len(PAIRS)
        cosine = delta @ expected / np.linalg.norm(delta) / np.linalg.norm(expected)
        assert cosine > 0.99
        assert np.linalg.norm(delta) == pytest.approx(np.linalg.norm(expected), rel=0.02)

    def test_only_the_delta_is_sent(self):
        assert list(trainer(PAIRS).contribute(job(tiny_task("local")))) == ["delta"]


class TestProximal:
    def test_the_pull_survives_per_example_gradients(self):
        """Inside the loss, gradients rebuilt from per-example ones lose it without a word."""
        steps = {"local_steps": 2, "local_learning_rate": 1.0}
        free = tiny_task("local", "fedavg", training=steps)
        pulled = tiny_task("local", "fedprox", training={**steps, "proximal_mu": 0.75})
        # The same coins, so batches and noise are the same; the first step starts at the centre.
        without = trainer(PAIRS, seed=9).contribute(job(free))["delta"]
        with_pull = trainer(PAIRS, seed=9).contribute(job(pulled))["delta"]
        assert np.linalg.norm(with_pull) < 0.9 * np.linalg.norm(without)

    def test_two_steps_follow_the_formula(self):
        """y1 = -g1; y2 = y1 - (g2 + mu y1): with noise alone, exactly computable."""
        terms = {"local_learning_rate": 1.0, "proximal_mu": 0.5}

        def delta(steps):
            manifest = tiny_task(
                "local",
                "fedprox",
                sampling_rate=NEVER,
                training={**terms, "local_steps": steps},
            )
            return trainer(PAIRS, seed=4).contribute(job(manifest))["delta"]

        plain = tiny_task(
            "local",
            sampling_rate=NEVER,
            training={"local_learning_rate": 1.0, "local_steps": 2},
        )
        first = delta(1)
        both = trainer(PAIRS, seed=4).contribute(job(plain))["delta"]
        np.testing.assert_allclose(delta(2), both - 0.5 * first, atol=1e-5)

    def test_fedavg_ignores_the_term(self):
        manifest = tiny_task("none", training={"local_steps": 2})
        manifest = msgspec.structs.replace(
            manifest, training=msgspec.structs.replace(manifest.training, proximal_mu=5.0)
        )
        plain = trainer(PAIRS, seed=2).contribute(
            job(tiny_task("none", training={"local_steps": 2}))
        )
        found = trainer(PAIRS, seed=2).contribute(job(manifest))
        np.testing.assert_array_equal(plain["delta"], found["delta"])


class TestWithoutPrivacy:
    def test_weighted_segments(self):
        whole = trainer(PAIRS, seed=1).contribute(
            job(tiny_task("none", training={"weight_unit": len(PAIRS)}))
        )
        half = trainer(PAIRS, seed=1).contribute(
            job(tiny_task("none", training={"weight_unit": 2 * len(PAIRS)}))
        )
        assert (whole["weight"], half["weight"]) == (1.0, 0.5)
        np.testing.assert_allclose(half["delta"], whole["delta"] / 2, rtol=1e-12)
        assert half["loss"] == pytest.approx(whole["loss"] / 2)
        assert 2.0 < float(whole["loss"][0]) < 12.0

    def test_weights_are_capped_so_that_none_dominates(self):
        values = trainer(PAIRS).contribute(job(tiny_task("none", training={"weight_unit": 1})))
        assert values["weight"] == 1.0

    def test_device_privacy_sends_the_plain_delta(self):
        manifest = tiny_task("none", device_noise_multiplier=1.0, budget=NO_LIMIT)
        assert list(trainer(PAIRS).contribute(job(manifest))) == ["delta"]

    def test_diverged_training_is_a_typed_error(self, monkeypatch):
        """Overflow by hand: SGD alone may end in saturated, finite values."""
        monkeypatch.setattr(
            steps,
            "_plain_step",
            lambda work, *_: (torch.full((work.adapted.length,), torch.inf), 0.0),
        )
        with pytest.raises(ContributionError, match="training-diverged"):
            trainer(PAIRS).contribute(job(tiny_task("none")))


def test_the_algorithms_are_those_of_the_contracts():
    assert set(ALGORITHMS) == set(CONTRACTS) - {"sum"}


def test_seeded_coins_repeat_a_contribution():
    first, second = (
        LoraTrainer(*tiny(), PAIRS, threads=1, random_bytes=seeded(1)).contribute(job(tiny_task()))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first["gradient"], second["gradient"])


class TestWhatAnAppGives:
    @pytest.mark.parametrize(
        "dataset",
        [
            pytest.param((pair for pair in PAIRS), id="generator"),
            pytest.param(iter(PAIRS), id="iterator"),
            pytest.param({PAIRS[0]}, id="set"),
            pytest.param({"train": PAIRS}, id="splits"),
            pytest.param(b"data.jsonl", id="bytes"),
            pytest.param(None, id="none"),
        ],
    )
    def test_a_data_set_without_places_is_refused_at_once(self, dataset):
        """In a task with noise it would give noise alone, release after release."""
        with pytest.raises(ContributionError) as refused:
            trainer(dataset)
        assert refused.value.reason == "dataset-form"
        assert refused.value.found == type(dataset).__name__
        assert "list(" in refused.value.remedy

    def test_anything_with_a_length_and_places_is_a_data_set(self):
        class Lazy:
            def __len__(self):
                return len(PAIRS)

            def __getitem__(self, place):
                return PAIRS[place]

        manifest = tiny_task()
        first = trainer(Lazy()).contribute(job(manifest))["gradient"]
        assert np.array_equal(first, trainer(PAIRS).contribute(job(manifest))["gradient"])

    def test_prompt_and_answer_may_have_names(self):
        """As the lines of ``secagg join`` do, and the rows of most data sets."""
        named = [{"prompt": prompt, "answer": answer, "id": 7} for prompt, answer in PAIRS]
        manifest = tiny_task()
        it = trainer(named)
        first = it.contribute(job(manifest))["gradient"]
        assert it.left_out == ()
        assert np.array_equal(first, trainer(PAIRS).contribute(job(manifest))["gradient"])

    def test_a_model_that_cannot_be_prepared_is_refused(self):
        """Whatever the data: it would be zeros and noise in each release, and nobody would know."""
        it = trainer(PAIRS)
        it._base.get_input_embeddings = lambda: None
        with pytest.raises(TaskRefusal) as refused:
            it.contribute(job(tiny_task()))
        assert refused.value.reason == "model-failed"
        assert "NoneType" in str(refused.value.found)

    def test_a_model_whose_weights_are_not_in_memory_is_refused(self):
        it = trainer(PAIRS)
        it._base.to("meta")
        with pytest.raises(TaskRefusal, match="model-offloaded"):
            it.contribute(job(tiny_task()))

    def test_no_tokenizer_is_refused_too(self):
        it = LoraTrainer(tiny()[0], None, PAIRS)
        with pytest.raises(TaskRefusal, match="model-failed"):
            it.contribute(job(tiny_task()))

    def test_after_data_were_used_a_failure_is_no_refusal(self, monkeypatch):
        it = trainer(PAIRS)
        it.contribute(job(tiny_task()))

        def fail(*_):
            raise MemoryError("what is left of the last job")

        monkeypatch.setattr(it._adapted, "load", fail)
        with pytest.raises(MemoryError):
            it.contribute(job(tiny_task()))

    def test_after_a_refusal_the_model_trains_what_it_did(self, monkeypatch):
        it = trainer(PAIRS)
        it._base.model.embed_tokens.weight.requires_grad_(False)
        before = {name: p.requires_grad for name, p in it._base.named_parameters()}

        def refuse(*_, **__):
            raise TaskRefusal("gradient-self-test", "It does not pass.")

        monkeypatch.setattr("client_sdk.training.trainer.check_rows_apart", refuse)
        with pytest.raises(TaskRefusal, match="gradient-self-test"):
            it.contribute(job(tiny_task()))
        assert {name: p.requires_grad for name, p in it.model.named_parameters()} == before
        assert len(set(before.values())) == 2
