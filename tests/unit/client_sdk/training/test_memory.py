"""The memory planner against what was measured, and what it does when memory is short."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from client_sdk.training.memory import plan_memory, task_bytes
from client_sdk.training.trainer import LoraTrainer
from secagg.errors import ConfigurationError
from tests.kits.tiny_training import tiny, tiny_task

SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(("batch", "measured_mib"), [(4, 1_357), (12, 2_465)])
def test_prediction_is_near_the_measured_peak_and_above_it(batch, measured_mib):
    """Peak resident memory of one pass of 64-token rows, torch 2.13 on a CPU."""
    found = plan_memory(SMOLLM2, batch=batch).peak_bytes / 2**20
    assert measured_mib <= found <= 1.15 * measured_mib


def test_less_memory_means_smaller_passes_then_the_loop_then_a_refusal():
    free = plan_memory(SMOLLM2, batch=8)
    assert (free.mode, free.micro_batch) == ("hooks", 8)
    tight = plan_memory(SMOLLM2, batch=8, available_bytes=1_300 << 20)
    assert tight.mode == "hooks"
    assert 1 < tight.micro_batch < 4
    assert tight.peak_bytes <= 1_300 << 20
    single = plan_memory(SMOLLM2, batch=8, available_bytes=1_100 << 20)
    assert (single.mode, single.micro_batch) == ("loop", 1)
    with pytest.raises(ConfigurationError, match="memory-too-small"):
        plan_memory(SMOLLM2, batch=8, available_bytes=900 << 20)


def test_longer_rows_and_larger_ranks_take_more_half_precision_less():
    base = plan_memory(SMOLLM2).peak_bytes
    assert plan_memory(SMOLLM2, length=128).peak_bytes > base
    assert plan_memory(SMOLLM2, rank=64).peak_bytes > base
    assert plan_memory(SMOLLM2, precision="bfloat16").peak_bytes < base


def test_models_with_other_names_of_sizes_are_refused():
    with pytest.raises(ConfigurationError, match="planner-model"):
        plan_memory(GPT2Config())


def test_a_task_s_training_is_planned_by_its_own_terms_and_a_tenth_more():
    manifest = tiny_task("none")
    assert manifest.training is not None
    config = tiny()[0].config
    terms = {
        "rank": manifest.adapter.rank,
        "targets": manifest.adapter.target_modules,
        "length": manifest.training.max_tokens,
    }
    most = min(3, manifest.training.micro_batch)
    peak = plan_memory(config, batch=most, **terms).peak_bytes
    found = task_bytes(config, manifest, micro_batch=3, precision="float32")
    assert found == peak + peak // 10
    assert task_bytes(GPT2Config(), manifest, micro_batch=3, precision="float32") is None
    assert task_bytes(MixtralConfig(), manifest, micro_batch=3, precision="float32") is None


def test_a_trainer_says_what_its_model_takes():
    model, tokenizer = tiny()
    manifest = tiny_task("none")
    hooks, loop = (
        LoraTrainer(model, tokenizer, [], micro_batch=4, method=method).memory_bytes(manifest)
        for method in ("hooks", "loop")
    )
    assert 400 << 20 < loop < hooks
    half = LoraTrainer(model.to(torch.bfloat16), tokenizer, [], method="loop")
    assert half.memory_bytes(manifest) < loop
