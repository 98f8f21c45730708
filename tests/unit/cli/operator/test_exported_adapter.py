"""The exported folder in other people's tools: tied weights, the base model's name, AutoPeft."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

from aggregator.tasks import _demand_name
from client_sdk.errors import TaskRefusal
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.lora import (
    adapter_spec,
    base_fingerprint,
    vector_length,
    write_peft_folder,
)
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg_cli.models.cache import hub_id
from secagg_cli.models.describe import public_name
from secagg_cli.operator import export
from tests.kits.tiny_training import tiny_task

TOKENS = torch.arange(20)[None] % 97


def llama(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return Llama(config).eval()


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)).eval()


def manifest_of(base: Any, targets: tuple[str, ...]) -> Manifest:
    manifest = tiny_task("none")
    adapter = adapter_spec(base, "lora", 4, 8, targets, b"\1" * 32)
    named = msgspec.structs.replace(manifest.base_model, fingerprint=base_fingerprint(base))
    return msgspec.structs.replace(manifest, adapter=adapter, base_model=named)


def vector_of(manifest: Manifest) -> np.ndarray:
    generator = np.random.default_rng(1)
    return generator.normal(0, 0.05, vector_length(manifest.adapter)).astype(np.float32)


@pytest.mark.parametrize("of", ["model", "config"])
@pytest.mark.parametrize("make", [lambda: llama(tied=True), gpt2])
def test_a_target_that_shares_its_weights_is_refused_at_creation(make, of: str) -> None:
    base = make()
    described = base if of == "model" else base.config
    with pytest.raises(ConfigurationError, match="adapter-tied") as caught:
        adapter_spec(described, "lora", 4, 8, ("lm_head",), bytes(32))
    assert "lm_head" in (caught.value.remedy or "")
    adapter_spec(llama(tied=False), "lora", 4, 8, ("q_proj", "lm_head"), bytes(32))


def test_weights_that_are_tied_by_hand_count_too() -> None:
    base = llama(tied=False)
    first, second = (layer.self_attn for layer in base.model.layers)
    second.o_proj.weight = first.q_proj.weight
    with pytest.raises(ConfigurationError, match="adapter-tied"):
        adapter_spec(base, "lora", 4, 8, ("o_proj",), bytes(32))
    adapter_spec(base, "lora", 4, 8, ("v_proj",), bytes(32))


def test_a_device_refuses_such_a_task_too() -> None:
    """One that another operator made, or an earlier version."""
    manifest = manifest_of(llama(tied=False), ("q_proj", "lm_head"))
    base = llama(tied=True)
    with pytest.raises(TaskRefusal, match="adapter-tied"):
        AdaptedModel(base, manifest, manifest.base_model.fingerprint)


def test_what_is_merged_gives_the_same_logits(tmp_path: Path) -> None:
    base = llama(tied=False)
    manifest = manifest_of(base, ("q_proj", "lm_head"))
    folder = write_peft_folder(tmp_path / "a", manifest, vector_of(manifest), base=base)
    loaded = PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        before = loaded(TOKENS).logits
        after = loaded.merge_and_unload()(TOKENS).logits
    assert (before - after).abs().max() < 1e-5


def exported_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None) -> Path:
    """What ``secagg task export --peft`` writes, without a service."""
    llama(tied=True).save_pretrained(tmp_path / "my base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "my base")
    manifest = manifest_of(base, ("q_proj", "v_proj"))
    monkeypatch.setattr(export, "_manifest", lambda *_: manifest)
    monkeypatch.setattr(export, "read_vector", lambda _: vector_of(manifest))
    monkeypatch.setattr("secagg_cli.models.cache.load_model", lambda folder: (base, None))
    where = tmp_path / "my base"
    if name is not None:
        monkeypatch.setattr("secagg_cli.models.cache.ensure_model", lambda _: where)
    export.write_adapter(tmp_path / "adapter", "http://x", "t", b"", name or str(where))
    return tmp_path / "adapter"


def test_auto_peft_loads_the_exported_folder_over_a_local_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = exported_folder(tmp_path, monkeypatch, None)
    monkeypatch.chdir("/")
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        moved = loaded(TOKENS).logits - llama(tied=True)(TOKENS).logits
    assert moved.abs().max() > 1e-3


def test_a_base_from_the_hub_is_named_by_its_id_and_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported_folder(tmp_path, monkeypatch, "owner/model")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/model"
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        digest = file.metadata()["secagg_base_model_fingerprint"]
    assert digest == base_fingerprint(llama(tied=True)).hex()
    # The way for a local copy of that base, as docs/algorithms.md has it:
    config["base_model_name_or_path"] = str(tmp_path / "my base")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert AutoPeftModelForCausalLM.from_pretrained(folder) is not None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("owner/model", "owner/model"),
        ("tiny", "tiny"),
        ("models/mine", "mine"),
        ("./models/mine/", "mine"),
        ("models/../models/mine", "mine"),
        ("link", "mine"),
        ("hub/models--owner--a-model.1/snapshots/0a1b2c", "owner/a-model.1"),
    ],
)
def test_a_task_names_no_path(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("models/mine", "hub/models--owner--a-model.1/snapshots/0a1b2c"):
        Path(folder).mkdir(parents=True)
    Path("link").symlink_to("models/mine")
    assert public_name(model) == name
    if "/" in model and model != "owner/model":
        assert public_name(str(tmp_path / model)) == name
    assert hub_id("models/mine") is None
    _demand_name(name)


@pytest.mark.parametrize(
    "name", ["/home/x/base", "./base", "../base", "~/base", "a/b/c", "C:\\base", "a/../b", "a/.."]
)
def test_a_service_takes_no_path_for_a_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="base-model-path"):
        _demand_name(name)
