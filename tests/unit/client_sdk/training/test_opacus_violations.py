"""Silent violations of DP-SGD: each shown against plain Opacus, each beside what stops it here.

A guard that is tested elsewhere too is tested here against the same data as the violation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from opacus.data_loader import CollateFnWithEmpty, DPDataLoader
from opacus.grad_sample import (
    GradSampleHooks,
    GradSampleModule,
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.examples import Row, encode_example
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.lora import vector_length
from client_sdk.training.trainer import LoraTrainer
from dp.accounting.budget import Account
from dp.contracts import BudgetSpec
from dp.example_sum import ExampleSum, noisy_total
from dp.noise.sampling import poisson_batch
from secagg.errors import RemoteProtocolError
from secagg.manifest import decode_manifest, encode_manifest
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import built, seeded
from tests.kits.tiny_training import NEVER, job, tiny, tiny_fingerprint, tiny_task, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
PAIRS = load_clients(6)[1].train[:6]
CLIP = 1.0
NO_LIMIT = BudgetSpec(max_epsilon=None)


def adapted_tiny() -> AdaptedModel:
    manifest = tiny_task("none")
    adapted = AdaptedModel(tiny()[0], manifest, tiny_fingerprint())
    length = vector_length(manifest.adapter)
    adapted.load(np.random.default_rng(0).normal(0, 0.05, length).astype(np.float32))
    return adapted


def linear_model(seed: int = 0) -> nn.Linear:
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 6)[None] * (seed + 1))
    return model


def clipped(gradients: Tensor, clip: float) -> Tensor:
    """Sum of the rows, each clipped to ``clip``."""
    norms = gradients.norm(dim=1, keepdim=True)
    return (gradients * (clip / norms).clamp(max=1)).sum(0)


def ours(model: nn.Module, parameters: Sequence[nn.Parameter], rows: Sequence[Row]) -> Tensor:
    with ExampleGradients(model, parameters, pad_token=0) as gradients:
        gradients.run(rows)
        return gradients.flat().double()


class TestLoss:
    """1. ``labels=`` of transformers averages over the tokens of the whole batch."""

    SHORT = Row((2, 40, 3, 50, 1), (False, False, False, True, True))
    LONG = Row(tuple(range(2, 62)), (False,) * 3 + (True,) * 57)

    def influence(self, per_example: Callable[[list[Row]], Tensor]) -> float:
        """How far one more example moves the sum of clipped gradients, over the clip."""
        alone, both = per_example([self.SHORT]), per_example([self.SHORT, self.LONG])
        clip = 0.3 * float(alone[0].norm())
        return float((clipped(both, clip) - clipped(alone, clip)).norm()) / clip

    def test_the_models_own_loss_lets_one_example_move_more_than_the_clip(self) -> None:
        adapted = adapted_tiny()

        def plain(rows: list[Row]) -> Tensor:
            length = max(len(row.tokens) for row in rows)
            ids, mask = (
                torch.zeros(len(rows), length, dtype=torch.long),
                torch.zeros(len(rows), length, dtype=torch.long),
            )
            labels = torch.full((len(rows), length), -100)
            for i, row in enumerate(rows):
                n = len(row.tokens)
                ids[i, :n], mask[i, :n] = torch.tensor(row.tokens), 1
                counts = torch.tensor(row.counts)
                labels[i, :n] = torch.where(counts, torch.tensor(row.tokens), -100)
            hooks = GradSampleHooks(adapted.model, loss_reduction="mean")
            adapted.model.train()
            adapted.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            found = torch.cat([p.grad_sample.flatten(1) for p in adapted.parameters], dim=1)
            hooks.cleanup()
            return found.double()

        assert self.influence(plain) > 1.05

    def test_one_loss_per_conversation_does_not(self) -> None:
        adapted = adapted_tiny()
        assert (
            self.influence(lambda rows: ours(adapted.model, adapted.parameters, rows)) <= 1 + 1e-6
        )


class TokenModel(nn.Module):
    """Frozen embeddings and a trainable head: logits per token."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.embedding.requires_grad_(False)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


class TestGhost:
    """2 and 6. Ghost clipping."""

    def ghost_norm(self, *, shape: bool) -> float:
        """Norm of the gradient that one sequence leaves at clip 1 and physical batch 1."""
        plain = TokenModel()
        model = GradSampleModuleFastGradientClipping(plain, max_grad_norm=CLIP, strict=False)
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD([plain.head.weight], lr=0.1),
            noise_multiplier=0.0,
            max_grad_norm=CLIP,
            expected_batch_size=1,
        )
        criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())
        tokens = torch.arange(32)[None] % 11
        logits = model(tokens).logits
        targets = (tokens * 3 + 1) % 11
        more = {"shape": targets.shape} if shape else {}
        criterion(logits.flatten(0, 1), targets.flatten(), **more).backward()
        return float(plain.head.weight.grad.norm())

    def test_without_shape_the_clip_is_exceeded_many_times(self) -> None:
        assert self.ghost_norm(shape=True) <= CLIP + 1e-4
        assert self.ghost_norm(shape=False) > 20 * CLIP  # the violation

    def test_norms_of_a_layer_that_was_skipped_are_those_of_other_examples(self) -> None:
        def second_release(first_scale: float) -> Tensor:
            """The same second batch, after a first one of another size of gradients."""
            two = nn.ModuleDict({"always": linear_model(), "sometimes": linear_model(1)})
            model = GradSampleModuleFastGradientClipping(two, max_grad_norm=CLIP)
            always, sometimes = two["always"], two["sometimes"]
            x = torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.1, 0.0]])
            (always(x) + sometimes(x * first_scale)).sum().backward()
            model.get_clipping_coef()
            always(x).sum().backward()  # ``sometimes`` takes no part
            return model.get_clipping_coef().detach()

        assert not torch.allclose(second_release(1.0), second_release(1e3))  # the violation

    def test_here_a_skipped_layer_has_gradient_zero_whatever_came_before(self) -> None:
        class Conditional(TokenModel):
            skip = False

            def __init__(self) -> None:
                super().__init__()
                self.more = nn.Linear(6, 11, bias=False)

            def forward(self, input_ids: Tensor, **_: Any) -> Any:
                hidden = self.embedding(input_ids)
                logits = self.head(hidden)
                return SimpleNamespace(logits=logits if self.skip else logits + self.more(hidden))

        model = Conditional()
        parameters = (model.head.weight, model.more.weight)
        found = []
        for first in (
            Row((1, 2, 3), (False, True, True)),
            Row((9, 8, 7, 6), (False,) + (True,) * 3),
        ):
            with ExampleGradients(model, parameters, pad_token=0) as gradients:
                model.skip = False
                gradients.run([first])
                model.skip = True
                gradients.run([Row((4, 5, 6), (False, True, True))])
                found.append(gradients.flat())
        assert torch.equal(*found)
        assert not found[0][:, model.head.weight.numel() :].any()

    def test_there_is_no_ghost_mode_here(self) -> None:
        with pytest.raises(ContributionError, match="gradient-method"):
            trainer(PAIRS, method="ghost")
        adapted = adapted_tiny()
        with pytest.raises(ContributionError, match="gradient-method"):
            ExampleGradients(adapted.model, adapted.parameters, pad_token=0, method="ghost")  # type: ignore[arg-type]


class TestBatches:
    """3, 4 and 10. Empty batches, seeded coins, the rate."""

    def test_a_random_example_in_place_of_an_empty_batch_moves_the_sum_by_more_than_the_clip(
        self,
    ) -> None:
        torch.manual_seed(3)
        collate = CollateFnWithEmpty(torch.stack, rand_on_empty=True)
        example = -torch.ones(6)
        full, empty = collate([example]), collate([])
        assert empty.shape == (1, 6)
        gradients = [clipped(batch.double(), CLIP) for batch in (full, empty)]  # of w x
        assert float((gradients[0] - gradients[1]).norm()) > 1.4 * CLIP  # the violation

    def test_here_an_empty_batch_is_a_total_of_zero(self) -> None:
        manifest = tiny_task(sampling_rate=NEVER)
        assert not trainer(PAIRS[:1]).contribute(job(manifest))["gradient"].any()

    def test_an_empty_first_batch_has_no_form_and_a_model_cannot_take_it(self) -> None:
        """Loud, but only in the run in which it happens."""
        assert CollateFnWithEmpty(lambda rows: {"x": torch.stack(rows)})([]) == []
        with pytest.raises(Exception, match=r".+"):
            tiny()[0](input_ids=torch.zeros((0, 5), dtype=torch.long))

    def test_seeded_generators_repeat_noise_and_batches(self) -> None:
        def device() -> tuple[Tensor, list[list[int]]]:
            torch.manual_seed(0)  # ``set_seed`` of a training script
            model = linear_model()
            model.weight.grad_sample = torch.zeros(1, 1, 6)
            optimizer = DPOptimizer(
                torch.optim.SGD(model.parameters(), lr=1.0),
                noise_multiplier=1.0,
                max_grad_norm=CLIP,
                expected_batch_size=1,
            )
            optimizer.pre_step()
            sampler = UniformWithReplacementSampler(num_samples=50, sample_rate=0.3)
            return model.weight.grad.clone(), list(sampler)

        first, second = device(), device()
        assert torch.equal(first[0], second[0])  # the violation: equal noise,
        assert first[1] == second[1]  # equal batches

        manifest = built(algorithm="fedavg", budget=NO_LIMIT)
        zero = np.zeros(manifest.data_length, np.int64)
        noises, batches = [], []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            noises.append(noisy_total(manifest, zero, os.urandom))
            batches.append(poisson_batch(2000, 0.3, os.urandom))
        assert (noises[0] != noises[1]).any()
        assert not np.array_equal(*batches)

    def test_the_loaders_rate_is_not_the_one_that_was_asked_for(self) -> None:
        loader = DataLoader(TensorDataset(torch.zeros(20, 1)), batch_size=6)  # asks for 0.3
        private = DPDataLoader.from_data_loader(loader)
        assert private.sample_rate == 0.25  # the violation
        counts = [len(poisson_batch(20, 0.3, seeded(i))) for i in range(2000)]
        deviation = math.sqrt(20 * 0.3 * 0.7 / len(counts))
        assert abs(np.mean(counts) - 6.0) < 4 * deviation
        assert abs(np.mean(counts) - 5.0) > 4 * deviation


class TestSums:
    """5, 9 and 11. What else gets into the sum."""

    def test_one_infinite_gradient_spoils_the_sum_of_all(self) -> None:
        model = linear_model()
        model.weight.grad_sample = torch.ones(3, 1, 6)
        model.weight.grad_sample[1] = math.inf
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=CLIP,
            expected_batch_size=3,
        )
        optimizer.pre_step()
        assert torch.isnan(model.weight.grad).all()  # the violation: one example stops training
        total = ExampleSum(built(), seeded())
        for gradient in (np.ones(64), np.full(64, np.inf), np.full(64, np.nan)):
            total.add(gradient)
        alone = ExampleSum(built(), seeded())
        alone.add(np.ones(64))
        assert np.array_equal(total.total, alone.total)

    def test_in_a_packed_row_one_conversation_moves_the_sum_by_more_than_the_clip(self) -> None:
        """The clip bounds the pack; a person in it may turn the whole pack around."""
        mine, other = torch.tensor([[-3.0, 0.5]]), torch.tensor([[2.0, 0.5]])
        packed = clipped(mine + other, CLIP) - clipped(other, CLIP)
        apart = clipped(torch.cat([mine, other]), CLIP) - clipped(other, CLIP)
        assert float(packed.norm()) > 1.4 * CLIP  # the violation
        assert float(apart.norm()) <= CLIP + 1e-6

    def test_packed_rows_are_refused(self) -> None:
        _, tokenizer = tiny()
        tokens = tokenizer(" ".join(a + b for a, b in PAIRS))["input_ids"]
        with pytest.raises(ContributionError, match="example-packed"):
            encode_example(tokenizer, {"input_ids": tokens, "labels": tokens}, 256)

    def test_an_optimiser_over_a_part_leaves_the_rest_without_clip_and_noise(self) -> None:
        two = nn.Sequential(linear_model(), nn.Linear(1, 1, bias=False))
        optimizer = torch.optim.SGD(two[0].parameters(), lr=1.0)
        batch = torch.arange(24.0).reshape(4, 6) * 10
        loader = DataLoader(TensorDataset(batch), batch_size=4)
        module, optimizer, _ = PrivacyEngine().make_private(  # accepted without a word
            module=two,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=CLIP,
        )
        module(batch).sum().backward()
        optimizer.step()
        raw = two[1].weight.grad
        assert raw is not None
        assert float(raw.norm()) > 10 * CLIP  # the violation: a raw gradient, ready to be used
        adapted = adapted_tiny()
        with pytest.raises(ContributionError, match="trainable-set"):
            ExampleGradients(adapted.model, adapted.parameters[1:], pad_token=0)


class TestNames:
    """7. ``_module.`` in front of every name."""

    def test_a_prefixed_adapter_is_silently_not_loaded(self) -> None:
        saved = {k: v + 1 for k, v in GradSampleModule(linear_model()).state_dict().items()}
        fresh = linear_model()
        fresh.load_state_dict(saved, strict=False)  # as loaders of adapters do
        assert torch.equal(fresh.weight, linear_model().weight)  # the violation

    def test_names_stay_those_of_the_model_and_another_name_is_refused(self) -> None:
        adapted = adapted_tiny()
        before = [name for name, _ in adapted.model.named_parameters()]
        with ExampleGradients(adapted.model, adapted.parameters, pad_token=0):
            assert [name for name, _ in adapted.model.named_parameters()] == before
        assert not any("_module." in name for name in before)
        manifest = tiny_task("none")
        wrong = tuple(
            msgspec.structs.replace(shape, name="_module." + shape.name)
            for shape in manifest.adapter.trainable
        )
        adapter = msgspec.structs.replace(manifest.adapter, trainable=wrong)
        with pytest.raises(ContributionError, match="adapter-tensors"):
            AdaptedModel(
                tiny()[0], msgspec.structs.replace(manifest, adapter=adapter), tiny_fingerprint()
            )


class TestLedger:
    """8. One engine for each round."""

    def test_a_new_engine_forgets_the_rounds_before(self) -> None:
        printed = []
        for _ in range(3):  # three rounds, each with an engine of its own
            engine = PrivacyEngine()
            engine.accountant.history = [(1.0, 0.5, 4)]
            printed.append(engine.get_epsilon(1e-5))
        whole = PrivacyEngine()
        whole.accountant.history = [(1.0, 0.5, 12)]
        assert max(printed) < 0.7 * whole.get_epsilon(1e-5)  # the violation

    def test_an_account_composes_over_rounds_tasks_and_restarts(self) -> None:
        first = built(algorithm="fedavg", budget=NO_LIMIT)
        second = built(algorithm="fedavg", task="another", budget=NO_LIMIT)
        account, costs = Account(delta=1e-5), []
        for cohort, manifest in (("01", first), ("02", first), ("03", second)):
            account = Account.from_json(account.spend(cohort, manifest).to_json())
            costs.append(account.epsilon("example"))
        assert costs[0] < costs[1] < costs[2]
        alone = Account(delta=1e-5).spend("04", first).epsilon("example")
        assert costs[0] == alone < 0.7 * costs[2]


class TestLoudFailures:
    """What Opacus refuses at run time cannot be asked for, or is refused before any data."""

    def test_secure_mode_is_gone_and_not_needed(self) -> None:
        with pytest.raises(ImportError):
            PrivacyEngine(secure_mode=True)

    def test_hooks_twice_without_cleanup_are_refused_and_ours_are_cleaned_up(self) -> None:
        model = linear_model()
        GradSampleHooks(model)
        with pytest.raises(ValueError, match="hooks"):
            GradSampleHooks(model)
        adapted = adapted_tiny()
        rows = [encode_example(tiny()[1], pair, 64) for pair in PAIRS[:2]]
        first, second = (ours(adapted.model, adapted.parameters, rows) for _ in range(2))
        assert torch.equal(first, second)

    def test_hooks_are_cleaned_up_after_an_error_too(self) -> None:
        adapted = adapted_tiny()
        with (
            pytest.raises(RuntimeError, match="stop"),
            ExampleGradients(adapted.model, adapted.parameters, pad_token=0),
        ):
            raise RuntimeError("stop")
        with ExampleGradients(adapted.model, adapted.parameters, pad_token=0):
            pass

    @pytest.mark.parametrize(
        "options", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}], ids=str
    )
    def test_adapters_without_right_gradients_cannot_be_asked_for(
        self, options: dict[str, Any]
    ) -> None:
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options})
        model = get_peft_model(tiny()[0], config)
        with pytest.raises(ContributionError, match="model-adapted"):
            trainer_of(model).contribute(job(tiny_task()))
        manifest = tiny_task()
        for targets in (("embed_tokens",), ("norm",)):
            adapter = msgspec.structs.replace(manifest.adapter, target_modules=targets)
            with pytest.raises(ContributionError, match="adapter-targets"):
                trainer(PAIRS).contribute(job(msgspec.structs.replace(manifest, adapter=adapter)))

    def test_a_manifest_cannot_name_another_adapter_configuration(self) -> None:
        """``use_dora``, ``target_parameters``, ``modules_to_save``, dropout: no such fields."""
        plain = msgspec.msgpack.decode(encode_manifest(tiny_task()))
        for field in ("use_dora", "target_parameters", "modules_to_save", "lora_dropout"):
            changed = {**plain, "adapter": {**plain["adapter"], field: 1}}
            with pytest.raises(RemoteProtocolError, match=field):
                decode_manifest(msgspec.msgpack.encode(changed))

    @pytest.mark.parametrize(
        ("reentrant", "method"), [(True, "hooks"), (True, "loop"), (False, "loop")]
    )
    def test_checkpointing_is_right(self, reentrant: bool, method: Any) -> None:
        manifest = tiny_task(sampling_rate=1.0)
        plain = trainer(PAIRS, seed=4).contribute(job(manifest))["gradient"]
        it = trainer_of(checkpointed(reentrant), method=method)
        found = it.contribute(job(manifest))["gradient"]
        assert plain.any()
        assert np.abs(found - plain).max() <= 2 * len(PAIRS)

    def test_checkpointing_under_which_hooks_are_wrong_is_refused(self) -> None:
        """Not reentrant: hooks see the layers twice, and say nothing."""
        with pytest.raises(ContributionError, match="gradient_checkpointing_disable") as caught:
            trainer_of(checkpointed(False)).contribute(job(tiny_task()))
        assert caught.value.reason == "gradient-self-test"


def checkpointed(reentrant: bool) -> Any:
    model = tiny()[0]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def trainer_of(model: Any, **options: Any) -> LoraTrainer:
    return LoraTrainer(model, tiny()[1], PAIRS, threads=1, random_bytes=seeded(4), **options)
