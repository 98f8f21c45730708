"""The adapter as a vector and as a peft folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.lora import (
    adapter_spec,
    base_fingerprint,
    initial_tensor,
    tensors_to_vector,
    vector_length,
    vector_to_tensors,
    write_peft_folder,
)
from secagg.errors import ConfigurationError, LocalProtocolError
from tests.kits.tiny_training import tiny, tiny_adapter, tiny_fingerprint, tiny_task

TOKENS = torch.tensor([[5, 300, 17, 42, 9, 700]])


def _vector(manifest, seed=0):
    length = vector_length(manifest.adapter)
    return np.random.default_rng(seed).normal(0, 0.05, length).astype(np.float32)


def _logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def test_initial_values_are_the_same_bits_everywhere():
    adapter = tiny_adapter()
    tensor = initial_tensor(adapter, "base_model.model.x.lora_A.weight", 4, 576)
    assert tensor.dtype == np.float32
    assert (
        hashlib.sha256(tensor.astype("<f4").tobytes()).hexdigest()
        == "546baac5937229d007917aea083688ae13328872fe2ebc07bae0e5a24c15d2b3"
    )


def test_initial_a_is_uniform_within_pefts_bound_and_b_is_zero():
    adapter = tiny_adapter()
    tensor = initial_tensor(adapter, "a.lora_A.weight", 64, 400)
    bound = 1 / 20
    assert 0.99 * bound < np.abs(tensor).max() <= bound
    assert abs(tensor.std() - bound / np.sqrt(3)) < 0.01 * bound
    assert abs(tensor.mean()) < 0.02 * bound
    assert not initial_tensor(adapter, "a.lora_B.weight", 64, 400).any()


def test_initial_values_differ_by_name_and_seed():
    adapter = tiny_adapter()
    other = adapter_spec(tiny()[0], "ffa-lora", 4, 8, adapter.target_modules, b"another seed")
    first = initial_tensor(adapter, "a.lora_A.weight", 4, 8)
    assert (first != initial_tensor(adapter, "b.lora_A.weight", 4, 8)).any()
    assert (first != initial_tensor(other, "a.lora_A.weight", 4, 8)).any()


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
def test_vector_and_tensors_are_inverse(kind):
    manifest = tiny_task("none", kind=kind)
    vector = _vector(manifest)
    tensors = vector_to_tensors(manifest.adapter, vector)
    assert len(tensors) == 8  # two layers, two targets, A and B
    np.testing.assert_allclose(
        tensors_to_vector(manifest.adapter, tensors), vector, atol=1e-7, rtol=0
    )


def test_ffa_lora_sends_b_alone():
    full, ffa = tiny_adapter("lora"), tiny_adapter("ffa-lora")
    assert all(".lora_B." in shape.name for shape in ffa.trainable)
    assert all(".lora_A." in shape.name for shape in ffa.frozen)
    assert not full.frozen
    assert set(full.trainable) == {*ffa.trainable, *ffa.frozen}


def test_a_vector_of_another_length_is_refused():
    adapter = tiny_adapter()
    with pytest.raises(LocalProtocolError, match="adapter-length"):
        vector_to_tensors(adapter, np.zeros(vector_length(adapter) + 1, dtype=np.float32))
    with pytest.raises(LocalProtocolError, match="adapter-tensor"):
        tensors_to_vector(adapter, {})


def test_adapter_spec_from_a_config_equals_that_from_the_model():
    model, _ = tiny()
    arguments = ("lora", 4, 8, ("q_proj", "v_proj"), bytes(32))
    assert adapter_spec(model.config, *arguments) == adapter_spec(model, *arguments)


def test_unknown_targets_and_ranks_are_refused():
    model, _ = tiny()
    with pytest.raises(ConfigurationError, match="adapter-targets"):
        adapter_spec(model, "lora", 4, 8, ("q_proj", "no_such_layer"), bytes(32))
    with pytest.raises(ConfigurationError, match="adapter-targets"):
        adapter_spec(model, "lora", 4, 8, ("embed_tokens",), bytes(32))  # an embedding
    with pytest.raises(ConfigurationError, match="adapter-rank"):
        adapter_spec(model, "lora", 0, 8, ("q_proj",), bytes(32))


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
def test_plain_peft_loads_the_folder_with_identical_logits(tmp_path, kind):
    manifest = tiny_task("none", kind=kind)
    vector = _vector(manifest)
    folder = write_peft_folder(tmp_path / "adapter", manifest, vector)
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    base, _ = tiny()
    untouched = _logits(base)
    adapted = AdaptedModel(base, manifest, tiny_fingerprint())
    adapted.load(vector)
    ours = _logits(adapted.model)
    plain = _logits(PeftModel.from_pretrained(tiny()[0], str(folder)))
    assert torch.equal(ours, plain)
    assert (ours - untouched).abs().max() > 1e-3


def test_the_folder_is_replaced_whole(tmp_path):
    manifest = tiny_task("none")
    folder = tmp_path / "adapter"
    write_peft_folder(folder, manifest, _vector(manifest, 1))
    write_peft_folder(folder, manifest, _vector(manifest, 2))
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = vector_to_tensors(manifest.adapter, _vector(manifest, 2))
    assert all((tensors[name] == expected[name]).all() for name in expected)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_wrapper_prefixes_lose_an_adapter_silently_in_peft_but_not_here(tmp_path):
    """Opacus' wrapper puts ``_module.`` before every name; peft then loads nothing and warns."""
    manifest = tiny_task("none")
    folder = write_peft_folder(tmp_path / "adapter", manifest, _vector(manifest))
    weights = folder / "adapter_model.safetensors"
    save_file({f"_module.{k}": v for k, v in load_file(weights).items()}, weights)
    base, _ = tiny()
    before = _logits(base)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        lost = PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(_logits(lost), before)  # the violation

    import msgspec

    wrapped = msgspec.structs.replace(
        manifest.adapter,
        trainable=tuple(
            msgspec.structs.replace(s, name=f"_module.{s.name}") for s in manifest.adapter.trainable
        ),
    )
    with pytest.raises(ContributionError, match="adapter-tensors"):
        AdaptedModel(
            tiny()[0], msgspec.structs.replace(manifest, adapter=wrapped), tiny_fingerprint()
        )


def test_fingerprint_ignores_the_adapter_and_sees_every_weight():
    manifest = tiny_task("none")
    base, _ = tiny()
    fingerprint = base_fingerprint(base)
    adapted = AdaptedModel(base, manifest, fingerprint)
    adapted.load(_vector(manifest))
    assert base_fingerprint(adapted.model) == fingerprint
    other, _ = tiny()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert base_fingerprint(other) != fingerprint


def test_fingerprint_does_not_depend_on_the_loaded_precision():
    half = tiny()[0].bfloat16()
    assert base_fingerprint(half) == base_fingerprint(tiny()[0].bfloat16().float())


def test_vectors_and_folders_need_no_torch(tmp_path):
    code = "import sys, client_sdk.training.lora; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
