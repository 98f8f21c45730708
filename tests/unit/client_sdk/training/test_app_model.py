"""The app's model while it is trained and afterwards: as it was, to the last attribute."""

from __future__ import annotations

import inspect
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.utils import module_utils
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from client_sdk.errors import TaskRefusal
from client_sdk.training import adapted, trainer
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.opacus_hooks import _without_root_handler
from client_sdk.training.torch_threads import torch_threads
from client_sdk.training.trainer import LoraTrainer
from client_sdk.training.twin import twin_of
from dp.contracts import TrainingSpec
from secagg.manifest import Manifest
from tests.kits.model_families import manifest_of
from tests.kits.tasks import seeded
from tests.kits.tiny_training import job, tiny

PAIRS = [("What is AI?", "A field of science."), ("Hi", "Hello there, how are you?")] * 2
TOKENS = torch.arange(3, 15)[None]
SIZES: dict[str, Any] = {"vocab_size": 1024, "pad_token_id": 0}


def model_of(family: str = "llama", *, tied: bool = False, dropout: float = 0.1) -> Any:
    torch.manual_seed(7)
    if family == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}
        rates = {"attn_pdrop": dropout, "resid_pdrop": dropout, "embd_pdrop": dropout}
        return GPT2LMHeadModel(GPT2Config(**SIZES, **sizes, **rates, bos_token_id=1))
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=dropout,
            tie_word_embeddings=tied,
        )
    )


def tokenizer() -> Any:
    return tiny()[1]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that an app could see of its model."""
    plain = (bool, int, float, str, type(None))
    found: dict[str, Any] = {"config": model.config.to_dict()}  # type: ignore[operator, union-attr]
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = (id(module), type(module))
        for key, value in vars(module).items():
            if key.endswith("_hooks"):
                value = [(number, id(hook)) for number, hook in value.items()]
            elif isinstance(value, dict):
                value = {each: id(inner) for each, inner in value.items()}
            found[f"{name}.{key}"] = value if isinstance(value, (*plain, list, dict)) else id(value)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        kept = (tensor.data_ptr(), tensor.requires_grad, tensor.grad is None, set(vars(tensor)))
        found[f"tensor {name}"] = (*kept, tensor.detach().numpy().tobytes())
    return found


def _changed(state: dict[str, Any], before: dict[str, Any]) -> list[str]:
    return [key for key in state | before if state.get(key, ...) != before.get(key, ...)]


def answer(model: Any) -> torch.Tensor:
    """In evaluation mode whatever the modes are, and without touching them."""
    was = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        try:
            for module, _ in was:
                module.training = False
            logits: torch.Tensor = model(TOKENS).logits
        finally:
            for module, mode in was:
                module.training = mode
    return logits


def trainer_of(model: Any) -> LoraTrainer:
    return LoraTrainer(model, tokenizer(), PAIRS, random_bytes=seeded(3))


TASKS: dict[Any, Manifest] = {}


def task_of(family: str, tied: bool = False) -> Manifest:
    if (family, tied) not in TASKS:
        TASKS[family, tied] = manifest_of(
            family,
            "ffa-lora",
            model_of(family, tied=tied),
            training=TrainingSpec(max_tokens=16, micro_batch=4),
        )
    return TASKS[family, tied]


@pytest.mark.parametrize(
    ("family", "tied", "seed"),
    [("llama", False, 1), ("llama", True, 2), ("gpt2", True, 3), ("gpt2", True, 4)],
)
def test_nothing_of_the_app_s_model_changes_in_training_or_after_it(
    family: str, tied: bool, seed: int
) -> None:
    """Whatever modes, frozen tensors, rates and hooks it has: looked at from within each pass."""
    model = model_of(family, tied=tied)
    drawn = random.Random(seed)
    for module in model.modules():
        module.training = drawn.random() < 0.5
        if isinstance(module, nn.Dropout):
            module.p = drawn.choice([0.0, 0.3, 0.5])
    for parameter in model.parameters():
        parameter.requires_grad_(drawn.random() < 0.5)
    manifest, states, looks = task_of(family, tied), [], [True]
    app = {"model": model}  # a hook that closes over the model itself would see the twin

    def look(_module: nn.Module, _inputs: Any) -> None:
        if looks:
            looks.clear()  # the app's own pass below calls this hook too
            same = torch.equal(answer(app["model"]), before_answer)
            states.append((state_of(app["model"]), same))
            looks.append(True)

    model.get_input_embeddings().register_forward_pre_hook(look)
    looks.clear()
    before_answer = answer(model)
    before = state_of(model)
    looks.append(True)
    assert trainer_of(model).contribute(job(manifest))["gradient"].any()
    looks.clear()
    assert len(states) > 4
    assert [_changed(state, before) for state, _ in states] == [[]] * len(states)
    assert all(same for _, same in states)
    assert state_of(model) == before


class Stop(BaseException):
    """As Ctrl-C: nothing of the trainer's may catch it."""


STEPS: list[tuple[Any, str]] = [
    (adapted, "twin_of"),
    (adapted, "get_peft_model"),
    (adapted, "_adapter_tensors"),
    (AdaptedModel, "load"),
    (AdaptedModel, "choose"),
    (ExampleGradients, "_hook"),
    (ExampleGradients, "run"),
    (ExampleGradients, "_unhook"),
    (trainer, "check_rows_apart"),
    (trainer, "encode_rows"),
    (trainer, "Work"),
]


@pytest.mark.parametrize(("after", "error"), [(False, RuntimeError), (True, Stop)])
@pytest.mark.parametrize(("place", "name"), STEPS, ids=[name for _, name in STEPS])
def test_an_exception_at_any_step_leaves_model_and_process_as_they_were(
    place: Any,
    name: str,
    after: bool,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the step's work, or right behind it."""
    model = model_of().eval()
    real: Callable[..., Any] = getattr(place, name)

    def fails(*arguments: Any, **named: Any) -> Any:
        if after:
            real(*arguments, **named)
        raise error("here")

    it = trainer_of(model)
    process = (list(warnings.filters), list(logging.root.handlers))
    before, was = state_of(model), answer(model)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fails)
        with pytest.raises((error, TaskRefusal)):
            it.contribute(job(task_of("llama")))
    assert state_of(model) == before
    assert torch.equal(answer(model), was)
    assert (list(warnings.filters), list(logging.root.handlers)) == process
    assert it.contribute(job(task_of("llama")))["gradient"].any()


class Keeps(nn.Module):
    """A method of its own as a hook, a tensor with a graph, and a patched method."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.seen = 0
        self.register_forward_hook(self.count)
        self.last = self.inner(torch.ones(1, 4))
        old = self.inner.forward
        self.inner.forward = lambda x: old(x) + 1  # type: ignore[method-assign]

    def count(self, *_: object) -> None:
        self.seen += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out


def test_a_base_that_the_app_has_trained_meanwhile_is_another_one() -> None:
    model = model_of()
    device, manifest = trainer_of(model), task_of("llama")
    device.contribute(job(manifest))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(TaskRefusal, match="base-model"):
        device.contribute(job(manifest))


def test_hooks_and_patched_methods_are_the_twin_s_own() -> None:
    """Else the app's modules, without an adapter and in their own modes, would be trained."""
    model = Keeps()
    twin = twin_of(model)
    twin(torch.ones(1, 4))
    assert (twin.seen, model.seen) == (1, 0)
    with torch.no_grad():
        twin.inner.weight = nn.Parameter(torch.zeros(4, 4))
        twin.inner.bias = nn.Parameter(torch.zeros(4))
    assert torch.equal(twin(torch.ones(1, 4)), torch.ones(1, 4))
    assert not torch.equal(model(torch.ones(1, 4)), torch.ones(1, 4))


def test_a_twin_takes_no_memory_for_weights_and_keeps_ties() -> None:
    model = model_of(tied=True)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    twin = twin_of(model)
    pairs = zip(model.named_parameters(), twin.named_parameters(), strict=True)
    for (name, own), (same, other) in pairs:
        assert (name, own.data_ptr()) == (same, other.data_ptr())
        assert other is not own
        assert not other.requires_grad
        assert other.grad is None
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert twin.config is not model.config


def test_wrappers_are_looked_through() -> None:
    """Names with a wrapper's prefix would make another base model of it."""
    compiled = torch.compile(model_of(), backend="eager")
    for wrapped in (compiled, nn.DataParallel(model_of())):
        assert trainer_of(wrapped).contribute(job(task_of("llama")))["gradient"].any()


def test_a_model_that_cannot_be_copied_is_refused_by_name() -> None:
    model = model_of()
    model.guard = threading.Lock()
    with pytest.raises(TaskRefusal) as refused:
        trainer_of(model).contribute(job(task_of("llama")))
    assert refused.value.reason == "model-copy"
    assert "lock" in str(refused.value.found)


def test_threads_are_put_back_when_jobs_overlap() -> None:
    before = torch.get_num_threads()

    def fails() -> None:
        with torch_threads(3), torch_threads(None), torch_threads(2):
            raise Stop

    with pytest.raises(Stop):
        fails()
    assert torch.get_num_threads() == before
    first, second = torch_threads(3), torch_threads(2)
    first.__enter__()
    second.__enter__()
    assert torch.get_num_threads() == 2
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before


def test_the_first_layers_train_without_a_warning() -> None:
    """Torch warns of a layer whose input needs no gradient; an app may treat warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer_of(model_of()).contribute(job(task_of("llama")))["gradient"].any()


def test_opacus_puts_no_handler_on_the_root_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that configures logging later is heard."""
    called = next(
        line for line in inspect.getsource(module_utils).split("logging.basicConfig")[1:]
    ).partition(")\n")[0]
    name = "configures_logging"
    (tmp_path / f"{name}.py").write_text(f"import logging, sys\nlogging.basicConfig{called})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = logging.NullHandler()
    for handlers in ([], [own]):
        monkeypatch.setattr(logging.root, "handlers", list(handlers))
        monkeypatch.delitem(sys.modules, name, raising=False)
        _without_root_handler(name)
        assert logging.root.handlers == handlers


def test_no_module_of_the_device_filters_warnings() -> None:
    """But within ``catch_warnings``, for as long as another library injects an adapter."""
    root = Path(inspect.getfile(trainer)).parents[1]
    calls = [
        (path.name, line.strip())
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if "filterwarnings(" in line or "simplefilter(" in line
    ]
    assert {name for name, _ in calls} == {"adapted.py"}
    assert all(f"        {line}" in inspect.getsource(adapted._inject) for _, line in calls)
