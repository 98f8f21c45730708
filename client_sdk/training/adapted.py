"""A twin of the app's model with the manifest's adapter in it, checked before anything is trained.

Only adapters that this project knows to give right per-example gradients and a right peft folder
are injected (plain LoRA on linear layers): no DoRA, no embeddings, no bias, no dropout. Where a
check fails the device refuses with the reason, and no data has been touched.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.coins import torch_states_kept
from client_sdk.training.lora import (
    base_fingerprint,
    candidates_said,
    linear_targets,
    tied_targets,
    vector_to_tensors,
)
from client_sdk.training.twin import twin_of
from secagg.lora.forms import sent_length, size, trained, vector_length
from secagg.manifest import Adapter, TrainingManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"  # peft's own; saved files carry no adapter name


def without_adapter() -> TaskRefusal:
    """``task-without-adapter``, of a task that :class:`AdaptedModel` cannot take."""
    return TaskRefusal(
        "task-without-adapter",
        "The task trains no adapter; LoraTrainer cannot serve it.",
        remedy="Write a contributor of its own for this task; see client_sdk.Contributor.",
    )


class AdaptedModel:
    """The base model, its adapter's tensors in the manifest's order, and their flat form."""

    def __init__(
        self, model: PreTrainedModel, manifest: TrainingManifest, fingerprint: bytes
    ) -> None:
        """Inject the adapter into a twin of ``model``, which itself stays as it is.

        Args:
            fingerprint: :func:`client_sdk.training.lora.base_fingerprint` of ``model``.

        Raises:
            TaskRefusal: ``task-without-adapter``, ``base-model``, ``adapter-tensors``,
                ``adapter-targets``, ``adapter-tied``, ``model-adapted``; or as
                :func:`client_sdk.training.twin.twin_of`.
        """
        if manifest.base_model is None:
            raise without_adapter()
        if fingerprint != manifest.base_model.fingerprint:
            raise TaskRefusal(
                "base-model",
                f"This is not the base model of the task, {manifest.base_model.name}.",
                expected=manifest.base_model.fingerprint.hex(),
                found=fingerprint.hex(),
                remedy="Load the same checkpoint, not quantised, and in no narrower type than its "
                "own: float32 fits all.",
            ).at(tensor=_misfit(model, manifest.adapter))
        self.adapter = manifest.adapter
        self.model = _inject(model, self.adapter)
        self._tensors = _adapter_tensors(self.model)
        self._check_tensors()
        self.parameters: tuple[nn.Parameter, ...] = ()
        self.choose(0)

    def choose(self, version: int) -> None:
        """Train the tensors that the adapter's form trains on top of model ``version``."""
        shapes = trained(self.adapter, version)
        names = {shape.name for shape in shapes}
        for name, parameter in self._tensors.items():
            parameter.requires_grad_(name in names)
            parameter.grad = None
        self.parameters = tuple(self._tensors[shape.name] for shape in shapes)
        sketched = self.adapter.kind == "product"
        self.length = size(shapes) if sketched else sent_length(self.adapter)
        self._padding = self.length - size(shapes)

    def load(self, vector: NDArray[Any]) -> None:
        """Set the adapter to its initialisation plus ``vector``, float32[vector_length].

        Raises:
            LocalProtocolError: ``adapter-length``.
            ContributionError: ``vector-not-finite``.
        """
        if not np.isfinite(vector).all():
            raise ContributionError("vector-not-finite", "The global vector is not finite.")
        with torch.no_grad():
            for name, value in vector_to_tensors(self.adapter, vector).items():
                self._tensors[name].copy_(torch.from_numpy(value))

    def flat(self) -> Tensor:
        """The trained tensors as they are now, padded with zeros; float64[d] on the CPU."""
        parts = [p.detach().reshape(-1).double().cpu() for p in self.parameters]
        return torch.cat([*parts, torch.zeros(self._padding, dtype=torch.float64)])

    def add(self, change: Tensor) -> None:
        """Add float[d] to the trained tensors; what lies in the padding is left out."""
        counts = [p.numel() for p in self.parameters]
        parts = change[: sum(counts)].split(counts)
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.add_(part.view(parameter.shape).to(parameter))

    def put(self, values: Tensor) -> None:
        """Set the trained tensors to float[d], as :meth:`flat` gives them."""
        counts = [p.numel() for p in self.parameters]
        parts = values[: sum(counts)].split(counts)
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.copy_(part.view(parameter.shape).to(parameter))

    def cut(self, rank: int) -> None:
        """Zero the components of both factors beyond ``rank``.

        Their gradients vanish with both factors, so that plain steps leave them zero.
        """
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                (tensor[rank:] if ".lora_A." in name else tensor[:, rank:]).zero_()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """All tensors of the adapter by the names of peft's files."""
        return {name: p.detach().float().cpu().clone().numpy() for name, p in self._tensors.items()}

    @property
    def vector_length(self) -> int:
        return vector_length(self.adapter)

    @property
    def mixture(self) -> bool:
        """Whether the model routes tokens to experts, by what its configuration names.

        A router compares scores: a last bit, which a float sum owes to the other rows of a pass,
        may send a token to another expert. So rows of such a model never share a pass.
        """
        return _has_experts(self.base.config)

    @property
    def base(self) -> PreTrainedModel:
        """The twin of the app's model, under the adapter."""
        return cast("PreTrainedModel", self.model.get_base_model())

    def _check_tensors(self) -> None:
        expected = {
            shape.name: (shape.rows, shape.columns)
            for shape in (*self.adapter.trainable, *self.adapter.frozen)
        }
        found = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        if expected != found:
            # Said by name, for a tensor that is left out is a tensor silently not trained.
            wrong = sorted(set(expected.items()) ^ set(found.items()))[:4]
            raise TaskRefusal(
                "adapter-tensors",
                f"The adapter of the manifest does not fit this model, for instance {wrong}.",
                expected=len(expected),
                found=len(found),
            )


def fingerprint_of(model: nn.Module) -> bytes:
    """The base model's fingerprint.

    Raises:
        TaskRefusal: ``model-adapted`` if the model has an adapter already; ``model-kind`` of an
            encoder-decoder that generates: it would be taught to repeat what its encoder reads.
    """
    check_kind(model)
    if isinstance(model, PeftModel) or any(".lora_" in n for n, _ in model.named_parameters()):
        raise TaskRefusal(
            "model-adapted",
            "The model has an adapter already.",
            remedy="Give the base model; the trainer injects the task's adapter itself.",
        )
    return base_fingerprint(model)


def check_kind(model: nn.Module) -> None:
    """Return if rows of this package are what the model reads and answers.

    Raises:
        TaskRefusal: ``model-kind``: an encoder-decoder that generates, a model that reads no
            tokens, or one that is neither a language model nor a sequence classifier of at least
            two classes.
    """
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", None)
    if getattr(config, "is_encoder_decoder", False) and generates is not None and generates():
        raise TaskRefusal(
            "model-kind",
            "The model reads by an encoder and answers by a decoder; rows here are one text, in "
            "which each token follows from those before it.",
            expected="a decoder-only language model, or a sequence classifier",
            found=type(model).__name__,
            remedy="Choose a task of a decoder-only model.",
        )
    kinds = [kind.__name__ for kind in type(model).__mro__]
    if generates is None or isinstance(model, PeftModel):
        return  # what it is shows when it runs
    reads = getattr(model, "main_input_name", "input_ids") == "input_ids"
    classifies = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    classes = int(getattr(config, "num_labels", 2)) if classifies else 2
    if not reads or classes < 2 or not (generates() or classifies):
        raise TaskRefusal(
            "model-kind",
            "The model is no language model that reads tokens, and no classifier of texts into "
            "classes.",
            expected="a decoder-only language model, or a sequence classifier of two classes or "
            "more",
            found=f"{kinds[0]}, {classes} classes" if classifies else kinds[0],
            remedy="Load the checkpoint with AutoModelForCausalLM or "
            "AutoModelForSequenceClassification, or choose another task.",
        )


def check_adapter(model: PreTrainedModel, adapter: Adapter) -> None:
    """Return if a device that is given ``model`` can have this adapter in it.

    Raises:
        TaskRefusal: ``model-kind``, ``adapter-targets``, ``adapter-tied``, ``model-copy``.
    """
    check_kind(model)
    _inject(model, adapter)


def _misfit(model: nn.Module, adapter: Adapter) -> str | None:
    """The first tensor of the adapter for which the model has no layer of its size."""
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for shape in (*adapter.trainable, *adapter.frozen):
        layer, _, side = shape.name.removeprefix("base_model.model.").partition(".lora_")
        weight = sizes.get(f"{layer}.weight", ())
        if (shape.columns if side.startswith("A") else shape.rows) not in weight:
            return shape.name
    return None


def _inject(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    missing = sorted(set(adapter.target_modules) - linear_targets(model))
    if missing:
        raise TaskRefusal(
            "adapter-targets",
            "Some targets of the adapter are not plain linear layers of this model.",
            expected=list(adapter.target_modules),
            found=f"without {', '.join(missing)}",
            remedy=f"{candidates_said(model)} Ask for a task with such targets, or load the model "
            "without quantisation.",
        ).at(tensor=missing[0])
    if tied := tied_targets(model, adapter.target_modules):
        raise TaskRefusal(
            "adapter-tied",
            "Some targets of the adapter share their weights with another part of this model.",
            expected="targets with weights of their own",
            found=sorted(tied),
            remedy="Ask for a task without them: merging its adapter would move that part too.",
        )
    config = LoraConfig(
        task_type="CAUSAL_LM" if model.can_generate() else None,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.target_modules),
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=False,
    )
    twin = twin_of(model)
    known = {id(module) for module in twin.modules()}
    # The first values, which the manifest's replace, are drawn from torch's generator.
    with torch_states_kept(twin), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses transformers' old names
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # it corrects
        try:
            injected = get_peft_model(twin, config, adapter_name=_NAME)
        except ValueError as error:  # of a family whose layers are used past their forward pass
            raise TaskRefusal(
                "adapter-targets",
                "These targets take no adapter in this model.",
                expected=list(adapter.target_modules),
                found=str(error),
                remedy=candidates_said(model),
            ) from error
    assert isinstance(injected, PeftModel)  # noqa: S101  (mixed adapters are another type)
    for module in injected.modules():
        if id(module) not in known:  # new modules start in training mode
            module.training = twin.training
    return injected


def _has_experts(config: PretrainedConfig) -> bool:
    return any(
        _has_experts(value)
        if isinstance(value, PretrainedConfig)
        else "expert" in name and type(value) is int and value > 1
        for name, value in vars(config).items()
    )


def _adapter_tensors(model: PeftModel) -> dict[str, nn.Parameter]:
    """The adapter's parameters under the names of peft's files."""
    return {
        name.replace(f".{_NAME}.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
