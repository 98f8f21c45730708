"""Every form of LoRA trained by the real trainer, summed in the ring, and loaded by plain peft."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel

from aggregator.algorithms import StepInput, server_step
from client_sdk.training.evaluation import evaluate
from client_sdk.training.lora import vector_to_tensors, write_peft_folder
from secagg_cli.models.corpus import load_clients
from tests.kits.tiny_training import job, summed, tiny, tiny_task, trainer


def _rounds(manifest, count, ranks=(None, None)):
    data = load_clients(2)
    devices = [trainer(c.train[:24], seed=i, rank=ranks[i]) for i, c in enumerate(data)]
    vector, optimiser = job(manifest).vector, {}
    for version in range(count):
        values = [d.contribute(job(manifest, vector, version=version)) for d in devices]
        sums = summed(manifest, values, seed=version)
        step = server_step(StepInput(manifest, vector, optimiser, sums, version))
        vector, optimiser = step.vector, step.optimiser
    return data, vector


@pytest.mark.parametrize("kind", ["lora", "rolora", "fedsvd", "product"])
def test_a_form_learns_and_its_global_adapter_loads_with_plain_peft(kind, tmp_path):
    manifest = tiny_task("none", "fedavg", kind=kind)
    data, vector = _rounds(manifest, 3, ranks=(None, 2) if kind == "product" else (None, None))
    folder = write_peft_folder(tmp_path / "adapter", manifest, vector)
    base, tokenizer = tiny()
    examples = [pair for client in data for pair in client.train[:24]]
    before = evaluate(base, tokenizer, examples)
    loaded = PeftModel.from_pretrained(base, folder)
    assert evaluate(loaded, tokenizer, examples) < before - 0.05


def test_a_device_of_lower_rank_trains_only_its_own_components():
    manifest = tiny_task("none", "fedavg", kind="product")
    device = trainer(load_clients(1)[0].train[:16], rank=1)
    device.contribute(job(manifest))
    for name, tensor in device.model.named_parameters():
        if ".lora_A." in name:
            assert not tensor[1:].any()
        elif ".lora_B." in name:
            assert not tensor[:, 1:].any()
            assert tensor[:, 0].any()


@pytest.mark.parametrize("version", [0, 1])
def test_rolora_under_distributed_noise_trains_the_factor_of_its_phase(version):
    manifest = tiny_task("distributed", "fedsgd", kind="rolora")
    device = trainer(load_clients(1)[0].train[:16])
    vector = np.full_like(job(manifest).vector, 0.01)
    total = device.contribute(job(manifest, vector, version=version))["gradient"]
    assert total.shape == (manifest.segments[0].length,)
    trainable = [n for n, p in device.model.named_parameters() if p.requires_grad]
    factor = ".lora_A." if version else ".lora_B."
    assert trainable
    assert all(factor in name for name in trainable)


def test_fedsvd_devices_start_from_the_models_a():
    manifest = tiny_task("none", "fedavg", kind="fedsvd")
    _, vector = _rounds(manifest, 1)
    device = trainer(load_clients(1)[0].train[:8])
    device.contribute(job(manifest, vector, version=1))
    expected = vector_to_tensors(manifest.adapter, vector)
    for name, parameter in device.model.named_parameters():
        if ".lora_A." in name:
            peft_name = name.replace(".default.weight", ".weight")
            assert torch.equal(parameter, torch.from_numpy(expected[peft_name]))
